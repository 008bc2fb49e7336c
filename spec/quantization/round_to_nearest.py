r"""Round to nearest: a weight becomes a small integer code, one scale and one zero per group, and nothing else is known.

Paper: none of its own; the baseline of Dettmers et al., "LLM.int8()", 2022, arXiv:2208.07339, Sec. 2.1 (`absmax`, `zero_point`), and of
Frantar et al., "GPTQ", 2022, arXiv:2210.17323, Sec. 4. `float_zero` is the grid of HQQ, `centred` that of the tinygemm kernels.

A group is `group_size` neighbors along $K$; the last one may be shorter, and None makes the row one group. With $R = 2^b - 1$,
$m$ and $M$ the group's least and greatest value, $c = \max|w|$, and $\lfloor\cdot\rceil$ rounding half to even:

| grid | scale $s$ | zero $z$ | code $q$, clipped to | value $\hat w$ |
|---|---|---|---|---|
| `absmax` | $c/(2^{b-1}-1)$ | 0 | $\lfloor w/s\rceil$ in $\pm(2^{b-1}-1)$ | $sq$ |
| `full` | $2c/R$ | $2^{b-1}$ | $\lfloor w/s\rceil + z$ in $[0, R]$ | $(q-z)s$ |
| `zero_point` | $(M'-m')/R$ | $\lfloor -m'/s\rceil$ | $\lfloor w/s\rceil + z$ in $[0, R]$ | $(q-z)s$ |
| `min` | $(M-m)/R$ | $m$ | $\lfloor (w-m)/s\rceil$ in $[0, R]$ | $qs+z$ |
| `float_zero` | $(M-m)/R$ | $-m/s$ | $\lfloor w/s + z\rceil$ in $[0, R]$ | $(q-z)s$ |
| `centred` | $(M-m)/R$ | $m + 2^{b-1}s$ | as `min` | $(q-2^{b-1})s+z$ |

where $m' = \min(0, m)$ and $M' = \max(0, M)$ keep 0 on the grid; both 0 become -1 and 1. Elsewhere a scale of 0 (an all-zero group, for
the last three a constant one) becomes 1. So all-zero groups dequantize to 0 on every grid, constant ones to themselves on the last three.

| name | symbol | shape |
|---|---|---|
| `weight`, `codes` | $w$, $q$ | `(N, K)`; `x` is `(T, K)`, and $y = x\hat W^\top$ |
| `scale`, `zero` | $s$, $z$ | `(N, ceil(K / group_size))` |

Deviations: `full` follows released GPTQ checkpoints with a fixed zero: +c becomes (1 - 1/R) c and -c becomes -(1 + 1/R) c. Who stores
scales in 16 bits stores them first, and codes with what was stored. One scale per tensor is `weight.reshape(1, -1)` with None.
"""

import numpy as np

__all__ = ["parameters", "quantize", "dequantize", "encode", "matmul", "matmul_int8", "convert"]


def parameters(weight, bits, group_size, grid):
    """The scale and the zero of every group, `(N, ceil(K / group_size))` each. NaN or infinity is an error.

    >>> [x.tolist() for x in parameters(np.array([[0.0, 1.5, 3.0, -2.0, 2.5]]), 2, 3, "zero_point")]    # a short last group
    [[[1.0, 1.5]], [[0.0, 1.0]]]
    """
    _check(bits, group_size, grid)
    if not np.all(np.isfinite(weight)):
        raise ValueError("weight must be finite")
    starts = range(0, weight.shape[1], group_size or max(weight.shape[1], 1))
    fitted = [_fit(weight[:, start : start + (group_size or weight.shape[1])], bits, grid) for start in starts]
    return tuple(np.stack([pair[i] for pair in fitted], 1) if fitted else np.ones((len(weight), 0)) for i in (0, 1))


