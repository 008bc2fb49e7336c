"""Quantization of groups along the last axis: parameters, codes, and values back, for every grid of round to nearest.

One program owns BLOCK_P (row, group) pairs and walks their groups BLOCK_G elements at a time. Statistics are float32, over masked lanes
that hold the neutral element. The codes are those of the scale and zero as stored. Matrices from memory are read once from there: the
second walk, which writes the codes, finds a group of up to BLOCK_G elements in the cache.

A NaN or an infinity makes the scale of its own group NaN and that group's codes 0; no other group sees it.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["SIGNED", "encode", "quantize", "dequantize", "values_of", "variants"]

SIGNED = "absmax"  # the one grid whose codes have a sign
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no bits behind the point, so float32 rounds half to even


def encode(weight: torch.Tensor, bits: int, size: int, grid: str, dtype: torch.dtype, want_codes: bool):
    """Codes `(N, K)` (nothing in them unless wanted), scale and zero `(N, ceil(K / size))` in `dtype`, of a matrix `(N, K)`."""
    return _encode(weight, bits, size, grid, dtype, want_codes)


def quantize(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, size: int, grid: str) -> torch.Tensor:
    """Codes `(N, K)` under given parameters."""
    return _quantize(weight, scale, zero, bits, size, grid)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, size: int, grid: str, dtype: torch.dtype):
    """Values `(N, K)`, computed in float32 and rounded once to `dtype`."""
    return _dequantize(codes, scale, zero, bits, size, grid, dtype)


@torch.library.custom_op("twofold::quantize_groups_encode", mutates_args=())
def _encode(
    weight: torch.Tensor, bits: int, size: int, grid: str, dtype: torch.dtype, want_codes: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes, scale, zero = _encode_empty(weight, bits, size, grid, dtype, want_codes)
    if not backend.triton(weight):
        scale, zero = _parameters_torch(weight, bits, size, grid, dtype)
        return (_quantize_torch(weight, scale, zero, bits, size, grid) if want_codes else codes), scale, zero
    _launch(weight, codes, scale, zero, bits, size, grid, fit=True, want_codes=want_codes)
    return codes, scale, zero


@_encode.register_fake
def _encode_empty(weight, bits, size, grid, dtype, want_codes):
    rows, columns = weight.shape
    code = torch.int8 if grid == SIGNED else torch.uint8
    groups = (columns + size - 1) // size
    return (
        weight.new_empty((rows, columns if want_codes else 0), dtype=code),
        weight.new_empty((rows, groups), dtype=dtype),
        weight.new_empty((rows, groups), dtype=dtype),
    )


@torch.library.custom_op("twofold::quantize_groups_quantize", mutates_args=())
def _quantize(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, size: int, grid: str) -> torch.Tensor:
    if not backend.triton(weight):
        return _quantize_torch(weight, scale, zero, bits, size, grid)
    codes = _quantize_empty(weight, scale, zero, bits, size, grid)
    _launch(weight, codes, scale, zero, bits, size, grid, fit=False, want_codes=True)
    return codes


@_quantize.register_fake
def _quantize_empty(weight, scale, zero, bits, size, grid):
    return weight.new_empty(weight.shape, dtype=torch.int8 if grid == SIGNED else torch.uint8)


@torch.library.custom_op("twofold::quantize_groups_dequantize", mutates_args=())
def _dequantize(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, size: int, grid: str, dtype: torch.dtype
) -> torch.Tensor:
    if not backend.triton(codes):
        return _dequantize_torch(codes, scale, zero, bits, size, grid).to(dtype)
    values = _dequantize_empty(codes, scale, zero, bits, size, grid, dtype)
    rows, columns = codes.shape
    if values.numel():
        launch = (rows, triton.cdiv(columns, TILE))
        strides = (codes.stride(0), *scale.stride(), *zero.stride())
        _dequantize_kernel[launch](
            codes, scale, zero, values, columns, *strides, BITS=bits, GRID=grid, SIZE=size, BLOCK=TILE, num_warps=WARPS
        )
    return values


@_dequantize.register_fake
def _dequantize_empty(codes, scale, zero, bits, size, grid, dtype):
    return codes.new_empty(codes.shape, dtype=dtype)


TILE, WARPS = 2048, 8  # elements that a program holds at once, and its warps: 8 elements a thread stay in registers


def block_of(size: int) -> int:
    """How much of a group a program holds at once: all of it up to 1024 elements."""
    return min(max(triton.next_power_of_2(size), 16), 1024)


def _launch(weight, codes, scale, zero, bits, size, grid, fit, want_codes):
    rows, columns = weight.shape
    pairs = rows * scale.shape[1]
    if pairs:
        strides = (weight.stride(0), *scale.stride(), *zero.stride())
        together = TILE // block_of(size)
        _quantize_kernel[(triton.cdiv(pairs, together),)](
            weight, codes, scale, zero, pairs, columns, scale.shape[1], *strides,
            BITS=bits, GRID=grid, FIT=fit, CODES=want_codes, SIZE=size, BLOCK_P=together, BLOCK_G=block_of(size), num_warps=WARPS,
        )  # fmt: skip


@triton.jit
def _nearest(value):
    value = tl.minimum(tl.maximum(value, -1048576.0), 1048576.0)  # clipped anyway; the sum below stays exact
    return (value + ROUND) - ROUND


@triton.jit
def _codes_of(w, scale, zero, BITS: tl.constexpr, GRID: tl.constexpr):
    """The codes of values under stored parameters, as float32; 0 where a value or the scale is not finite."""
    HALF: tl.constexpr = 2 ** (BITS - 1)
    if GRID == "absmax":
        code = tl.minimum(tl.maximum(_nearest(tl.div_rn(w, scale)), 1.0 - HALF), HALF - 1.0)
    else:
        if GRID == "min":
            code = _nearest(tl.div_rn(w - zero, scale))
        elif GRID == "centred":
            code = _nearest(tl.div_rn(w - zero, scale) + HALF)
        elif GRID == "float_zero":
            code = _nearest(tl.div_rn(w, scale) + zero)
        else:
            code = _nearest(tl.div_rn(w, scale)) + zero
        code = tl.minimum(tl.maximum(code, 0.0), 2.0 * HALF - 1.0)
    return tl.where(w * 0.0 + scale * 0.0 == 0.0, code, 0.0)


@triton.jit
def values_of(codes, scale, zero, BITS: tl.constexpr, GRID: tl.constexpr):
    """The values that codes stand for, in float32."""
    code = codes.to(tl.float32)
    if GRID == "absmax":
        return code * scale
    elif GRID == "min":
        return code * scale + zero
    elif GRID == "centred":
        return (code - 2 ** (BITS - 1)) * scale + zero
    else:
        return (code - zero) * scale


@triton.jit
def _stored(scale, TYPE: tl.constexpr):
    """The scale as its dtype holds it, at float32: a scale of 0 is 1; one that the dtype would lose is its smallest or largest number."""
    SMALLEST: tl.constexpr = 2.0**-14 if tl.float16 == TYPE else 2.0**-126
    LARGEST: tl.constexpr = 65504.0 if tl.float16 == TYPE else (2 - 2.0**-7 if tl.bfloat16 == TYPE else 2 - 2.0**-23) * 2.0**127
    scale = tl.where(scale == 0.0, 1.0, scale)
    kept = scale.to(TYPE).to(tl.float32)
    kept = tl.where(kept == 0.0, SMALLEST, kept)
    return tl.where(tl.abs(kept) == float("inf"), LARGEST, kept)


@triton.jit
def _quantize_kernel(
    weight, codes, scales, zeros, pairs, columns, groups, stride_w, stride_sn, stride_sg, stride_zn, stride_zg,
    BITS: tl.constexpr, GRID: tl.constexpr, FIT: tl.constexpr, CODES: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    TYPE: tl.constexpr = scales.dtype.element_ty
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    row, group = pair // groups, pair % groups
    column = group[:, None] * SIZE + tl.arange(0, BLOCK_G)[None, :]                           # (P, G)
    end = tl.where(pair < pairs, tl.minimum(columns, (group + 1) * SIZE), 0)[:, None]         # (P, 1)
    source = weight + row[:, None] * stride_w
    scale_at, zero_at = scales + row * stride_sn + group * stride_sg, zeros + row * stride_zn + group * stride_zg
    if FIT:
        low, high = tl.full((BLOCK_P,), float("inf"), tl.float32), tl.full((BLOCK_P,), float("-inf"), tl.float32)
        finite = tl.zeros((BLOCK_P,), tl.float32)                                             # 0, or NaN where a value is not finite
        for start in range(0, SIZE, BLOCK_G):
            inside = (column + start < end) & (tl.arange(0, BLOCK_G) + start < SIZE)[None, :]
            w = tl.load(source + column + start, mask=inside, other=0.0).to(tl.float32)
            low = tl.minimum(low, tl.min(tl.where(inside, w, float("inf")), 1))
            high = tl.maximum(high, tl.max(tl.where(inside, w, float("-inf")), 1))
            finite += tl.sum(w * 0.0, 1)
        scale, zero = _fit(low, high, BITS, GRID, TYPE)
        scale, zero = scale + finite, (zero + finite).to(TYPE).to(tl.float32)
        tl.store(scale_at, scale.to(TYPE), mask=pair < pairs)
        tl.store(zero_at, zero.to(TYPE), mask=pair < pairs)
    else:
        scale = tl.load(scale_at, mask=pair < pairs, other=1.0).to(tl.float32)
        zero = tl.load(zero_at, mask=pair < pairs, other=0.0).to(tl.float32)
    if CODES:
        for start in range(0, SIZE, BLOCK_G):
            inside = (column + start < end) & (tl.arange(0, BLOCK_G) + start < SIZE)[None, :]
            w = tl.load(source + column + start, mask=inside, other=0.0).to(tl.float32)
            code = _codes_of(w, scale[:, None], zero[:, None], BITS, GRID)
            target = codes + row[:, None] * columns + column + start
            tl.store(target, code.to(tl.int32).to(codes.dtype.element_ty), mask=inside)


@triton.jit
def _fit(low, high, BITS: tl.constexpr, GRID: tl.constexpr, TYPE: tl.constexpr):
    """Scale as stored, and zero, of groups with these least and greatest values."""
    HALF: tl.constexpr = 2 ** (BITS - 1)
    TOP: tl.constexpr = 2.0**BITS - 1.0
    largest = tl.maximum(-low, high)
    if GRID == "absmax":
        scale = _stored(tl.div_rn(largest, largest * 0.0 + (HALF - 1.0)), TYPE)
        zero = scale * 0.0
    elif GRID == "full":
        scale = _stored(tl.div_rn(2.0 * largest, largest * 0.0 + TOP), TYPE)
        zero = scale * 0.0 + HALF
    elif GRID == "zero_point":
        low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
        empty = low == high
        low, high = tl.where(empty, -1.0, low), tl.where(empty, 1.0, high)
        scale = _stored(tl.div_rn(high - low, low * 0.0 + TOP), TYPE)
        zero = tl.minimum(_nearest(tl.div_rn(0.0 - low, scale)), TOP)  # above TOP only where the scale was replaced
    else:
        scale = _stored(tl.div_rn(high - low, low * 0.0 + TOP), TYPE)
        if GRID == "min":
            zero = low
        elif GRID == "centred":
            zero = low + HALF * scale
        else:
            zero = tl.div_rn(0.0 - low, scale)
    return scale, zero


@triton.jit
def _dequantize_kernel(
    codes, scales, zeros, values, columns, stride_c, stride_sn, stride_sg, stride_zn, stride_zg,
    BITS: tl.constexpr, GRID: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    group = column // SIZE
    scale = tl.load(scales + row * stride_sn + group * stride_sg, mask=inside, other=0.0).to(tl.float32)
    zero = tl.load(zeros + row * stride_zn + group * stride_zg, mask=inside, other=0.0).to(tl.float32)
    code = tl.load(codes + row * stride_c + column, mask=inside, other=0)
    value = values_of(code, scale, zero, BITS, GRID)
    tl.store(values + row * columns + column, value.to(values.dtype.element_ty), mask=inside)


def _parameters_torch(weight, bits, size, grid, dtype):
    w, top, half = _by_group(weight.float(), size), 2**bits - 1, 2 ** (bits - 1)
    low, high = w.amin(2), w.amax(2)                                                         # (N, G)
    lost = ~(low.isfinite() & high.isfinite())                                               # NaN passes through amin and amax
    largest = torch.maximum(-low, high)
    if grid == "zero_point":
        low, high = low.clamp(max=0), high.clamp(min=0)
        low, high = torch.where(low == high, -1, low), torch.where(low == high, 1, high)
    extent, steps = {"absmax": (largest, half - 1), "full": (2 * largest, top)}.get(grid, (high - low, top))
    scale = extent / steps
    scale = torch.where(scale == 0, 1, scale)
    kept, limits = scale.to(dtype), torch.finfo(dtype)
    kept = torch.where(kept == 0, limits.smallest_normal, kept).clamp(max=limits.max)
    scale = kept.float()
    zero = {
        "absmax": lambda: torch.zeros_like(scale),
        "full": lambda: torch.full_like(scale, half),
        "zero_point": lambda: torch.round((0 - low) / scale).clamp(max=top),
        "min": lambda: low,
        "float_zero": lambda: (0 - low) / scale,
        "centred": lambda: low + half * scale,
    }[grid]()
    return kept.masked_fill(lost, torch.nan), zero.masked_fill(lost, torch.nan).to(dtype)


def _by_group(matrix, size):
    """The matrix as `(N, G, size)`; copies of its last column fill the last group, whose least and greatest values they leave alone."""
    rows, columns = matrix.shape
    groups = -(-columns // size)
    if groups * size > columns:
        matrix = torch.cat([matrix, matrix[:, -1:].expand(rows, groups * size - columns)], 1)
    return matrix.unflatten(1, (groups, size))


def _quantize_torch(weight, scale, zero, bits, size, grid):
    w, s, z, half = _by_group(weight.float(), size), scale.float()[..., None], zero.float()[..., None], 2 ** (bits - 1)
    s = s + 0 * s                                                                            # an infinite scale is NaN too   (N, G, 1)
    code = (w - z).div_(s) if grid in ("min", "centred") else w / s                          # from here on in place   (N, G, size)
    if grid in ("centred", "float_zero"):
        code += half if grid == "centred" else z
    code.round_()
    if grid in ("full", "zero_point"):
        code += z
    least, most = (1 - half, half - 1) if grid == SIGNED else (0, 2 * half - 1)
    code.clamp_(least, most).add_(w, alpha=0).nan_to_num_(0)                                 # 0 times what is not finite is NaN
    return code.to(torch.int8 if grid == SIGNED else torch.uint8).flatten(1)[:, : weight.shape[1]].contiguous()


def _dequantize_torch(codes, scale, zero, bits, size, grid):
    value, s, z = _by_group(codes, size).float(), scale.float()[..., None], zero.float()[..., None]
    if grid == "centred":
        value -= 2 ** (bits - 1)
    elif grid not in (SIGNED, "min"):
        value -= z
    value *= s
    if grid in ("min", "centred"):
        value += z
    return value.flatten(1)[:, : codes.shape[1]].contiguous()


def variants():
    """Configurations that the launchers can pick, for the ahead-of-time compile report: the grids differ in a few scalar operations."""
    for grid, size, weight, scale in (("absmax", 4096, "bf16", "fp32"), ("zero_point", 128, "fp16", "fp16"), ("min", 64, "fp32", "fp32")):
        code, block = "i8" if grid == SIGNED else "u8", block_of(size)
        strides = dict.fromkeys(("stride_sn", "stride_sg", "stride_zn", "stride_zg"), "i32")
        pointers = {"scales": f"*{scale}", "zeros": f"*{scale}"}
        constants = {"BITS": 8 if grid == SIGNED else 4, "GRID": grid, "SIZE": size}
        for fit, want_codes in ((True, True), (True, False), (False, True)):
            both = constants | {"FIT": fit, "CODES": want_codes, "BLOCK_P": TILE // block, "BLOCK_G": block}
            types = {"weight": f"*{weight}", "codes": f"*{code}"} | pointers
            types |= dict.fromkeys(("pairs", "columns", "groups", "stride_w"), "i32") | strides | dict.fromkeys(both, "constexpr")
            name = f"quantize_groups-{grid}-{size}-{'fit' if fit else 'given'}{'-codes' if want_codes else ''}"
            yield Variant(name, _quantize_kernel, types, both, {"num_warps": WARPS}, ("weight", "codes", "columns", "stride_w"))
        back = constants | {"BLOCK": TILE}
        types = {"codes": f"*{code}"} | pointers | {"values": f"*{weight}", "columns": "i32", "stride_c": "i32"} | strides
        types |= dict.fromkeys(back, "constexpr")
        name, divisible = f"quantize_groups-back-{grid}-{size}", ("codes", "values", "columns")
        yield Variant(name, _dequantize_kernel, types, back, {"num_warps": WARPS}, divisible)
