"""Draft lengths by SpecDec++ for a batch: one running product, no loop, nothing read back from the device."""

import torch

from twofold.fast import checks

__all__ = ["stop"]


def stop(confidences, h):
    """The draft's length `(B,)`, int64, ready to be a verifier's `lengths`.

    confidences `(B, n)`, float32, bfloat16 or float16, multiplied in float32; the last column is not read, so a loop that asks whether to
    draft one more token appends anything. `h` is a number or a tensor `(B,)`. A confidence that is a NaN ends the draft.
    """
    checks.shape(confidences=(confidences, "B n"))
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, confidences=confidences)
    if isinstance(h, torch.Tensor):
        checks.shape(confidences=(confidences, "B n"), h=(h, "B"))
        if h.device != confidences.device:
            raise ValueError(f"h must be on the device of confidences, {confidences.device}, not on {h.device}")
        h = h.float()[:, None]
    elif not 0 <= h <= 1:
        raise ValueError(f"h must lie in [0, 1], not {h}")
    if confidences.shape[1] == 0:
        return torch.zeros(len(confidences), dtype=torch.int64, device=confidences.device)
    all_kept = confidences[:, :-1].float().cumprod(1)  # (B, n - 1)
    return 1 + (1 - all_kept <= h).sum(1)  # a product of numbers in [0, 1] does not grow: once it says stop, it goes on saying so
