"""Log-linear attention: a memory for each scale of the past, weighted by the token that reads (arXiv:2506.04761).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-decays g `(B, T, H)`, at most 0, weights of the levels lam
`(B, T, H, L)`; states are pairs: `(B, H, L, K, V)` in float32, and how many tokens each row has seen, int64 `(B,)`. L - 1 bits must be
enough to count all tokens of a row, earlier ones included. q arrives scaled.

Everything is PyTorch, on either side: masks and products of matrices in float32 (float64 for float64), one chunk after the other. Where a
chunk ends depends on how many tokens came before. So rows that have seen different numbers of them are run one by one, as packed sequences
are, and the host reads the counts.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels.diagonal_recurrence import FLOATS
from twofold.fast.test_time_training._tokens import by_sequence

__all__ = ["parallel", "recurrent", "chunked", "step"]

State = tuple[Tensor, Tensor]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, lam: Tensor, S0: State | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states, with gradients for everything but the counts.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, and states are `(N, …)`.
    """
    checks.at_least(1, chunk=chunk)
    *tokens, dtype = _wide(q, k, v, g, lam)
    state = _start(tokens, S0, len(q) if cu_seqlens is None else len(cu_seqlens) - 1)
    run = lambda tokens, state: _in_chunks(tokens, state, chunk)
    if cu_seqlens is None and len(set(state[1].tolist())) > 1:  # rows of equal length, as if packed
        rows = [run([x[b : b + 1] for x in tokens], (state[0][b : b + 1], state[1][b : b + 1])) for b in range(len(q))]
        o, state = torch.cat([o for o, _ in rows]), tuple(torch.cat(x) for x in zip(*(state for _, state in rows), strict=True))
    else:
        o, state = run(tokens, state) if cu_seqlens is None else by_sequence(run, tokens, state, cu_seqlens)
    return o.to(dtype), state


