"""Round to nearest: groups of weights or activations to codes and back, and the products that read the codes. The definition, with every
grid, is `twofold.spec.quantization.round_to_nearest`.

Codes are uint8, int8 for `absmax`. Scales and zeros share one dtype, float32, float16 or bfloat16, and codes are those of the scale and
zero as stored; a scale that its dtype would lose becomes its smallest normal or largest finite number. Arithmetic is float32.

`matmul` takes the codes `(N, K)` or, with `packed=True`, each row's stream of 32-bit words from `bit_packing.pack`,
`(N, ceil(K bits / 32))`; `absmax` codes are packed as `codes + 2^(bits - 1)`, read with grid `full` and that zero. It is differentiable in
`x`; the weight is frozen, and nothing else here has a gradient.

A group that holds a NaN or an infinity gets the scale NaN and codes 0, so the damage shows in that group and nowhere else. One scale per
tensor: `weight.reshape(1, -1)` with group_size None, then `scale.expand(N, 1)`.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import int8_matmul, low_bit_matmul, quantize_groups

__all__ = ["parameters", "quantize", "dequantize", "encode", "matmul", "matmul_int8", "convert"]

GRIDS = ("absmax", "full", "zero_point", "min", "float_zero", "centred")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def parameters(
    weight: torch.Tensor, bits: int, group_size: int | None, grid: str, *, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the zero of every group, `(N, ceil(K / group_size))` each, as stored in `dtype`."""
    size = _check_weight(weight, bits, group_size, grid, dtype)
    return quantize_groups.encode(weight, bits, size, grid, dtype, want_codes=False)[1:]


