"""A decay that is the same for every token of a head, as recurrences with one decay per token take it."""

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["constant"]


def constant(v: Tensor, rate: Tensor, name: str) -> Tensor:
    """log rate `(B, T, H)` for values v `(B, T, H, V)` and rates `(H,)` in [0, 1], none of it copied."""
    sizes = checks.shape(v=(v, "B T H V"), **{name: (rate, "H")})
    checks.same_device(v=v, **{name: rate})
    if not rate.is_cuda and not bool(((rate >= 0) & (rate <= 1)).all()):
        raise ValueError(f"{name} must lie between 0 and 1, not be {rate.tolist()}")
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    return rate.to(wide).log().expand(sizes["B"], sizes["T"], -1)
