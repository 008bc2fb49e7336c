"""Gumbel coupling on a batch: everybody draws with the noise of the position, so the text does not depend on the drafter, to the last bit.

Noise is given (`gumbel`, `races`, in float32), or comes from `seed`: then it is a function of the request id and the absolute position in
the text, and is made where it is used, for vocabularies of any size (`gumbel_argmax.py`). Probabilities are float32, bfloat16 or float16,
and any positive multiple of a row names the same token. Where a row holds a NaN, an infinity or no mass the token is -1, never a valid id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.gumbel_argmax import gumbel_argmax

__all__ = ["verify", "draft", "match_probability", "lists"]


def verify(p, gumbel, draft, *, lengths=None, seed=None, request=None, position=None):
    """Tokens kept `(B,)` and the token that follows them `(B,)`, in the dtype of `draft`.

    p `(B, gamma + 1, V)` are the target's rows, gumbel their noise in the same shape, or None with a `seed`. Row i then belongs to the
    place `position[b] + i` (`position` `(B,)`, default 0: the length of the text before the draft) of request `request[b]` (default
    0 … B - 1). `lengths` `(B,)` shortens drafts (0 … gamma, clamped): entries and rows past a request's length are not read.
    """
    B, gamma = (checks.shape(p=(p, "B rows V"), draft=(draft, "B gamma"))[axis] for axis in ("B", "gamma"))
    if p.shape[1] != gamma + 1:
        raise ValueError(f"p must have shape (B, gamma + 1, V) with gamma + 1 = {gamma + 1}, not {tuple(p.shape)}")
    checks.dtypes(torch.int64, torch.int32, draft=draft, lengths=lengths)
    if lengths is not None:
        checks.shape(draft=(draft, "B gamma"), lengths=(lengths, "B"))
    lengths = torch.full((B,), gamma, device=p.device) if lengths is None else lengths.long().clamp(0, gamma)
    own = _winners(p, gumbel, seed, request, position, lengths + 1)  # (B, gamma + 1)
    drafted = torch.arange(gamma, device=p.device) < lengths[:, None]
    kept = (drafted & (draft == own[:, :gamma]) & (draft >= 0)).long().cumprod(1).sum(1)
    return kept.to(draft.dtype), own.gather(1, kept[:, None])[:, 0].to(draft.dtype)


def draft(drafter, context, gumbel=None, *, gamma=None, lengths=None, seed=None, request=None):
    """Drafted tokens `(B, gamma)`, int64, one after another from `drafter(tokens, ends) -> (B, 1, V)`; see `sampling` for models.

    context `(B, T)`, of which request b uses the first `lengths[b]` tokens (default T); gumbel `(B, gamma, V)`, or None with `seed` and
    `gamma`: token i then has the noise of the place `lengths[b] + i`, which is the target's there.
    """
    B, T = (checks.shape(context=(context, "B T"))[axis] for axis in ("B", "T"))
    checks.dtypes(torch.int64, torch.int32, context=context, lengths=lengths, request=request)
    if lengths is not None:
        checks.shape(context=(context, "B T"), lengths=(lengths, "B"))
    if gumbel is not None:
        gamma = checks.shape(context=(context, "B T"), gumbel=(gumbel, "B gamma V"))["gamma"]
    elif gamma is None or gamma < 0:
        raise ValueError(f"give the noise gumbel, or a seed and a gamma of at least 0, not {gamma}")
    lengths = torch.full((B,), T, device=context.device) if lengths is None else lengths.long()
    text = torch.nn.functional.pad(context.long(), (0, gamma))
    tokens = torch.zeros(B, gamma, dtype=torch.int64, device=context.device)
    for i in range(gamma):
        q = drafter(text, (lengths + i)[:, None])  # (B, 1, V)
        noise = None if gumbel is None else gumbel[:, i : i + 1]
        tokens[:, i] = _winners(q, noise, seed, request, lengths + i, None)[:, 0]
        text.scatter_(1, (lengths + i)[:, None], tokens[:, i : i + 1].clamp(min=0))
    return tokens


def match_probability(p, q):
    """The chance `(B,)` that both races name the same token, of laws `(B, V)`, float32 or float64, in their dtype.

    Sorted by p / q, every max(p_j / p_i, q_j / q_i) is p's on one side of i and q's on the other: two cumulative sums instead of V^2 terms,
    in float64.
    """
    checks.shape(p=(p, "B V"), q=(q, "B V"))
    checks.dtypes(torch.float32, torch.float64, p=p)
    checks.same(p=p, q=q)
    order = (p.double() / q.double()).nan_to_num(0.0, posinf=torch.inf).sort(dim=1, descending=True).indices
    p, q, dtype = p.double().gather(1, order), q.double().gather(1, order), p.dtype
    above, below = p.cumsum(1), q.flip(1).cumsum(1).flip(1) - q  # p where p / q is at least as large, q where it is smaller
    both = (p > 0) & (q > 0)
    one = torch.ones_like(p)
    return torch.where(both, 1 / (above / torch.where(both, p, one) + below / torch.where(both, q, one)), 0).sum(1).to(dtype)


def lists(p, q, races=None, *, k=None, seed=None, request=None, position=None):
    """One position, k drafts: the target's token `(B,)` and the drafts `(B, k)`, int64, of laws p and q `(B, V)`.

    races `(B, k, V)` are exponential times, or None with a `seed` and the number of lists `k`. List 0 then has the noise of `draft` and
    `verify` at that request and position.
    """
    V = checks.shape(p=(p, "B V"), q=(q, "B V"))["V"]
    checks.same(p=p, q=q)
    if races is not None:
        checks.shape(p=(p, "B V"), races=(races, "B k V"))
        if seed is not None:
            raise ValueError("races exclude a seed")
        return _first(p[:, None], races.amin(1, keepdim=True))[:, 0], _first(q[:, None].expand(races.shape), races)
    if k is None or k < 1 or k * V > 1 << 24:
        raise ValueError(f"give races, or a seed and k from 1 to 2^24 / V, not {k}")
    place = _place(p[:, None], seed, request, position)
    token = gumbel_argmax(p[:, None], seed, *place, lists=k)[:, 0]
    return token, torch.cat([gumbel_argmax(q[:, None], seed, *place, first=each) for each in range(k)], 1)


def _winners(p, gumbel, seed, request, position, counts):
    """The token that each row's noise names `(B, R)`."""
    if gumbel is None:
        return gumbel_argmax(p, seed, *_place(p, seed, request, position), counts=counts)
    if seed is not None:
        raise ValueError("gumbel excludes a seed")
    checks.shape(p=(p, "B R V"), gumbel=(gumbel, "B R V"))
    checks.dtypes(torch.float32, gumbel=gumbel)
    _check(p)
    weight = p.float()
    score = torch.where(weight > 0, weight.log() + gumbel, -torch.inf)  # (B, R, V)
    valid = (score.amax(2) > -torch.inf) & ~(weight.isnan() | weight.isinf()).any(2)  # false for a NaN
    return torch.where(valid, score.argmax(2), -1)


def _first(p, times):
    checks.dtypes(torch.float32, races=times)
    _check(p)
    weight = p.float()
    time = torch.where(weight > 0, times / weight, torch.inf)
    valid = (time.amin(2) < torch.inf) & ~(weight.isnan() | weight.isinf()).any(2)
    return torch.where(valid, time.argmin(2), -1)


def _place(p, seed, request, position):
    """Request ids and positions `(B,)`, checked; the defaults are 0 … B - 1 and 0."""
    _check(p)
    if seed is None:
        raise ValueError("give either the noise or a seed")
    checks.contiguous(p=p)
    checks.dtypes(torch.int64, torch.int32, request=request, position=position)
    for name, tensor in (("request", request), ("position", position)):
        if tensor is not None:
            checks.shape(p=(p, "B R V"), **{name: (tensor, "B")})
    B, device = len(p), p.device
    request = torch.arange(B, device=device) if request is None else request.to(device, torch.int64)
    return request, torch.zeros(B, dtype=torch.int64, device=device) if position is None else position.to(device, torch.int64)


def _check(p):
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    if p.shape[-1] == 0:
        raise ValueError(f"p must have V at least 1, not shape {tuple(p.shape)}")