def encode(
    weight: torch.Tensor, bits: int, group_size: int | None, grid: str, *, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`parameters` and `quantize` in one pass over memory: codes, scale, zero."""
    size = _check_weight(weight, bits, group_size, grid, dtype)
    return quantize_groups.encode(weight, bits, size, grid, dtype, want_codes=True)


def quantize(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group_size: int | None, grid: str) -> torch.Tensor:
    """The codes `(N, K)` under given parameters."""
    size = _check_weight(weight, bits, group_size, grid, scale.dtype)
    _check_parameters(scale, zero, weight.shape[0], weight.shape[1], size)
    checks.same_device(weight=weight, scale=scale)
    return quantize_groups.quantize(weight, scale, zero, bits, size, grid)


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group_size: int | None, grid: str,
    *, dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    """The values `(N, K)` that the codes stand for, computed in float32 and rounded once to `dtype`."""
    size = _check_options(bits, group_size, grid, codes.shape[-1])
    _check_codes(codes, "codes", grid)
    _check_parameters(scale, zero, codes.shape[0], codes.shape[1], size)
    _check_dtype(dtype)
    return quantize_groups.dequantize(codes, scale, zero, bits, size, grid, dtype)


def matmul(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group_size: int | None, grid: str,
    *, packed: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`x (T, K)` times the transposed dequantized weight, `(T, N)` in the dtype of `x`."""
    checks.shape(x=(x, "T K"), codes=(codes, "N W"))
    checks.dtypes(*FLOATS, x=x)
    size = _check_options(bits, group_size, grid, x.shape[1])
    if packed and grid == "absmax":
        raise ValueError("packed codes have no sign: pack codes + 2**(bits - 1) and use grid 'full' with that zero")
    width = (x.shape[1] * bits + 31) // 32 if packed else x.shape[1]
    if codes.shape[1] != width:
        raise ValueError(f"codes must have shape (N, {width}) for x of {x.shape[1]} columns and packed={packed}, not {tuple(codes.shape)}")
    if packed:
        checks.dtypes(torch.int32, codes=codes)
    else:
        _check_codes(codes, "codes", grid)
    checks.contiguous(x=x, codes=codes)
    _check_parameters(scale, zero, codes.shape[0], x.shape[1], size)
    checks.same_device(x=x, codes=codes, scale=scale)
    return low_bit_matmul.low_bit(x, codes, scale, zero, bits, size, grid, packed)


def matmul_int8(
    x_codes: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None,
    *, dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    """Both operands as int8 `absmax` codes: their exact product, times `x_scale (T, 1) * scale (N, 1)`, plus `bias (N,)`, cast once."""
    checks.shape(x_codes=(x_codes, "T K"), x_scale=(x_scale, "T 1"), codes=(codes, "N K"), scale=(scale, "N 1"))
    checks.dtypes(torch.int8, x_codes=x_codes, codes=codes)
    checks.dtypes(*FLOATS, x_scale=x_scale, scale=scale, bias=bias)
    _check_dtype(dtype)
    if bias is not None:
        checks.shape(codes=(codes, "N K"), bias=(bias, "N"))
    if (columns := x_codes.shape[1]) > int8_matmul.MOST_COLUMNS:
        raise ValueError(f"x_codes must have at most {int8_matmul.MOST_COLUMNS} columns, or the int32 sum may overflow, not {columns}")
    checks.contiguous(x_codes=x_codes, codes=codes, bias=bias)
    checks.same_device(x_codes=x_codes, x_scale=x_scale, codes=codes, scale=scale, bias=bias)
    return int8_matmul.int8(x_codes, x_scale, codes, scale, bias, dtype)


def convert(scale: torch.Tensor, zero: torch.Tensor, bits: int, grid_from: str, grid_to: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same values from the same codes, told in another grid; to `min`, `float_zero` or `centred`, from any but `absmax`."""
    for name, grid in (("grid_from", grid_from), ("grid_to", grid_to)):
        if grid not in GRIDS:
            raise ValueError(f"{name} must be one of {', '.join(GRIDS)}, not {grid!r}")
    if "absmax" in (grid_from, grid_to) or (grid_from != grid_to and grid_to in ("full", "zero_point")):
        raise ValueError(f"no zero of {grid_to!r} tells every offset of {grid_from!r}")
    if grid_from == grid_to:
        return scale, zero
    s, z, half = scale.float(), zero.float(), 2 ** (bits - 1)
    offset = z if grid_from == "min" else z - half * s if grid_from == "centred" else -z * s  # the value of code 0
    told = offset if grid_to == "min" else offset + half * s if grid_to == "centred" else -offset / s
    return scale, told.to(zero.dtype)


def _check_options(bits: int, group_size: int | None, grid: str, columns: int) -> int:
    """The group size as a number, at most a row."""
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {', '.join(GRIDS)}, not {grid!r}")
    if not (2 if grid == "absmax" else 1) <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8 (absmax: from 2), not {bits}")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1, or None for one group per row, not {group_size}")
    return max(columns if group_size is None else min(group_size, columns), 1)


def _check_weight(weight, bits, group_size, grid, dtype):
    checks.shape(weight=(weight, "N K"))
    checks.dtypes(*FLOATS, weight=weight)
    checks.contiguous(weight=weight)
    _check_dtype(dtype)
    return _check_options(bits, group_size, grid, weight.shape[1])


def _check_codes(codes, name, grid):
    checks.shape(**{name: (codes, "N K")})
    checks.dtypes(torch.int8 if grid == "absmax" else torch.uint8, **{name: codes})
    checks.contiguous(**{name: codes})


def _check_parameters(scale, zero, rows, columns, size):
    checks.shape(scale=(scale, "N G"), zero=(zero, "N G"))
    groups = (columns + size - 1) // size
    for name, tensor in (("scale", scale), ("zero", zero)):
        if tuple(tensor.shape) != (rows, groups):  # numbers, which a compiler may keep symbolic
            raise ValueError(f"{name} must have shape ({rows}, {groups}), one number per row and group, not {tuple(tensor.shape)}")
    checks.dtypes(*FLOATS, scale=scale)
    checks.same(scale=scale, zero=zero)


def _check_dtype(dtype):
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
