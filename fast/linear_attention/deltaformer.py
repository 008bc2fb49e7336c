"""DeltaFormer: softmax attention over what tokens store after they have asked what is stored already (arXiv:2505.19488).

Layout: q `(B, T, H, K)`, keys and first questions k, w `(B, T, Hkv, K)`, v `(B, T, Hkv, V)`, strengths beta `(B, T, Hkv)`, with H a
multiple of Hkv; states are keys `(B, Hkv, S, K)` and what is stored under them `(B, Hkv, S, V)`, in float32 (float64 for float64). q and w
arrive scaled.

Everything is PyTorch, on every device: there is no kernel. Blocks come one after the other, since what a block stores depends on all that
was stored before. Each is a triangular system of its own size behind products with the cache, and holds the rows of its own scores only.
Autograd keeps those of all blocks, so that memory is O(T²) with gradients. 16-bit inputs are computed in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.linear_attention._cache import packed, start, wide

__all__ = ["recurrent", "parallel", "blockwise", "step"]

State = tuple[Tensor, ...]


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, S0: State | Sequence[State] | None = None, block: int = 64, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | list[State]]:  # fmt: skip
    """Outputs `(B, T, H, V)` and the final state, with gradients for everything.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, and since their caches have different lengths, states are then
    a list with one for each sequence.
    """
    if cu_seqlens is None:
        return _one_piece(q, k, v, w, beta, S0, block)
    checks.at_least(1, block=block)
    o, states = packed(lambda tokens, state: _attend(tokens, start(tokens, state), block), wide(q, k, v, w, beta), S0, cu_seqlens)
    return o.to(v.dtype), states


def parallel(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """All tokens at once, one triangular system for all of them: memory O(T²)."""
    return _one_piece(q, k, v, w, beta, S0, max(q.shape[1], 1))


def recurrent(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """One token after the other."""
    return _one_piece(q, k, v, w, beta, S0, 1)


def step(state: State, q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor) -> tuple[Tensor, State]:
    """One token, `(B, H, K)`, `(B, Hkv, K)`, `(B, Hkv, V)`, `(B, Hkv, K)` and `(B, Hkv)`: the output `(B, H, V)` and the new state."""
    o, state = _one_piece(q[:, None], k[:, None], v[:, None], w[:, None], beta[:, None], state, 1)
    return o[:, 0], state


def _one_piece(q, k, v, w, beta, S0, block):
    """Rows of equal length, and caches of equal length."""
    checks.at_least(1, block=block)
    tokens = wide(q, k, v, w, beta)
    o, state = _attend(tokens, start(tokens, S0), block)
    return o.to(v.dtype), state


def _attend(tokens, state, block):
    """Tokens `(B, T, heads, ·)` behind a state; inside, heads come first, and queries that share a key: `(B, Hkv, H / Hkv, T, K)`."""
    (keys, u), T = state, tokens[0].shape[1]
    q, k, v, w, beta = (x.transpose(1, 2) for x in tokens[:5])
    q, beta, past, outputs = q.unflatten(1, (k.shape[1], -1)), beta[..., None], keys.shape[2], []
    keys = torch.cat([keys, k], 2)
    for begin in range(0, T, block):
        here, before = slice(begin, begin + block), past + begin
        there = keys[:, :, : before + min(block, T - begin)]
        asked = beta[:, :, here] * _weights(w[:, :, here] @ there.mT, before - 1)
        known, system = asked[..., :before], asked[..., before:]  # ones on its diagonal are understood
        new = torch.linalg.solve_triangular(system, v[:, :, here] - known @ u, upper=False, unitriangular=True)
        u = torch.cat([u, new], 2)
        outputs.append(_weights(q[:, :, :, here] @ there[:, :, None].mT, before) @ u[:, :, None])
    o = torch.cat([v.new_zeros(*q.shape[:3], 0, v.shape[3]), *outputs], 3)
    return o.permute(0, 3, 1, 2, 4).flatten(2, 3), (keys, u)


def _weights(s, last):
    """A softmax over the keys up to `last` for the first row, one more for each row below; zeros where there are none."""
    future = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(last + 1)
    s = s.masked_fill(future, -torch.inf)
    p = (s - s.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).min)).exp()
    return p / p.sum(-1, keepdim=True).clamp_min(1)  # of a row with keys at least 1
