"""E8M0 scales on tensors of any shape and strides. The definition, with every mode, is `twofold.spec.number_formats.e8m0`.

Codes are uint8. Both directions are integer arithmetic on bits: no logarithm that is off by one at a power of two, and no subnormal number
is lost, though 2^-127, the smallest scale, is one in float32. Nothing here has a gradient.
"""

import torch

from twofold.fast import checks
from twofold.fast.number_formats import minifloat

__all__ = ["decode", "block_scale"]

MODES = ("floor", "even", "rceil", "ceil")


def decode(code: torch.Tensor) -> torch.Tensor:
    """The powers of two that codes stand for, in float32."""
    checks.dtypes(torch.uint8, code=code)
    bits = code.int() << 23
    bits = torch.where(code == 0, 1 << 22, bits)
    return torch.where(code == 255, 0x7FC00000, bits).view(torch.float32)


def block_scale(amax: torch.Tensor, fmt: str, mode: str = "floor") -> torch.Tensor:
    """The codes of the scales of blocks whose largest absolute values are these, of any floating-point dtype, used as it is."""
    mantissa, exponent, significand = element(fmt)
    checks.dtypes(torch.float32, torch.float16, torch.bfloat16, torch.float64, amax=amax)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    bits = amax.double().view(torch.int64) & torch.iinfo(torch.int64).max  # every dtype's subnormal numbers are normal here
    field, fraction = bits >> 52, bits & (1 << 52) - 1
    least = {"floor": 1 << 52, "even": (1 << 52) - (1 << 51 - mantissa), "rceil": significand + 1, "ceil": 1}[mode]
    code = (field - 1023 - exponent + (fraction >= least)).clamp(-127, 127) + 127
    return torch.where(field == 2047, 255, code).to(torch.uint8)


def element(fmt: str) -> tuple[int, int, int]:
    """Bits of mantissa, exponent of the largest number, and its fraction in units of 2^-52."""
    if fmt == "int8":  # 127/64 = 1 + 63/64
        return 6, 0, 63 << 46
    if fmt not in ("e5m2", "e4m3fn", "e3m2", "e2m3", "e2m1"):
        raise ValueError(f"fmt must be e5m2, e4m3fn, e3m2, e2m3, e2m1 or int8, not {fmt!r}")
    f = minifloat.FORMATS[fmt]
    return f.mantissa, (f.largest >> f.mantissa) - f.bias, (f.largest & (1 << f.mantissa) - 1) << 52 - f.mantissa
