r"""E8M0: a power of two in a byte, and the one that a block of small floats is scaled by.

Paper: Open Compute Project, "Microscaling Formats (MX) Specification 1.0", 2023, Sec. 5.4 (format) and 6.3 (`floor`); Rouhani et al.,
"Microscaling Data Formats for Deep Learning", 2023, arXiv:2310.10537, Alg. 1. The other modes are those of released code (torchao,
NVIDIA's cuBLAS and Triton kernels for `rceil`); section numbers are from memory.

$$\mathrm{value} = 2^{\mathrm{code}-127}, \qquad 255 \text{ is NaN, and there is neither a zero nor a sign.}$$

The largest absolute value of a block is $a = s\,2^t$ with $1 \le s < 2$, the element's largest number $V = \sigma\,2^{e_{\max}}$ likewise.
The scale $2^e$ brings $a$ into the binade of $V$, or one below. The modes differ in which significands are too much for that binade:

$$e = t - e_{\max} + [s \text{ is too much}]$$

| mode | too much | so that | $a / 2^e$ goes up to |
|---|---|---|---|
| `floor` | never | $e = \lfloor \log_2 a \rfloor - e_{\max}$ | $2 \cdot 2^{e_{\max}}$, saturates |
| `even` | $s \ge 2 - 2^{-M-1}$ | $a$, rounded to $M$ bits, stays below the next binade | $(2 - 2^{-M-1})\, 2^{e_{\max}}$, saturates |
| `rceil` | $s > \sigma$ | $e$ is the smallest with $a \le V 2^e$ | $V$ |
| `ceil` | $s > 1$ | $e = \lceil \log_2 a \rceil - e_{\max}$ | $2^{e_{\max}}$ |

The exponent is clipped to $\pm 127$; all-zero blocks have code 0, blocks with infinity or NaN have 255.

| name | symbol | shape | meaning |
|---|---|---|---|
| `code` | | any | integers from 0 to 255 |
| `amax` | $a$ | any | largest absolute values; their sign does not count |
| `fmt` | $M$, $V$ | | element: `e5m2`, `e4m3fn`, `e3m2`, `e2m3`, `e2m1`, or `int8` with $M = 6$, $V = 127/64$ |

Deviations: the paper's algorithm leaves blocks of zeros and of special values open; they are fixed above.
"""

import numpy as np

from twofold.spec.number_formats import minifloat

__all__ = ["decode", "block_scale"]


def decode(code):
    """The powers of two that codes stand for.

    >>> decode(np.array([126, 127, 130, 255])).tolist()
    [0.5, 1.0, 8.0, nan]
    """
    code = np.asarray(code)
    if np.any((code < 0) | (code > 255)):
        raise ValueError("codes must lie from 0 to 255")
    return np.where(code == 255, np.nan, np.ldexp(1.0, np.minimum(code.astype(int), 254) - 127))


def block_scale(amax, fmt, mode="floor"):
    """The codes of the scales of blocks whose largest absolute values are these.

    >>> [block_scale(np.array([6.0, 7.0, 8.0]), "e2m1", mode).tolist() for mode in ("floor", "even", "rceil", "ceil")]
    [[127, 127, 128], [127, 128, 128], [127, 128, 128], [128, 128, 128]]
    >>> block_scale(np.array([0.0, 1e-300, 1e300, np.inf, np.nan]), "e2m1").tolist()
    [0, 0, 254, 255, 255]
    """
    (mantissa, largest), amax = _element(fmt), np.abs(np.asarray(amax, np.float64))
    exponent = np.frexp(largest)[1] - 1
    half, t = np.frexp(np.where(np.isfinite(amax) & (amax > 0), amax, 1))
    s, t = 2 * half, t - 1  # 1 <= s < 2
    limits = {"floor": False, "even": s >= 2 - 2.0 ** (-mantissa - 1), "rceil": s > largest / 2.0**exponent, "ceil": s > 1}
    if mode not in limits:
        raise ValueError(f"unknown mode {mode!r}")
    code = np.clip(t - exponent + limits[mode], -127, 127) + 127
    return np.where(np.isfinite(amax), np.where(amax > 0, code, 0), 255)


def _element(fmt):
    """Bits of mantissa, and the largest number."""
    if fmt == "int8":
        return 6, 127 / 64
    if fmt not in ("e5m2", "e4m3fn", "e3m2", "e2m3", "e2m1"):
        raise ValueError(f"unknown element {fmt!r}")
    return minifloat.FORMATS[fmt].mantissa, float(minifloat.decode(minifloat.FORMATS[fmt].largest, fmt))
