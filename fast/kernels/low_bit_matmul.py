"""Matrix products of 16- or 32-bit activations with low-bit weights.

The product is computed transposed, weight tile first, so that the freshly unpacked weight is the operand that tensor
cores can take from registers and the few tokens of decoding are the short side. A K tile lies within one group where the group size is a
multiple of it (always so for powers of two from 16 and for one group per row). Then the tile is `code - zero`, an exact small integer for
integer zeros, and the group's scale multiplies the float32 partial sum. Elsewhere, and for the grids whose zero is added after the scale
(there that would trade the weight's own rounding for the cancellation of two long sums), the tile is the dequantized weight, computed in
float32 and rounded to the dtype of `x`. K is split over programs where the tiles alone would leave a GPU idle: float32 partial sums,
added in a fixed order by a second pass, no atomics. Words are loaded once and spread over their codes in registers where a code never
straddles two of them (1, 2, 4, 8 bits); the other widths load a word, sometimes two, per code.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels import bit_stream, quantize_groups
from twofold.fast.kernels.bit_stream import stream_codes, whole_words
from twofold.fast.kernels.quantize_groups import values_of
from twofold.fast.kernels.variant import Variant

__all__ = ["Tile", "low_bit", "tile_low_bit", "variants"]

AFTER = ("min", "centred")  # grids whose zero is added after the scale


def low_bit(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, size: int, grid: str, packed: bool):
    """`x (T, K)` times the transposed dequantized weight: `(T, N)` in the dtype of `x`. Differentiable in `x`."""
    return _low_bit(x, codes, scale, zero, bits, size, grid, packed)


@dataclass(frozen=True)
class Tile:
    """What one program computes (T x N outputs, K at a time), over how many programs K is split, and how it is compiled."""

    t: int
    n: int
    k: int
    splits: int = 1
    warps: int = 4
    stages: int = 3


def tile_low_bit(t: int, n: int, k: int, bits: int, size: int, grid: str, itemsize: int, hip: bool) -> Tile:
    """The configuration for a shape: K tiles inside one group if possible, K split until about two programs fit every multiprocessor."""
    fitting = [candidate for candidate in (64, 32, 16) if size % candidate == 0 or size >= k]
    block_k = fitting[0] if fitting else 32
    light = bool(fitting) and 32 % bits == 0 and grid not in AFTER and itemsize == 2  # what takes more registers gets smaller tiles
    block_t = min(max(triton.next_power_of_2(t), 16), 64 if itemsize == 2 else 32)
    block_n = 128 if t > 64 and light else 64
    programs = triton.cdiv(t, block_t) * triton.cdiv(n, block_n)
    splits = max(1, min(8, 264 // max(programs, 1), k // (4 * block_k)))
    if hip:  # more threads and fewer loads under way: their masks fill the scalar registers there
        return Tile(block_t, block_n, block_k, splits, 8, 2 if light else 1)
    return Tile(block_t, block_n, block_k, splits, 4 if block_t * block_n <= 2048 else 8, 3)


@torch.library.custom_op("twofold::low_bit_matmul", mutates_args=())
def _low_bit(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, size: int, grid: str, packed: bool
) -> torch.Tensor:
    if not backend.triton(x):
        return (x.float() @ _weight(codes, scale, zero, bits, size, grid, packed, x.shape[1]).T).to(x.dtype)
    tile = tile_low_bit(len(x), len(codes), x.shape[1], bits, size, grid, x.itemsize, torch.version.hip is not None)
    return low_bit_triton(x, codes, scale, zero, bits, size, grid, packed, tile)


@_low_bit.register_fake
def _(x, codes, scale, zero, bits, size, grid, packed):
    return x.new_empty((x.shape[0], codes.shape[0]))


def _low_bit_context(ctx, inputs, output):
    x, codes, scale, zero, *ctx.options = inputs
    ctx.save_for_backward(codes, scale, zero)
    ctx.columns = x.shape[1]


def _low_bit_backward(ctx, grad):
    bits, size, grid, packed = ctx.options
    weight = _weight(*ctx.saved_tensors, bits, size, grid, packed, ctx.columns)
    return (grad.float() @ weight).to(grad.dtype), *[None] * 7


_low_bit.register_autograd(_low_bit_backward, setup_context=_low_bit_context)


def _weight(codes, scale, zero, bits, size, grid, packed, columns):
    codes = bit_stream.unpack(codes, bits, columns) if packed else codes
    return quantize_groups.dequantize(codes, scale, zero, bits, size, grid, torch.float32)


def low_bit_triton(x, codes, scale, zero, bits, size, grid, packed, tile):
    """The kernel under a given tile: what the operator launches under the tile of `tile_low_bit`."""
    (t, k), n = x.shape, len(codes)
    out = x.new_empty((t, n))
    if out.numel() == 0:
        return out
    partial = out[None] if tile.splits == 1 else x.new_empty((tile.splits, t, n), dtype=torch.float32)
    _low_bit_kernel[(triton.cdiv(t, tile.t) * triton.cdiv(n, tile.n), tile.splits)](
        x, codes, scale, zero, partial, t, n, k, x.stride(0), codes.stride(0), *scale.stride(), *zero.stride(), partial.stride(0),
        BITS=bits, GRID=grid, PACKED=packed, SIZE=size, ONE_GROUP=size % tile.k == 0 or size >= k, SPLITS=tile.splits,
        BLOCK_T=tile.t, BLOCK_N=tile.n, BLOCK_K=tile.k, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.splits > 1:
        _add_splits[(triton.cdiv(t * n, 1024),)](partial, out, t * n, SPLITS=tile.splits, BLOCK=1024, num_warps=4)
    return out


@triton.jit
def _low_bit_kernel(
    x, codes, scales, zeros, out, T, N, K, stride_x, stride_c, stride_sn, stride_sg, stride_zn, stride_zg, stride_split,
    BITS: tl.constexpr, GRID: tl.constexpr, PACKED: tl.constexpr, SIZE: tl.constexpr, ONE_GROUP: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    LATE_SCALE: tl.constexpr = ONE_GROUP and GRID != "min" and GRID != "centred"
    tiles_t = tl.cdiv(T, BLOCK_T)
    split = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)                         # neighbors share a weight tile
    n = tl.program_id(0) // tiles_t * BLOCK_N + tl.arange(0, BLOCK_N)
    near_t, near_n = (t % T).to(tl.int64)[None, :], (n % N).to(tl.int64)[:, None]            # beyond the end, the first ones again
    share = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS) * BLOCK_K                                   # of K, whole tiles
    begin, end = (split * share).to(tl.int32), tl.minimum((split + 1) * share, K).to(tl.int32)
    rows, columns = codes + near_n * stride_c, x + near_t * stride_x
    scale_at, zero_at = scales + near_n * stride_sn, zeros + near_n * stride_zn
    total = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for start in range(begin, end, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k < K)[None, :]                                                             # (1, K)
        tokens = tl.load(columns + k[:, None], mask=(k < K)[:, None], other=0.0)               # (K, T)
        if not PACKED:
            code = tl.load(rows + k[None, :], mask=inside, other=0)
        elif 32 % BITS == 0:
            code = whole_words(rows, start, K, BITS, BLOCK_N, BLOCK_K)
        else:
            code = stream_codes(rows, k[None, :], inside, BITS)
        zero = 0.0
        if ONE_GROUP:
            group = tl.zeros((1, 1), tl.int64) + start // SIZE
            scale = tl.load(scale_at + group * stride_sg).to(tl.float32)                      # (N, 1)
            if GRID != "absmax":
                zero = tl.load(zero_at + group * stride_zg).to(tl.float32)
        else:
            group = (k[None, :] // SIZE).to(tl.int64)                                         # (1, K)
            scale = tl.load(scale_at + group * stride_sg, mask=inside, other=0.0).to(tl.float32)                   # (N, K)
            if GRID != "absmax":
                zero = tl.load(zero_at + group * stride_zg, mask=inside, other=0.0).to(tl.float32)
        value = values_of(code, 1.0 if LATE_SCALE else scale, zero, BITS, GRID)
        part = tl.dot(value.to(tokens.dtype), tokens, input_precision="ieee")
        total += part * scale if LATE_SCALE else part
    target = out + split * stride_split + t.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(target, total.to(out.dtype.element_ty), mask=(n < N)[:, None] & (t < T)[None, :])


@triton.jit
def _add_splits(partial, out, count, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial + split * count.to(tl.int64) + index, mask=index < count, other=0.0)
    tl.store(out + index, total.to(out.dtype.element_ty), mask=index < count)


def variants():
    """Configurations that the launchers can pick, for the ahead-of-time compile report."""
    for bits, grid, size, packed, dtype, scale in (
        (4, "full", 128, True, "bf16", "bf16"),
        (4, "zero_point", 128, True, "fp16", "fp16"),
        (4, "min", 64, True, "bf16", "bf16"),
        (4, "float_zero", 40, True, "fp16", "fp16"),
        (3, "zero_point", 128, True, "fp16", "fp16"),
        (2, "zero_point", 16, True, "bf16", "bf16"),
        (8, "absmax", 4096, False, "bf16", "fp32"),
        (4, "zero_point", 32, False, "fp32", "fp32"),
    ):
        for t in (1, 64, 512):
            for hip in (False, True):
                tile = tile_low_bit(t, 4096, 4096, bits, size, grid, 4 if dtype == "fp32" else 2, hip)
                yield _low_bit_variant(bits, grid, size, packed, dtype, scale, tile, hip)
    constants = {"SPLITS": 8, "BLOCK": 1024}
    types = {"partial": "*fp32", "out": "*bf16", "count": "i32"} | dict.fromkeys(constants, "constexpr")
    yield Variant("low_bit_matmul-add-splits", _add_splits, types, constants, {"num_warps": 4}, ("partial", "out", "count"))


def _low_bit_variant(bits, grid, size, packed, dtype, scale, tile, hip):
    constants = {
        "BITS": bits, "GRID": grid, "PACKED": packed, "SIZE": size, "ONE_GROUP": size % tile.k == 0, "SPLITS": tile.splits,
        "BLOCK_T": tile.t, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
    }  # fmt: skip
    types = {"x": f"*{dtype}", "codes": "*i32" if packed else "*i8" if grid == quantize_groups.SIGNED else "*u8"}
    types |= {"scales": f"*{scale}", "zeros": f"*{scale}", "out": f"*{dtype}" if tile.splits == 1 else "*fp32"}
    integers = ("T", "N", "K", "stride_x", "stride_c", "stride_sn", "stride_sg", "stride_zn", "stride_zg", "stride_split")
    types |= dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
    form, shape = "packed" if packed else "bytes", f"{tile.t}x{tile.n}x{tile.k}x{tile.splits}"
    name = f"low_bit_matmul-{bits}-{grid}-{size}-{dtype}-{form}-{shape}{'-hip' if hip else ''}"
    divisible = ("x", "codes", "scales", "zeros", "out", "N", "K", "stride_x", "stride_c", "stride_split")
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return Variant(name, _low_bit_kernel, types, constants, options, divisible, ("gfx942",) if hip else (80, 90, 100, 120))
