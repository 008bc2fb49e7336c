"""Blockwise parallel decoding on a batch: how much of each guessed block stays, and the model's own token behind it.

Rows may be probabilities or logits: they are only compared, so nothing is rounded and the tokens are the spec's always. A guess's rank is
counted and not sorted for, in one pass over its row. What the spec calls an error, a row with a NaN or with nothing above minus infinity,
cannot be raised without waiting for a GPU: nothing is kept in such a row, and its token is -1.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.likeliest import likeliest

__all__ = ["propose", "verify_top_k", "verify_distance"]


def propose(logits):
    """Every head's likeliest token `(B, K)`, int64, of scores `(B, K, V)`; the first of equals."""
    V = checks.shape(logits=(logits, "B K V"))["V"]
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, logits=logits)
    if V == 0:
        raise ValueError(f"logits must have V at least 1, not shape {tuple(logits.shape)}")
    checks.contiguous(logits=logits)
    return likeliest(logits, None, False)[0]


def verify_top_k(p, draft, k, *, lengths=None):
    """Guesses kept `(B,)` and the token behind them `(B,)`, in the dtype of `draft`: kept are guesses among the k likeliest of their row.

    p `(B, gamma + 1, V)`, draft `(B, gamma)`; `lengths` `(B,)` shortens blocks (0 … gamma, clamped): entries past a request's length
    influence nothing, and its last row is `p[b, lengths[b]]`. `k` is a number, or one per request `(B,)`.
    """
    _check(p, draft, lengths, "k", k, 1)
    x, known = _known(p, draft)
    ids = torch.arange(p.shape[2], device=p.device)
    rows = p[:, :-1]  # (B, gamma, V)
    here = rows.gather(2, x[:, :, None])  # (B, gamma, 1)
    rank = (rows > here).sum(2) + ((rows == here) & (ids < x[:, :, None])).sum(2)  # (B, gamma)
    return _longest(draft, lengths, known & (rank < _per_request(k)), _likeliest(p, lengths))


def verify_distance(p, draft, eps, *, lengths=None):
    """The same for tokens whose ids are an ordinal scale: a guess may lie up to `eps` (a number, or `(B,)`) from the likeliest token."""
    _check(p, draft, lengths, "eps", eps, 0)
    x, known = _known(p, draft)
    own = _likeliest(p, lengths)
    return _longest(draft, lengths, known & ((x - own[:, :-1]).abs() <= _per_request(eps)), own)


def _longest(draft, lengths, accepted, own):
    """The accepted prefix's length, and the model's own token of the row behind it; `own` `(B, gamma + 1)` is -1 where a row has none."""
    gamma = draft.shape[1]
    inside = torch.arange(gamma, device=draft.device) < (gamma if lengths is None else lengths[:, None])
    kept = (accepted & inside & (own[:, :-1] >= 0)).long().cumprod(1).sum(1)  # (B,)
    return kept.to(draft.dtype), own.gather(1, kept[:, None])[:, 0].to(draft.dtype)


def _likeliest(p, lengths):
    """The likeliest token of each row that a request has `(B, gamma + 1)`."""
    return likeliest(p, None if lengths is None else lengths.long().clamp(0, p.shape[1] - 1) + 1, False)[0]


def _known(p, draft):
    """The guesses as indices, and which of them are ids at all."""
    x = draft.long()
    known = (x >= 0) & (x < p.shape[2])
    return torch.where(known, x, 0), known


def _per_request(setting):
    return setting[:, None] if isinstance(setting, torch.Tensor) else setting


def _check(p, draft, lengths, name, setting, least):
    checks.chains(draft, lengths, p=p)
    if isinstance(setting, torch.Tensor):
        checks.shape(draft=(draft, "B gamma"), **{name: (setting, "B")})
    elif not setting >= least:
        raise ValueError(f"{name} must be at least {least}, not {setting}")
