"""Minifloats of 16 bits and fewer on tensors of any shape and strides. The definition is `twofold.spec.number_formats.minifloat`.

Codes are uint16 for `fp16` and `bf16`, uint8 for the others, which leave the upper bits of a byte 0; numbers come back in float32, which
holds every one of them. Input may be float64, float32, float16 or bfloat16 and is rounded once, from what it is.

Encoding is integer arithmetic on the bits of the input: neither a device's handling of subnormal numbers, nor its own casts, whose overflow
depends on hardware and version, have a say. NaN in a format that has none is an error on the CPU; on a GPU, where looking would stall the
stream, and under `torch.compile` its code is that of 0 with its sign. Nothing here has a gradient.
"""

from typing import NamedTuple

import torch

from twofold.fast import checks

__all__ = ["decode", "encode", "round", "table"]


class Format(NamedTuple):
    """Bits of exponent and mantissa, the bias, and three codes without sign: the largest finite one, infinity, NaN."""

    exponent: int
    mantissa: int
    bias: int
    largest: int
    infinity: int | None = None
    nan: int | None = None


FORMATS = {
    "fp16": Format(5, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
    "bf16": Format(8, 7, 127, 0x7F7F, 0x7F80, 0x7FC0),
    "e5m2": Format(5, 2, 15, 0x7B, 0x7C, 0x7E),
    "e4m3fn": Format(4, 3, 7, 0x7E, None, 0x7F),
    "e3m2": Format(3, 2, 3, 0x1F),
    "e2m3": Format(2, 3, 1, 0x1F),
    "e2m1": Format(2, 1, 1, 0x7),
}
NATIVE = {"fp16": torch.float16, "bf16": torch.bfloat16, "e5m2": torch.float8_e5m2, "e4m3fn": torch.float8_e4m3fn}


def decode(code: torch.Tensor, fmt: str) -> torch.Tensor:
    """The numbers that codes stand for, in float32. A code too large for a format of 4 or 6 bits is read without its upper bits."""
    f, dtype = _format(fmt), code_dtype(fmt)
    checks.dtypes(dtype, code=code)
    if fmt in NATIVE:
        return code.view(NATIVE[fmt]).float()
    bits = code.int()
    e, m = bits >> f.mantissa & (1 << f.exponent) - 1, bits & (1 << f.mantissa) - 1
    steps = torch.where(e > 0, (1 << f.mantissa) + m << (e - 1).clamp(min=0), m)  # every number is a multiple of the smallest
    value = steps * 2.0 ** (1 - f.bias - f.mantissa)
    return torch.where(bits >> f.exponent + f.mantissa & 1 > 0, -value, value)


def encode(x: torch.Tensor, fmt: str, overflow: str = "saturate") -> torch.Tensor:
    """The codes of the nearest numbers; of two that are equally near, the even code."""
    f = _format(fmt)
    checks.dtypes(torch.float32, torch.float16, torch.bfloat16, torch.float64, x=x)
    if overflow not in ("saturate", "special"):
        raise ValueError(f"overflow must be 'saturate' or 'special', not {overflow!r}")
    if overflow == "special" and f.nan is None:
        raise ValueError(f"overflow must be 'saturate' for {fmt}, which has no special codes")
    if f.nan is None and x.device.type == "cpu" and not torch.compiler.is_compiling() and bool(x.isnan().any()):
        raise ValueError(f"x must not hold NaN, which {fmt} does not have")
    integer, mantissa, bias = (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
    bits = (x if x.dtype == torch.float64 else x.float()).view(integer)
    magnitude = bits & torch.iinfo(integer).max
    field = magnitude >> mantissa
    exponent = field.clamp(min=1) - bias  # that of a subnormal number's step is the smallest normal one's
    significand = torch.where(field > 0, 1 << mantissa, 0) + (magnitude & (1 << mantissa) - 1)
    binade = exponent.clamp(min=1 - f.bias)
    shift = (mantissa - f.mantissa + binade - exponent).clamp(max=mantissa + 2)  # further down all is below half a step
    odd = significand >> shift & 1
    steps = significand + (1 << shift - 1) - 1 + odd >> shift  # half to even
    code = steps + (binade + f.bias - 1 << f.mantissa)
    beyond = f.largest if overflow == "saturate" else f.infinity or f.nan or f.largest
    code = torch.where(code > f.largest, beyond, code)
    code = torch.where(x.isnan(), f.nan or 0, code)
    return (code + torch.where(bits < 0, 1 << f.exponent + f.mantissa, 0)).to(code_dtype(fmt))


def round(x: torch.Tensor, fmt: str, overflow: str = "saturate") -> torch.Tensor:
    """The nearest numbers themselves, in float32 whatever the dtype of `x`."""
    return decode(encode(x, fmt, overflow), fmt)


def table(fmt: str, *, device: torch.device | str | None = None) -> torch.Tensor:
    """What each code stands for, in float32, in the order of the codes."""
    f = _format(fmt)
    return decode(torch.arange(2 << f.exponent + f.mantissa, device=device).to(code_dtype(fmt)), fmt)


def code_dtype(fmt: str) -> torch.dtype:
    """The dtype that holds the codes of a format."""
    return torch.uint16 if fmt in ("fp16", "bf16") else torch.uint8


def _format(fmt: str) -> Format:
    if fmt not in FORMATS:
        raise ValueError(f"fmt must be one of {', '.join(FORMATS)}, not {fmt!r}")
    return FORMATS[fmt]
