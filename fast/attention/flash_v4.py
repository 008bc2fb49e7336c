"""The numerics of FlashAttention-4 on tensors (B, T, H, D): late rescaling, and exponentials from multiplications. See
`twofold.spec.attention.flash_v4`.

Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at position i + Tk - Tq. A row that sees
no key has output 0 and log-sum-exp -inf. Nothing here has a gradient; `flash.backward` takes what `lazy_rescale` returns.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import window_bounds
from twofold.fast.attention.flash import _options
from twofold.fast.kernels import lazy_attention

__all__ = ["lazy_rescale", "exp2"]


def lazy_rescale(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tau: float = 8,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    emulate: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32.

    `tau` is how many powers of two a row's maximum may run ahead of its reference: from 0 to 64, for float16 to 15, or weights would
    overflow. With `emulate` = n the first 128 of every 128 n keys have polynomials for exponentials; None: none have.
    """
    left, right = window_bounds(causal, window)
    scale = _options(q, k, v, scale, None, None)
    limit = 15 if q.dtype == torch.float16 else 64
    if not 0 <= tau <= limit:
        raise ValueError(f"tau must lie between 0 and {limit} for {q.dtype}, not be {tau}")
    if emulate is not None and emulate < 1:
        raise ValueError(f"emulate must be at least 1, or None for no emulation, not {emulate}")
    return lazy_attention.forward(q, k, v, left, right, scale, float(tau), emulate or 0)


def exp2(x: Tensor, *, degree: int = 3) -> Tensor:
    """2^x of float32 numbers up to 127, of any shape; NaN and numbers above 127 have no meaning here."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, not {type(x).__name__}")
    checks.dtypes(torch.float32, x=x)
    if degree not in lazy_attention.POLYNOMIALS:
        raise ValueError(f"degree must be from 1 to 5, not {degree}")
    return lazy_attention.exp2(x, degree)
