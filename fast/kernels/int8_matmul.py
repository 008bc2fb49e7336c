"""Matrix product of int8 codes with int8 codes: an exact integer sum, then scales, columns kept in full precision, bias, and one cast.

The sum is int32 and exact: codes are at least -128, so up to 131071 products of at most 2^14 stay below 2^31, in any order. After it come,
in float32, the product of both scales, that times the converted sum, the outlier columns' own sum, and the bias.

Outlier columns are a mask over K, known only on the device. The kernel gets the indices of all columns, outliers first, and loads how many
they are, so neither a launch nor a captured graph waits for the number. It gathers those columns of `x` and of the weight and sums their
products in an accumulator of their own. Without a weight it takes the codes, and their scale multiplies the sum.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["MOST_COLUMNS", "Tile", "int8", "tile", "variants"]

MOST_COLUMNS = 131071  # one more product of -128 by -128 may reach 2^31
GATHERED = 32  # outlier columns that are loaded together: in practice there are a few dozen of them, or none


def int8(
    x_codes: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype,
    x: torch.Tensor | None = None, outliers: torch.Tensor | None = None, weight: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """`x_codes (T, K)` times `codes (N, K)` transposed, exactly, then times `x_scale (T, 1)` and `scale (N, 1)`: `(T, N)` in `dtype`.

    With `outliers (K,)`, a mask, the products of these columns of `x (T, K)` and `weight (N, K)` are added; `x_codes` must be 0 there.
    """
    return _int8(x_codes, x_scale, codes, scale, bias, dtype, x, outliers, weight)


@dataclass(frozen=True)
class Tile:
    """What one program computes (T x N outputs, K at a time) and how it is compiled."""

    t: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


def tile(t: int, n: int, k: int, outliers: bool) -> Tile:
    """The configuration for a shape; K is never split: the sums are long only where there are many of them."""
    block_t = min(max(triton.next_power_of_2(t), 16), 64 if outliers else 128)  # the second accumulator needs registers too
    return Tile(block_t, 64, 128) if block_t < 64 else Tile(block_t, 128, 64, warps=8)


@torch.library.custom_op("twofold::int8_matmul", mutates_args=())
def _int8(
    x_codes: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype,
    x: torch.Tensor | None, outliers: torch.Tensor | None, weight: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    if not backend.triton(x_codes):
        return _int8_torch(x_codes, x_scale, codes, scale, bias, dtype, x, outliers, weight)
    shape = tile(len(x_codes), len(codes), x_codes.shape[1], outliers is not None)
    return int8_triton(x_codes, x_scale, codes, scale, bias, dtype, x, outliers, weight, shape)


@_int8.register_fake
def _(x_codes, x_scale, codes, scale, bias, dtype, x, outliers, weight):
    return x_scale.new_empty((x_codes.shape[0], codes.shape[0]), dtype=dtype)


def _int8_torch(x_codes, x_scale, codes, scale, bias, dtype, x, outliers, weight):
    if x_codes.is_cuda:
        total = (x_codes.double() @ codes.double().T).float()                                 # exact below 2^53
    else:
        total = torch._int_mm(x_codes, codes.T).float()                                       # int32: exact up to MOST_COLUMNS
    y = total * (x_scale.float() * scale.float().T)
    if outliers is not None:
        kept = (codes if weight is None else weight)[:, outliers].float()                     # (N, O)
        extra = x[:, outliers].float() @ kept.T
        y += extra * scale.float().T if weight is None else extra
    return (y if bias is None else y + bias.float()).to(dtype)


def int8_triton(x_codes, x_scale, codes, scale, bias, dtype, x, outliers, weight, tile):
    """The kernel under a given tile: what the operator launches under the tile of `tile`."""
    (t, k), n = x_codes.shape, len(codes)
    out = x_scale.new_empty((t, n), dtype=dtype)
    if not out.numel():
        return out
    columns = count = x_codes
    if outliers is not None:
        columns, count = outliers.logical_not().byte().argsort(stable=True), outliers.sum()
    x = x_codes if x is None else x
    kept = codes if weight is None else weight
    _int8_kernel[(triton.cdiv(t, tile.t) * triton.cdiv(n, tile.n),)](
        x_codes, x_scale, codes, scale, scale if bias is None else bias, x, kept, columns, count, out, t, n, k,
        x_codes.stride(0), x_scale.stride(0), codes.stride(0), scale.stride(0), x.stride(0), kept.stride(0),
        BIAS=bias is not None, OUTLIERS=outliers is not None, OF_CODES=weight is None, BLOCK_O=GATHERED,
        BLOCK_T=tile.t, BLOCK_N=tile.n, BLOCK_K=tile.k, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@triton.jit
def _int8_kernel(
    x_codes, x_scales, codes, scales, bias, x, weight, columns, counts, out, T, N, K,
    stride_xc, stride_xs, stride_c, stride_s, stride_x, stride_w,
    BIAS: tl.constexpr, OUTLIERS: tl.constexpr, OF_CODES: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    tiles_t = tl.cdiv(T, BLOCK_T)
    t = tl.program_id(0) % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(0) // tiles_t * BLOCK_N + tl.arange(0, BLOCK_N)
    near_t, near_n = (t % T).to(tl.int64), (n % N).to(tl.int64)                              # beyond the end, the first ones again
    total = tl.zeros((BLOCK_T, BLOCK_N), tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tokens = tl.load(x_codes + near_t[:, None] * stride_xc + k[None, :], mask=(k < K)[None, :], other=0)
        code = tl.load(codes + near_n[None, :] * stride_c + k[:, None], mask=(k < K)[:, None], other=0)
        total = tl.dot(tokens, code, total, out_dtype=tl.int32)
    x_scale = tl.load(x_scales + near_t * stride_xs).to(tl.float32)
    scale = tl.load(scales + near_n * stride_s).to(tl.float32)
    y = total.to(tl.float32) * (x_scale[:, None] * scale[None, :])
    if OUTLIERS:
        extra = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        count = tl.load(counts).to(tl.int32)
        for start in range(0, count, BLOCK_O):
            inside = start + tl.arange(0, BLOCK_O) < count
            column = tl.load(columns + start + tl.arange(0, BLOCK_O), mask=inside, other=0)
            value = tl.load(x + near_t[:, None] * stride_x + column[None, :], mask=inside[None, :], other=0.0)
            kept = tl.load(weight + near_n[None, :] * stride_w + column[:, None], mask=inside[:, None], other=0.0)
            extra = tl.dot(value, kept.to(value.dtype), extra, input_precision="ieee")
        y += extra * scale[None, :] if OF_CODES else extra
    if BIAS:
        y += tl.load(bias + near_n).to(tl.float32)[None, :]
    tl.store(out + t.to(tl.int64)[:, None] * N + n[None, :], y.to(out.dtype.element_ty), mask=(t < T)[:, None] & (n < N)[None, :])


def variants():
    """Configurations that the launchers can pick, for the ahead-of-time compile report."""
    for t, dtype, bias, kept in (
        (16, "bf16", False, None),
        (64, "fp16", True, None),
        (512, "bf16", True, None),
        (16, "fp16", False, "weight"),
        (16, "bf16", True, "codes"),
        (512, "fp16", True, "weight"),
        (512, "bf16", False, "codes"),
        (512, "fp32", False, "weight"),
    ):
        shape = tile(t, 4096, 4096, kept is not None)
        constants = {
            "BIAS": bias, "OUTLIERS": kept is not None, "OF_CODES": kept != "weight", "BLOCK_O": GATHERED,
            "BLOCK_T": shape.t, "BLOCK_N": shape.n, "BLOCK_K": shape.k,
        }  # fmt: skip
        types = {"x_codes": "*i8", "x_scales": "*fp32", "codes": "*i8", "scales": "*fp32", "bias": "*fp32", "out": f"*{dtype}"}
        types |= {"x": f"*{dtype}" if kept else "*i8", "weight": f"*{dtype}" if kept == "weight" else "*i8"}
        types |= {"columns": "*i64", "counts": "*i64"} if kept else {"columns": "*i8", "counts": "*i8"}
        integers = ("T", "N", "K", "stride_xc", "stride_xs", "stride_c", "stride_s", "stride_x", "stride_w")
        types |= dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
        name = f"int8_matmul-{shape.t}" + (f"-outliers-{kept}-{dtype}" if kept else "")
        divisible = ("x_codes", "codes", "x", "weight", "columns", "out", "N", "K", "stride_xc", "stride_c", "stride_x", "stride_w")
        yield Variant(name, _int8_kernel, types, constants, {"num_warps": shape.warps, "num_stages": shape.stages}, divisible)