def _fit(group, bits, grid):
    top, half, low, high = 2**bits - 1, 2 ** (bits - 1), group.min(1), group.max(1)
    if grid == "zero_point":
        low, high = np.minimum(low, 0), np.maximum(high, 0)                              # 0 gets a code of its own
        low, high = np.where(low == high, -1, low), np.where(low == high, 1, high)
    largest = np.maximum(-low, high)
    scale = largest / (half - 1) if grid == "absmax" else (2 * largest if grid == "full" else high - low) / top
    scale = np.where(scale == 0, 1, scale)
    zeros = {"absmax": 0 * scale, "full": 0 * scale + half, "zero_point": np.rint((0 - low) / scale)}
    return scale, (zeros | {"min": low, "float_zero": (0 - low) / scale, "centred": low + half * scale})[grid]


def quantize(weight, scale, zero, bits, group_size, grid):
    """The codes `(N, K)` under given parameters, fitted or searched: signed for `absmax`, from 0 to 2^bits - 1 elsewhere.

    >>> quantize(np.array([[0.5, 1.5, 2.5, -9.0]]), np.array([[1.0]]), np.array([[0.0]]), 4, None, "absmax").tolist()    # ties to even
    [[0, 2, 2, -7]]
    """
    _check(bits, group_size, grid)
    s, z = _per_column(scale, zero, group_size, weight.shape[1])
    half = 2 ** (bits - 1)
    if grid == "absmax":
        return np.clip(np.rint(weight / s), 1 - half, half - 1).astype(int)
    real = weight / s + z if grid == "float_zero" else (weight - z) / s + (half if grid == "centred" else 0)
    code = np.rint(weight / s) + z if grid in ("full", "zero_point") else np.rint(real)
    return np.clip(code, 0, 2**bits - 1).astype(int)


def dequantize(codes, scale, zero, bits, group_size, grid):
    """The values `(N, K)` that the codes stand for."""
    _check(bits, group_size, grid)
    s, z = _per_column(scale, zero, group_size, codes.shape[1])
    if grid in ("min", "centred"):
        return (codes - (2 ** (bits - 1) if grid == "centred" else 0)) * s + z
    return codes * s if grid == "absmax" else (codes - z) * s


def encode(weight, bits, group_size, grid):
    """`parameters`, then `quantize` with them: codes, scale, zero. For activations: 8 bits, one group per token, `absmax`."""
    scale, zero = parameters(weight, bits, group_size, grid)
    return quantize(weight, scale, zero, bits, group_size, grid), scale, zero


def matmul(x, codes, scale, zero, bits, group_size, grid):
    """The product with the dequantized weight, `(T, N)`: low-bit weights, full-precision activations."""
    return x @ dequantize(codes, scale, zero, bits, group_size, grid).T


def matmul_int8(x_codes, x_scale, codes, scale, bias=None):
    """Both operands as `absmax` codes, one scale per token `(T, 1)` and per channel `(N, 1)`: an exact integer product, scaled after."""
    total = np.asarray(x_codes, np.int64) @ np.asarray(codes, np.int64).T                # (T, N), never rounded
    return total * (x_scale * scale.T) + (0 if bias is None else bias)


def convert(scale, zero, bits, grid_from, grid_to):
    """The same values from the same codes, told in another grid: a real zero can tell the offset of every unsigned grid."""
    if "absmax" in (grid_from, grid_to) or (grid_from != grid_to and grid_to in ("full", "zero_point")):
        raise ValueError(f"no zero of {grid_to!r} tells every offset of {grid_from!r}")
    middle = 2 ** (bits - 1) * scale
    offset = {"min": zero, "centred": zero - middle}.get(grid_from, -zero * scale)       # the value of code 0
    return scale, zero if grid_from == grid_to else {"min": offset, "centred": offset + middle, "float_zero": -offset / scale}[grid_to]


def _per_column(scale, zero, group_size, columns):
    return (np.repeat(values, group_size or max(columns, 1), axis=1)[:, :columns] for values in (scale, zero))


def _check(bits, group_size, grid):
    if grid not in ("absmax", "full", "zero_point", "min", "float_zero", "centred"):
        raise ValueError(f"unknown grid {grid!r}")
    if not (2 if grid == "absmax" else 1) <= bits <= 8 or (group_size is not None and group_size < 1):
        raise ValueError(f"bits must be from 1 to 8 (absmax: from 2), group_size at least 1 or None, not {bits}, {group_size}")
