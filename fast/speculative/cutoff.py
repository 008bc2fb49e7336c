"""The law of a row in four numbers and a temperature, for batches of logits `(B, V)` or `(B, rows, V)` in float32, bfloat16 or float16.

Every setting is a number for all rows or a tensor of one value per row, shape `(B,)` or `(B, rows)`. Values in tensors are not checked,
since that would wait for the GPU; what is out of range counts as the nearest in range. Numbers that are off cost nothing. What the spec
calls an error, a row without a finite greatest logit, has the id -1 and NaN for its other numbers, and so NaN for its probabilities.
Logits are read where they lie: outer strides are free, the innermost axis must be contiguous.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.row_cutoff import row_cutoff
from twofold.fast.kernels.row_stats import row_stats

__all__ = ["row", "restore", "probability", "statistics"]


def row(logits, T=1, k=0, mass=1, ratio=0):
    """The law `(T, greatest, cut, last, total)` of every row: float32, and int64 for `last`; each `(B,)` or `(B, rows)`.

    A token v is kept iff its logit exceeds `cut`, or equals it and v <= `last`; its probability is exp((logit - greatest) / T) / total.
    """
    _check(logits)
    limits = {"T": (T, 0, torch.inf, 1), "k": (k, 0, torch.inf, 0), "mass": (mass, 0, torch.inf, 1), "ratio": (ratio, 0, 1, 0)}
    settings = {name: _setting(logits, name, *limit) for name, limit in limits.items()}
    return tuple(number.view(logits.shape[:-1]) for number in row_cutoff(_rows(logits), *settings.values()))


def restore(logits, law):
    """The probabilities of all tokens, float32, in the shape of `logits`."""
    _check(logits, law)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return _probability(logits, law, ids)


def probability(logits, law, ids):
    """The probabilities of the tokens `ids` `(B, n)` or `(B, rows, n)`, each from its own logit; 0 for ids outside the vocabulary."""
    _check(logits, law)
    checks.dtypes(torch.int64, torch.int32, ids=ids)
    if ids.shape[:-1] != logits.shape[:-1] or ids.ndim != logits.ndim:
        raise ValueError(f"ids must have shape ({', '.join(map(str, logits.shape[:-1]))}, n), not {tuple(ids.shape)}")
    known = (ids >= 0) & (ids < logits.shape[-1])
    ids = torch.where(known, ids, 0).long()
    return torch.where(known, _probability(logits.gather(-1, ids), law, ids), 0)


def statistics(logits):
    """Of every row the greatest logit, the log-sum-exp, the first id of the greatest (int64), and the entropy in nats; float32."""
    _check(logits)
    greatest, total, first, entropy = (number.view(logits.shape[:-1]) for number in row_stats(_rows(logits), None))
    return greatest, greatest + total.log(), first, entropy


def _probability(logits, law, ids):
    T, greatest, cut, last, total = (number[..., None] for number in law)
    logits = logits.float()
    kept = (logits > cut) | ((logits == cut) & (ids <= last))
    return torch.where(kept, ((logits - greatest) / T).exp(), 0) / total


def _rows(logits):
    return logits if logits.ndim == 3 else logits[:, None]  # (B, rows, V)


def _setting(logits, name, setting, low, high, off):
    """One value per row `(B, rows)`, or None where a number says off."""
    if not isinstance(setting, torch.Tensor):
        if not low <= setting <= high or setting == torch.inf and name == "T":
            raise ValueError(f"{name} must lie in [{low}, {high}{')' if name == 'T' else ']'}, not {setting}")
        if setting == off or name == "mass" and setting > off:
            return None
        setting = torch.full(logits.shape[:-1], setting, dtype=torch.int64 if name == "k" else torch.float32, device=logits.device)
    if setting.shape != logits.shape[:-1]:
        raise ValueError(f"{name} must be a number or have one value per row, shape {tuple(logits.shape[:-1])}, not {tuple(setting.shape)}")
    if setting.device != logits.device:
        raise ValueError(f"{name} must be on the device of logits, {logits.device}, not on {setting.device}")
    return _rows(setting.to(torch.int64 if name == "k" else torch.float32)[..., None])[..., 0]


def _check(logits, law=None):
    if not isinstance(logits, torch.Tensor) or logits.ndim not in (2, 3):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"logits must be a tensor of shape (B, V) or (B, rows, V), not {given}")
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, logits=logits)
    V = logits.shape[-1]
    if not 0 < V <= 2**24:
        raise ValueError(f"logits must have a V of 1 … 2^24 (counts are exact in float32), not {V}")
    checks.contiguous(logits=logits)
    for number in law or ():
        if number.shape != logits.shape[:-1]:
            raise ValueError(f"law must hold one number per row, shape {tuple(logits.shape[:-1])}, not {tuple(number.shape)}")
