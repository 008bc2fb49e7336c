"""Entropy-based draft stopping on a batch: every row is read once, by the kernel that finds likeliest tokens and entropies."""

import torch

from twofold.fast import checks
from twofold.fast.kernels.likeliest import likeliest

__all__ = ["stop", "bound"]


def stop(q, c, threshold):
    """Whether the draft ends before each position `(B, n)`; `threshold` is a number or a tensor `(B,)`. A row with a NaN ends it."""
    if isinstance(threshold, torch.Tensor):
        checks.shape(q=(q, "B n V"), threshold=(threshold, "B"))
        threshold = threshold.float()[:, None]
    return ~(bound(q, c) >= threshold)


def bound(q, c):
    """The estimated chance `(B, n)`, float32, that a token drawn from each row of q `(B, n, V)` is kept."""
    checks.shape(q=(q, "B n V"))
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, q=q)
    if not c >= 0:
        raise ValueError(f"c must be at least 0, not {c}")
    if q.shape[-1] == 0 or (q.shape[-1] > 1 and q.numel() and q.stride(-1) != 1):
        raise ValueError(f"q must hold a token at least and be contiguous along V, not of shape {tuple(q.shape)}, strides {q.stride()}")
    entropy = likeliest(q, None, True)[1]
    return 1 - (c * entropy.clamp(min=0)).sqrt()  # of a certain row, rounding may leave a little less than 0