def parallel(q: Tensor, k: Tensor, v: Tensor, g: Tensor, lam: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """All pairs of tokens at once: memory O(T²)."""
    return chunked(q, k, v, g, lam, S0, max(1 << lam.shape[-1], 1))


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, lam: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """One token after the other."""
    *tokens, dtype = _wide(q, k, v, g, lam)
    state, outputs = _start(tokens, S0, len(q)), [tokens[2][:, :0]]
    _seen(state[1], q.shape[1], lam.shape[3])
    for t in range(q.shape[1]):
        output, state = _step(state, *(x[:, t] for x in tokens))
        outputs.append(output[:, None])
    return torch.cat(outputs, 1).to(dtype), state


def step(state: State, q: Tensor, k: Tensor, v: Tensor, g: Tensor, lam: Tensor) -> tuple[Tensor, State]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H)`, `(B, H, L)`, then read: the output `(B, H, V)` and the new state."""
    *tokens, dtype = _wide(*(x[:, None] for x in (q, k, v, g, lam)))
    state = _start(tokens, state, len(q))
    if not q.is_cuda:  # which would have to be waited for
        _seen(state[1], 1, lam.shape[2])
    output, state = _step(state, *(x[:, 0] for x in tokens))
    return output.to(dtype), state


def _step(state, q, k, v, g, lam):
    """Rows may stand at different places: each merges the levels up to the lowest bit of its own count into the next, which is empty."""
    S, t = state
    level, n = torch.arange(S.shape[2], device=S.device), _bits(t & -t)[:, None]
    where = lambda mask: mask[:, None, :, None, None].to(S.dtype)
    merged = (S * where(level < n)).sum(2, keepdim=True) * where(level == n)
    S = (S * where(level > n) + merged) * g.exp()[..., None, None, None]
    S = torch.cat([(k[..., None] * v[..., None, :])[:, :, None], S[:, :, 1:]], 2)
    read = (q[:, :, None, None] @ S).squeeze(3)  # (B, H, L, V)
    return (lam[..., None, :] @ read).squeeze(2), (S, t + 1)


def _in_chunks(tokens, state, chunk):
    """Rows that have seen equally many tokens; chunks end at whole numbers of chunks."""
    S, t = state
    start, total = 0, tokens[0].shape[1]
    seen, outputs = _seen(t, total, S.shape[2]), [tokens[2][:, :0]]
    while start < total:
        end = start + chunk - (seen + start) % chunk
        output, S = _piece(S, seen + start, *(x[:, start:end].transpose(1, 2) for x in tokens))
        outputs.append(output.transpose(1, 2))
        start = end
    return torch.cat(outputs, 1), (S, t + total)


def _piece(S, at, q, k, v, g, lam):
    """Tokens `(B, H, n, ·)` from place `at` on: all pairs of them, and what the state holds, which each reads at levels of its own."""
    n, level = q.shape[2], torch.arange(S.shape[2], device=S.device)
    time = torch.arange(at, at + n, device=S.device)
    held = (max(at - 1, 0) >> level) << level  # a token of each level of the state
    weight = lambda other: lam.gather(3, _bits(time[:, None] ^ other).expand(*lam.shape[:3], -1))  # of the levels at which each reads it
    between = torch.where(time[:, None] > time, g[..., None], 0.0).cumsum(2)
    decay = torch.where(time[:, None] >= time, between, -torch.inf).exp()
    since = g.cumsum(2).exp()[..., None]
    output = (q @ k.mT * decay * weight(time)) @ v + torch.einsum("bhtl,bhtk,bhlkv->bhtv", since * weight(held), q, S)
    until = torch.where(level[:, None] == _bits(time[-1] ^ time), decay[:, :, -1:], 0.0)  # (B, H, L, n)
    moved = (level[:, None] == _bits(time[-1] ^ held)).to(S.dtype) @ S.flatten(3)
    return output, since[:, :, -1:, :, None] * moved.view_as(S) + torch.einsum("bhlt,bhtk,bhtv->bhlkv", until, k, v)


def _bits(x):
    """How many bits a number has."""
    return torch.frexp(x.double())[1].long()


def _wide(q, k, v, g, lam):
    """Everything in the computing format and with the heads of v, and the dtype of the output."""
    sizes = checks.shape(q=(q, "B T Hq K"), k=(k, "B T Hq K"), v=(v, "B T H V"), g=(g, "B T H"), lam=(lam, "B T H L"))
    checks.dtypes(*FLOATS, q=q, g=g, lam=lam)
    checks.same(q=q, k=k, v=v)
    checks.same_device(q=q, g=g, lam=lam)
    if not sizes["Hq"] or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"v must have a multiple of the heads of q, {sizes['Hq']}, not {sizes['H']}")
    if not g.is_cuda and bool((g > 0).any()):
        raise ValueError(f"g must hold log-decays of at most 0, but its largest is {g.max().item()}")
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k = (x.repeat_interleave(sizes["H"] // sizes["Hq"], 2) for x in (q, k))
    return *(x.to(wide) for x in (q, k, v, g, lam)), v.dtype


def _start(tokens, S0, rows):
    """The start state, checked."""
    q, _, v, _, lam = tokens
    _, _, H, L = lam.shape
    if L == 0:
        raise ValueError(f"lam must have shape (B, T, H, L) with at least one level, not {tuple(lam.shape)}")
    if S0 is None:
        S0 = q.new_zeros(rows, H, L, q.shape[3], v.shape[3]), torch.zeros(rows, dtype=torch.int64, device=q.device)
    if len(S0) != 2:
        raise ValueError(f"S0 must be a pair, states and counts, not {len(S0)} tensors")
    S, t = S0
    checks.shape(lam=(lam, "B T H L"), q=(q, "B T H K"), v=(v, "B T H V"), **{"S0[0]": (S, f"{rows} H L K V"), "S0[1]": (t, f"{rows}")})
    checks.dtypes(q.dtype, **{"S0[0]": S})
    checks.dtypes(torch.int64, **{"S0[1]": t})
    checks.same_device(q=q, **{"S0[0]": S, "S0[1]": t})
    return S, t


def _seen(t, new, L):
    """How many tokens the row that has seen the most has seen; L levels must be enough for `new` more."""
    seen = max(t.tolist(), default=0)
    if seen + new > 1 << L - 1:
        raise ValueError(f"lam must have {(seen + new - 1).bit_length() + 1} levels for {seen + new} tokens, not {L}")
    return seen
