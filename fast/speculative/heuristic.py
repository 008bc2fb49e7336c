"""The heuristic schedule of draft lengths for a batch: every request has a length of its own, and none is read back from the device."""

import torch

from twofold.fast import checks

__all__ = ["update"]


def update(gamma, kept, *, most=None):
    """The next lengths `(B,)`, in the dtype of `gamma` `(B,)`, from how many of each draft were kept `(B,)`; `most` caps them."""
    checks.shape(gamma=(gamma, "B"), kept=(kept, "B"))
    checks.dtypes(torch.int64, torch.int32, gamma=gamma, kept=kept)
    if kept.device != gamma.device:
        raise ValueError(f"kept must be on the device of gamma, {gamma.device}, not on {kept.device}")
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, not {most}")
    return torch.where(kept == gamma, gamma + 2, gamma - 1).clamp(min=1, max=most)
