"""Multi-token prediction on a batch: one module, its loss, and drafting by moving all places one depth further at a time.

A plain layer `layer(z)` is run on all places at every depth, as in training. A layer that keeps a cache, called as in `eagle`, is given at
every depth the new places only, T of them, and as many more as tokens were drafted before. At depth k the new places lie k - 1 to the left
of those at depth 1, because a place goes that deep only when the text has k tokens after it; they are told the same tokens. So a depth
keeps, beside the layer's state, one row: the last that the depth above it had for good. What stands on drafted tokens is not kept.

Engines that keep one cache for all depths append the drafted place to it; that is another drafter from the second token on.
Everything is differentiable; laws are float32.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from twofold.fast import checks
from twofold.fast.speculative import eagle

__all__ = ["module", "loss", "draft"]


def module(h, tokens, embed, m, layer):
    """One depth further `(B, n, D)`: h `(B, n, D)` are the states before, tokens `(B, n)` the tokens that they predicted, m `(D, 2 D)`."""
    D = checks.shape(h=(h, "B n D"), tokens=(tokens, "B n"), embed=(embed, "V D"))["D"]
    checks.shape(h=(h, "B n D"), m=(m, f"D {2 * D}"))
    checks.same(h=h, embed=embed, m=m)
    checks.dtypes(torch.int64, torch.int32, tokens=tokens)
    embedded = F.embedding(tokens.clamp(0, len(embed) - 1), embed)
    return layer(torch.cat([F.rms_norm(x, (D,), eps=1e-6) for x in (h, embedded)], -1) @ m.T)


def loss(probs, tokens, weight):
    """The depths' mean cross-entropies, averaged and weighted; probs `(B, K, T, V)`, tokens `(B, T + 1)`, below 0 where unlabeled."""
    sizes = checks.shape(probs=(probs, "B K T V"), tokens=(tokens, "B rows"))
    checks.dtypes(torch.int64, tokens=tokens)
    K, T = sizes["K"], sizes["T"]
    if sizes["rows"] != T + 1:
        raise ValueError(f"tokens must have shape (B, T + 1) with T + 1 = {T + 1}, not {tuple(tokens.shape)}")
    total = probs.new_zeros(())
    for k in range(1, min(K, T - 1) + 1):
        labels = tokens[:, k + 1 :]  # (B, T - k)
        right = probs[:, k - 1, : T - k].gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        total = total - torch.where(labels >= 0, right, 1).log().sum() / (labels >= 0).sum().clamp(min=1)
    return weight / K * total


class Depth(NamedTuple):
    """What one depth knows of the text so far."""

    state: Any
    real: torch.Tensor  # (B, rows of the state): which of them are places of the text
    row: torch.Tensor  # (B, D): the state before this depth at the first place that comes next


class Cache(NamedTuple):
    places: torch.Tensor  # (B,)
    depths: list[Depth]


def draft(h, token, gamma, embed, m, layer, head, *, lengths=None, cache=None, uniform=None, seed=None, request=None, position=None):
    """Drafted tokens `(B, gamma)` and the laws they were drawn from `(B, gamma, V)`; with a cache, the new cache too.

    h `(B, n, D)` are the main model's states, token `(B, n)` the token after each: request b uses the first `lengths[b]` places (default n,
    clamped), and what stands beyond is not read. `cache` () is an empty one; with a cache, h and token are those that came since, and gamma
    stays the same. `uniform` `(B, gamma)` draws; without it a `seed` does (`request`, `position`: see `chain.verify`), and without either
    each token is the likeliest one. Where a row holds a NaN, or there is no new place, the token is -1.
    """
    B, n, _ = checks.shape(h=(h, "B n D"), token=(token, "B n")).values()
    checks.shape(h=(h, "B n D"), embed=(embed, "V D"), head=(head, "V D"))
    checks.dtypes(torch.int64, torch.int32, token=token, lengths=lengths)
    if lengths is not None:
        checks.shape(lengths=(lengths, f"{B}"))
    uniform = eagle.uniforms(h, gamma, uniform, seed, request, position, name="uniform")
    if cache and len(cache.depths) != gamma:
        raise ValueError(f"gamma must stay {len(cache.depths)} as long as the cache lives, not become {gamma}")
    lengths = torch.full((B,), n, device=h.device) if lengths is None else lengths.long().clamp(0, n)
    inside = torch.arange(n, device=h.device) < lengths[:, None]  # (B, n)
    h = torch.where(inside[:, :, None], h, 0)
    module_of = (embed, m, layer)
    deeper = _again(h, token.long(), lengths, *module_of) if cache is None else _once(h, token, lengths, inside, *module_of, cache)
    drafted, q, depths = torch.zeros(B, 0, dtype=torch.int64, device=h.device), torch.zeros(B, 0, len(head), device=h.device), []
    for step in range(gamma):
        state, depth = deeper(step, drafted)
        row = torch.softmax((torch.where(lengths[:, None] > 0, state, torch.nan) @ head.T).float(), -1)  # NaN: no place to draft from
        token = eagle.choose(row, None if uniform is None else uniform[:, step])
        drafted, q, depths = torch.cat([drafted, token[:, None]], 1), torch.cat([q, row[:, None]], 1), [*depths, depth]
    return (drafted, q) if cache is None else (drafted, q, Cache((cache.places if cache else 0) + lengths, depths))


def _again(h, told, lengths, embed, m, layer):
    """A plain layer: a function that moves all places one depth further and returns the last place's state `(B, D)`."""
    here, places, last = torch.arange(len(h), device=h.device), torch.arange(h.shape[1], device=h.device), (lengths - 1).clamp(min=0)

    def deeper(step, drafted):
        nonlocal h, told
        if step:  # each place hears of the token after the last one
            told = torch.where(places == last[:, None], drafted[:, -1:], told.roll(-1, 1))
        h = module(h, told, embed, m, layer) if len(places) else h
        return (h[here, last] if len(places) else h.sum(1)), None

    return deeper


def _once(h, told, lengths, inside, embed, m, layer, cache):
    """A layer that keeps a cache: a function that moves what is new one depth further, and returns what that depth will know, too."""
    B, T, D = h.shape
    here, last = torch.arange(B, device=h.device), (lengths - 1).clamp(min=0)
    before, started = (cache.places if cache else torch.zeros_like(lengths)), (lengths > 0)[:, None]
    end = h.new_zeros(B, D)  # of the depth above: the last state that stands on no drafted token
    on_drafts = h.new_zeros(B, 0, D)  # of the depth above: the states after it, one per drafted token but the last

    def deeper(step, drafted):
        nonlocal h, end, on_drafts
        state, real, row = cache.depths[step] if cache else (None, inside[:, :0], h.new_zeros(B, D))
        if step:
            rows, h = torch.cat([end[:, None], on_drafts], 1), torch.cat([row[:, None], h], 1)[:, :T]
        places = before[:, None] - step + torch.arange(T, device=h.device)
        true = inside & (places >= 0)
        call = lambda z: layer(z, eagle.causal(real, true), places.clamp(min=0), state)
        h, state = module(h, told, embed, m, call) if T else (h, state)
        known = Depth(state, torch.cat([real, true], 1), torch.where(started, end, row))
        if step:
            places = (before + lengths - step)[:, None] + torch.arange(step, device=h.device)
            call = lambda z: layer(z, eagle.causal(known.real, places >= 0), places.clamp(min=0), state)
            on_drafts = module(rows, drafted, embed, m, call)[0]
        end = h[here, last] if T else end
        return (on_drafts[:, -1] if step else end), known

    return deeper
