r"""Minifloats: floating point of 16 bits and fewer, told by five numbers each.

Paper: IEEE 754-2019, Sec. 3 (fp16); Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv:2209.05433, and the OCP 8-bit
Floating Point Specification 1.0 (e5m2, e4m3fn); OCP Microscaling Formats 1.0, Sec. 5.3 (e3m2, e2m3, e2m1).

A code is a sign bit, $E$ bits of exponent $e$ and $M$ bits of mantissa $m$, from the top. Without the sign, codes up to the largest
finite one mean

$$\mathrm{value} = \begin{cases} m\, 2^{1-\mathrm{bias}-M} & e = 0 \\ (2^M + m)\, 2^{e-\mathrm{bias}-M} & e > 0 \end{cases}$$

and those above it infinity, in the formats that have one, or NaN. Values grow with codes, in steps of $2^{t-M}$ within a binade
$[2^t, 2^{t+1})$, and of $2^{1-\mathrm{bias}-M}$ below the smallest normal number. A real number is counted in the steps of its own binade,
rounded half to even. The count, added to the code at which the binade would begin if steps were counted from 0, is the code: a carry into
the next binade is right as it is.

| format | $E$, $M$, bias | largest | smallest normal | smallest | above the largest |
|---|---|---|---|---|---|
| `fp16` | 5, 10, 15 | 65504 | $2^{-14}$ | $2^{-24}$ | infinity, NaN |
| `bf16` | 8, 7, 127 | $(2-2^{-7})2^{127}$ | $2^{-126}$ | $2^{-133}$ | infinity, NaN |
| `e5m2` | 5, 2, 15 | 57344 | $2^{-14}$ | $2^{-16}$ | infinity, NaN |
| `e4m3fn` | 4, 3, 7 | 448 | $2^{-6}$ | $2^{-9}$ | NaN |
| `e3m2` | 3, 2, 3 | 28 | $2^{-2}$ | $2^{-4}$ | nothing |
| `e2m3` | 2, 3, 1 | 7.5 | 1 | $2^{-3}$ | nothing |
| `e2m1` | 2, 1, 1 | 6 | 1 | $2^{-1}$ | nothing |

| name | symbol | shape | meaning |
|---|---|---|---|
| `code` | | any | integers from 0 to $2^{1+E+M} - 1$ |
| `x` | | any | real numbers, rounded once from what they are; 64 bits are not rounded first |
| `overflow` | | | `saturate`: the largest number, for infinity too; `special`: infinity, or NaN where there is none |

Deviations: which NaN code comes out is free in the standards; here it is the quiet one with no further bits, 7E00, 7FC0, 7E or 7F, with
the sign of the input. Formats without NaN refuse it: the OCP leaves it open.
"""

from typing import NamedTuple

import numpy as np

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


def decode(code, fmt):
    """The numbers that codes stand for, exact in float64.

    >>> decode(np.array([0x01, 0x08, 0x38, 0x7E, 0x7F, 0xB8]), "e4m3fn").tolist()
    [0.001953125, 0.015625, 1.0, 448.0, nan, -1.0]
    """
    f, code = _format(fmt), np.asarray(code)
    sign = 1 << f.exponent + f.mantissa
    if np.any((code < 0) | (code >= 2 * sign)):
        raise ValueError(f"codes of {fmt} must lie from 0 to {2 * sign - 1}")
    code = code.astype(np.int64)
    negative, magnitude = code >= sign, code % sign
    e, m = magnitude >> f.mantissa, magnitude & (1 << f.mantissa) - 1
    value = np.ldexp(np.where(e > 0, (1 << f.mantissa) + m, m).astype(float), np.maximum(e, 1) - f.bias - f.mantissa)
    value = np.where(magnitude > f.largest, np.where(magnitude == f.infinity, np.inf, np.nan), value)
    return np.where(negative, -value, value)


def encode(x, fmt, overflow="saturate"):
    """The codes of the nearest numbers; of two that are equally near, the even code.

    >>> encode(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0]), "e2m1").tolist()      # all ties, but for the last
    [0, 2, 2, 4, 4, 6, 6, 7]
    >>> [hex(code) for code in encode(np.array([464.0, 464.5, -0.0]), "e4m3fn", "special")]
    ['0x7e', '0x7f', '0x80']
    """
    f, x = _format(fmt), np.asarray(x, np.float64)
    if overflow not in ("saturate", "special")[: 1 if f.nan is None else 2]:
        raise ValueError(f"overflow must be 'saturate' or, if {fmt} has special codes, 'special', not {overflow!r}")
    if f.nan is None and np.any(np.isnan(x)):
        raise ValueError(f"{fmt} has no NaN")
    beyond = f.largest if overflow == "saturate" else f.nan if f.infinity is None else f.infinity
    a = np.where(np.isfinite(x), np.abs(x), 0)
    t = np.where(a >= 2.0 ** (1 - f.bias), np.frexp(a)[1] - 1, 1 - f.bias)  # below the normal numbers steps stay the same
    code = np.rint(np.ldexp(a, f.mantissa - t)).astype(np.int64) + (t + f.bias - 1) * 2**f.mantissa
    code = np.where((code > f.largest) | np.isinf(x), beyond, code)
    code = np.where(np.isnan(x), f.nan or 0, code)
    return code + np.where(np.signbit(x), 1 << f.exponent + f.mantissa, 0)


def round(x, fmt, overflow="saturate"):
    """The nearest numbers themselves."""
    return decode(encode(x, fmt, overflow), fmt)


def table(fmt):
    """What each code stands for, in the order of the codes."""
    f = _format(fmt)
    return decode(np.arange(2 << f.exponent + f.mantissa), fmt)


def _format(fmt):
    if fmt not in FORMATS:
        raise ValueError(f"unknown format {fmt!r}")
    return FORMATS[fmt]
