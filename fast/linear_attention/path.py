"""PaTH attention: softmax attention whose keys are transformed by every token on their way to the query (arXiv:2505.16381).

Layout: q `(B, T, H, K)`, keys and directions k, w `(B, T, Hkv, K)`, v `(B, T, Hkv, V)`, strengths beta `(B, T, Hkv)`, with H a multiple of
Hkv, and sums of log forget gates F `(B, T, H)`, finite. States are the keys as the last token has left them `(B, Hkv, S, K)`, values
`(B, Hkv, S, V)` and, where there are gates, F `(B, H, S)`, in float32 (float64 for float64). q arrives scaled, w normalized.

Everything is PyTorch, on every device: there is no kernel. A unit-triangular system for each block, and then all blocks of queries walk
back together, each meeting one block of keys at a time under a running softmax: as many rounds as there are blocks, and no T x T matrix.
Autograd keeps the tiles of all rounds, though, so that memory is O(T²) with gradients. 16-bit inputs are computed in float32.

A step transforms all cached keys, which is why the state is new at every call. One that several texts share cannot be updated in place, and
one that has taken in drafted tokens cannot be cut back: keep the state from before.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.linear_attention._cache import packed, start, wide

__all__ = ["parallel", "parallel_forgetting", "scores", "blockwise", "step"]

State = tuple[Tensor, ...]


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, S0: State | Sequence[State] | None = None, block: int = 64,
    F: Tensor | None = None, *, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | list[State]]:  # fmt: skip
    """Outputs `(B, T, H, V)` and the final state, with gradients for everything.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, and since their caches have different lengths, states are then
    a list with one for each sequence.
    """
    if cu_seqlens is None:
        return _one_piece(q, k, v, w, beta, S0, block, F)
    checks.at_least(1, block=block)
    attend = lambda tokens, state: _attend(tokens, start(tokens, state, F is not None), block)
    o, states = packed(attend, wide(q, k, v, w, beta, F), S0, cu_seqlens)
    return o.to(v.dtype), states


def parallel(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """All pairs of tokens at once, one triangular system for all of them: memory O(T²)."""
    return _one_piece(q, k, v, w, beta, S0, max(q.shape[1], 1), None)


def parallel_forgetting(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, F: Tensor, S0: State | None = None
) -> tuple[Tensor, State]:
    """The same with forget gates."""
    return _one_piece(q, k, v, w, beta, S0, max(q.shape[1], 1), F)


def scores(q: Tensor, k: Tensor, w: Tensor, beta: Tensor, keys: Tensor | None = None) -> Tensor:
    """What the softmax is taken of, in float32, `(B, H, T, S + T)`: cached keys `(B, Hkv, S, K)` first, -inf for the future."""
    tokens = wide(q, k, k, w, beta)
    keys = start(tokens, None)[0] if keys is None else keys
    checks.shape(q=(q, "B T H K"), k=(k, "B T Hkv K"), keys=(keys, "B Hkv S K"))
    checks.dtypes(tokens[0].dtype, keys=keys)
    checks.same_device(q=q, keys=keys)
    T, keys = q.shape[1], keys[:, :, None, None]
    q, k, _, w, beta, _ = (_cut(x, k.shape[2], max(T, 1)) for x in tokens)
    local, q, _, _ = _within(q, k, w, beta[..., 0])
    return torch.cat([q @ keys.mT, _past(local)], -1).flatten(1, 2).flatten(2, 3)[..., : keys.shape[4] + T]


def step(
    state: State, q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor, F: Tensor | None = None
) -> tuple[Tensor, State]:  # fmt: skip
    """One token, `(B, H, K)`, `(B, Hkv, K)`, `(B, Hkv, V)`, `(B, Hkv)` and `(B, H)`: the output `(B, H, V)` and the new state."""
    tokens, dtype = wide(*(None if x is None else x[:, None] for x in (q, k, v, w, beta, F))), v.dtype
    keys, values, *sums = start(tokens, state, F is not None)
    q, k, v, w, beta, F = (x[:, 0] for x in tokens)
    keys = torch.cat([keys - (keys @ w[..., None]) * (beta[..., None] * w)[:, :, None], k[:, :, None]], 2)
    values, sums = torch.cat([values, v[:, :, None]], 2), [torch.cat([past, F[..., None]], 2) for past in sums]
    s = q.unflatten(1, (k.shape[1], -1)) @ keys.mT  # (B, Hkv, G, S + 1)
    for past in sums:
        s = s + (F[..., None] - past).view_as(s)
    return (s.softmax(-1) @ values).flatten(1, 2).to(dtype), (keys, values, *sums)


def _one_piece(q, k, v, w, beta, S0, block, F):
    """Rows of equal length, and caches of equal length."""
    checks.at_least(1, block=block)
    tokens = wide(q, k, v, w, beta, F)
    o, state = _attend(tokens, start(tokens, S0, F is not None), block)
    return o.to(v.dtype), state


def _attend(tokens, state, block):
    """Tokens `(B, T, heads, ·)` behind a state; inside, heads come first, then blocks: `(B, Hkv, H / Hkv, n, C, ·)`."""
    T, (keys, values, *sums) = tokens[0].shape[1], state
    if T == 0:
        return tokens[2].new_zeros(len(tokens[0]), 0, tokens[0].shape[2], values.shape[3]), state
    cached, carried = keys[:, :, None, None], values[:, :, None, None]
    q, k, v, w, beta, F = (_cut(x, keys.shape[1], min(block, T)) for x in tokens)
    local, q, ends, moves = _within(q, k, w, beta[..., 0])
    attended, outputs, n = _attended(_past(local + (F - F.mT)), v), [], k.shape[3]
    for left in reversed(range(n)):  # so many blocks of queries have a block of keys before them
        first, attended = [x[:, :, :, :1] for x in attended], [x[:, :, :, 1:] for x in attended]
        if cached.shape[4]:  # the first of the others has arrived at the cache
            s, at = q[:, :, :, :1] @ cached.mT, n - 1 - left
            if sums:
                s = s + (F[:, :, :, at : at + 1] - sums[0].unflatten(1, s.shape[1:3])[:, :, :, None, None])
            first = _merged(first, _attended(s, carried))
        outputs.append(first[2] / first[1])
        if left:
            q, there = q[:, :, :, 1:], slice(0, left)
            s = q @ ends[:, :, :, there].mT + (F[:, :, :, n - left :] - F[:, :, :, there].mT)
            attended = _merged(attended, _attended(s, v[:, :, :, there]))
            q = q @ moves[:, :, :, there]
    o = torch.cat(outputs, 3).flatten(3, 4)[:, :, :, :T].permute(0, 3, 1, 2, 4).flatten(2, 3)
    after = [torch.cat([values, tokens[2].transpose(1, 2)], 2), *(torch.cat([past, tokens[5].transpose(1, 2)], 2) for past in sums)]
    return o, (_at_the_end(keys, ends[:, :, 0], moves[:, :, 0])[:, :, : keys.shape[2] + T], *after)


def _within(q, k, w, beta):
    """Of every block: scores, unmasked; queries as they leave it at its start, keys at its end; all its transformations as a matrix."""
    count, width = k.shape[-2:]
    eye = lambda n: torch.eye(n, dtype=k.dtype, device=k.device)
    system = eye(count) + (beta[..., None] * (w @ w.mT)).tril(-1)
    sides = beta[..., None] * torch.cat([(w @ k.mT).tril(-1), w], -1)
    of_keys, of_queries = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True).split([count, width], -1)
    reached = (q @ w.mT).tril()
    return q @ k.mT - reached @ of_keys, q - reached @ of_queries, k - of_keys.mT @ w, eye(width) - w.mT @ of_queries


def _at_the_end(keys, ends, moves):
    """The cached keys, then those of each block, moved through all blocks behind them: products of their matrices, from the right."""
    moved, through = [], torch.eye(keys.shape[3], dtype=keys.dtype, device=keys.device)
    for n in reversed(range(ends.shape[2])):
        moved.append(ends[:, :, n] @ through.mT)
        through = through @ moves[:, :, n]
    return torch.cat([keys @ through.mT, *reversed(moved)], 2)


def _attended(s, v):
    """A softmax as far as it has come: reference, sum, sum of values. References are exact constants, whatever they are."""
    top = s.detach().amax(-1, keepdim=True)
    p = (s - top).exp()
    return top, p.sum(-1, keepdim=True), p @ v


def _merged(one, other):
    top = torch.maximum(one[0], other[0])
    a, b = (one[0] - top).exp(), (other[0] - top).exp()
    return top, a * one[1] + b * other[1], a * one[2] + b * other[2]


def _past(s):
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), -torch.inf)


def _cut(x, Hkv, block):
    """Tokens `(B, T, heads, ·)` in blocks `(B, Hkv, heads / Hkv, n, C, ·)`; the last is filled up with zeros, which transform nothing."""
    x = x if x.ndim == 4 else x[..., None]
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block))
    return x.unflatten(1, (-1, block)).unflatten(3, (Hkv, -1)).permute(0, 3, 4, 1, 2, 5)
