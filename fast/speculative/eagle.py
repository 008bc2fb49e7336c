"""EAGLE on a batch: requests of different lengths draft together, with a plain causal layer or with one that keeps a cache.

Two kinds of layers. A plain one, `layer(z)`, is causal, `(B, t, D)` to `(B, t, D)`, and is run on all rows again at every step. Where
`cache` is given, the layer takes the next rows only: `layer(z, mask, position, state)` gives `(hidden, state)`. `z (B, n, D)` are n more
rows, `mask (B, n, m + n)` says which of all m + n rows so far each of them sees, `position (B, n)` is each row's place in the text, and
`state` is what the layer returned last (None at first), which it must not change in place. The first call reads all new features at once,
every further one a single row. The cache that comes back covers the true features only: what was drafted is gone, as it must be, because
the next round brings the target's own features for the tokens that were kept.

Everything is differentiable; `predict` and `loss` are what training calls. Laws are float32.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.speculative import chain

__all__ = ["draft", "predict", "loss"]


class Cache(NamedTuple):
    """What a layer knows of the text so far."""

    state: Any
    real: torch.Tensor  # (B, m): which of the layer's rows are rows of the text, the others fill up shorter requests


def draft(
    features, tokens, embed, fc, layer, lm_head, gamma, *,
    lengths=None, cache=None, token=None, seed=None, request=None, position=None,
):  # fmt: skip
    """Drafted tokens `(B, gamma)` and the laws they were drawn from `(B, gamma, V)`; with a cache, the new cache too.

    features `(B, T, D)` and tokens `(B, T + 1)`: request b uses the first `lengths[b]` features (default T, clamped) and one token more;
    what stands beyond is not read. `cache` () is an empty one; with a cache, features and tokens are those that came since, the first token
    being the last one of before. `token` `(B, gamma)` are uniforms to draw with; without them they come from `seed`, in the role of a draft
    token (`request`, `position`: see `chain.verify`); without a seed each token is the likeliest one. Where a row holds a NaN, or nothing
    was given to draft from, the token is -1.
    """
    checks.shape(features=(features, "B T D"), embed=(embed, "V D"), lm_head=(lm_head, "V D"))
    law = lambda hidden: torch.softmax((hidden @ lm_head.T).float(), -1)
    options = dict(lengths=lengths, cache=cache, token=token, seed=seed, request=request, position=position)
    return roll(features, tokens, embed, fc, layer, law, gamma, **options)


def roll(features, tokens, embed, fc, layer, law, gamma, *, lengths, cache, token, seed, request, position):
    """The loop of `draft`, for any `law` that turns a hidden row `(B, D)` into probabilities `(B, V)`."""
    B, T, D = checks.shape(features=(features, "B T D")).values()
    device, uniform = features.device, uniforms(features, gamma, token, seed, request, position)
    checks.dtypes(torch.int64, torch.int32, lengths=lengths)
    if lengths is not None:
        checks.shape(lengths=(lengths, f"{B}"))
    lengths = torch.full((B,), T, device=device) if lengths is None else lengths.long().clamp(0, T)
    inside = torch.arange(T, device=device) < lengths[:, None]  # (B, T)
    rows = _told(torch.where(inside[:, :, None], features, 0), tokens, embed, fc)  # (B, T, D)
    hidden, go_on, kept = (_again(layer, rows, lengths) if cache is None else _once(layer, rows, inside, cache))
    here, last = torch.arange(B, device=device), (lengths - 1).clamp(min=0)
    state = hidden[here, last] if T else features.new_zeros(B, D)
    state = torch.where(lengths[:, None] > 0, state, torch.nan)  # nothing to draft from
    drafted, q = [], []
    for step in range(gamma):
        q.append(law(state))
        drafted.append(choose(q[-1], None if uniform is None else uniform[:, step]))
        if step + 1 < gamma:
            state = go_on(torch.cat([F.embedding(drafted[-1].clamp(min=0), embed), state], -1) @ fc.T, step)
    drafts = torch.stack(drafted, 1) if gamma else torch.zeros(B, 0, dtype=torch.int64, device=device)
    laws = torch.stack(q, 1) if gamma else law(state)[:, None][:, :0]
    return (drafts, laws) if cache is None else (drafts, laws, kept)


def _again(layer, rows, lengths):
    """A plain layer: hidden rows, and a function that appends one row to each request and runs the layer on everything again."""
    here = torch.arange(len(rows), device=rows.device)

    def go_on(row, step):
        nonlocal rows
        rows = F.pad(rows, (0, 0, 0, 1)).index_put((here, lengths + step), row)
        return layer(rows)[here, lengths + step]

    return layer(rows) if rows.shape[1] else rows, go_on, None


def _once(layer, rows, inside, cache):
    """A layer that keeps a cache: hidden rows, a function that shows it one row more, and the cache of the true rows."""
    state, before = cache if cache else (None, inside[:, :0])
    real = torch.cat([before, inside], 1)  # (B, m + T)
    places = before.sum(1, keepdim=True) + torch.arange(rows.shape[1], device=rows.device)
    hidden, state = layer(rows, causal(before, inside), places, state)
    seen, at, so_far = real, real.sum(1, keepdim=True), state

    def go_on(row, step):
        nonlocal seen, so_far
        seen = F.pad(seen, (0, 1), value=True)
        out, so_far = layer(row[:, None], seen[:, None], at + step, so_far)
        return out[:, 0]

    return hidden, go_on, Cache(state, real)


def causal(before, inside):
    """What n new rows see `(B, n, m + n)`: the real ones `(B, m)`, `(B, n)` before them, and themselves, so that no row sees nothing."""
    new = torch.arange(inside.shape[1], device=inside.device)
    among = (new < new[:, None]) & inside[:, None] | (new == new[:, None])
    return torch.cat([before[:, None].expand(-1, len(new), -1), among], 2)


def predict(features, tokens, embed, fc, layer):
    """Predicted features `(B, T, D)` that follow each of the given ones, on true features throughout; `layer(z)` is a plain one."""
    return layer(_told(features, tokens, embed, fc))


def loss(predicted, features, lm_head, weight=0.1):
    """SmoothL1 between predicted and true features at the same places, `(B, T, D)`, and `weight` times the cross-entropy of their laws."""
    checks.shape(predicted=(predicted, "B T D"), features=(features, "B T D"), lm_head=(lm_head, "V D"))
    p = torch.softmax(features @ lm_head.T, -1)
    cross_entropy = F.cross_entropy((predicted @ lm_head.T).flatten(0, 1), p.flatten(0, 1))
    return F.smooth_l1_loss(predicted, features) + weight * cross_entropy


def choose(q, uniform):
    """One token per row of q `(B, V)`: drawn with a uniform `(B,)`, or the likeliest; -1 where the row holds a NaN."""
    if uniform is None:
        return torch.where(q.isnan().any(-1), -1, q.argmax(-1))
    rows, nothing = q.detach()[:, None], torch.zeros(len(q), 0, dtype=torch.int64, device=q.device)
    return chain.verify(rows, rows[:, :0], nothing, accept=nothing.float(), token=uniform)[1]  # nothing to verify: a draw from the row


def uniforms(like, gamma, token, seed, request, position, name="token"):
    """The uniforms `(B, gamma)` that draft tokens are drawn with, or None where neither they nor a seed are given."""
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    if token is not None and seed is not None:
        raise ValueError(f"{name} excludes a seed: give the uniforms, or let them come from the seed")
    if token is not None:
        checks.shape(**{name: (token, f"{len(like)} {gamma}")})
        checks.dtypes(torch.float32, **{name: token})
        return token
    if seed is None:
        return None
    checks.dtypes(torch.int64, torch.int32, request=request, position=position)
    for what, tensor in (("request", request), ("position", position)):
        if tensor is not None:
            checks.shape(**{what: (tensor, f"{len(like)}")})
    request = torch.arange(len(like), device=like.device) if request is None else request.long()
    position = torch.zeros_like(request) if position is None else position.long()
    return philox.uniform(seed, philox.DRAFT, request, position, gamma)


def _told(features, tokens, embed, fc):
    """Each feature beside the token after it, as one row `(B, T, D)`."""
    sizes = checks.shape(features=(features, "B T D"), tokens=(tokens, "B rows"), embed=(embed, "V D"))
    checks.shape(features=(features, "B T D"), fc=(fc, f"D {2 * sizes['D']}"))
    checks.same(features=features, embed=embed, fc=fc)
    checks.dtypes(torch.int64, torch.int32, tokens=tokens)
    if sizes["rows"] != sizes["T"] + 1:
        raise ValueError(f"tokens must have shape (B, T + 1) with T + 1 = {sizes['T'] + 1}, not {tuple(tokens.shape)}")
    return torch.cat([F.embedding(tokens[:, 1:].clamp(0, sizes["V"] - 1), embed), features], -1) @ fc.T
