"""Tiled attention whose products of queries and keys are products of int8 codes.

The walk over tiles is that of `tiled_attention`. Codes come with one float32 scale per row of queries and of keys: blocks, or the groups
of a warp's threads, repeat theirs, so that the kernel knows nothing of how rows were grouped. A product of int8 codes is exact in int32.

Weights are rounded to the dtype of the values before they enter the second product; their sum takes them unrounded. They are measured
against the running maximum of tiles of BLOCK_K keys.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels.quantized_attention_torch import forward_torch
from twofold.fast.kernels.tiled_attention import _allowed, _part, _reach, _tile
from twofold.fast.kernels.tiled_attention_config import architecture
from twofold.fast.kernels.variant import Variant

__all__ = ["forward", "variants"]

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _absorb(
    m, l, acc, q, q_factor, position, k, k_scale, v, stride_kt, stride_vt, start, stop, seen, t_k, left, right,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys start … stop: running maximum, sum and unnormalized output, logits in base 2."""
    lane = tl.arange(0, BLOCK_K)
    for at in range(start, stop, BLOCK_K):
        keys = _tile(k, stride_kt, at, lane, seen, t_k, tl.arange(0, D_PAD), D, D_PAD, EDGE)  # (BLOCK_K, D)
        k_row = tl.load(k_scale + (at + lane), mask=at + lane < t_k, other=0.0)  # (BLOCK_K,)
        s = tl.dot(q, tl.trans(keys)).to(tl.float32) * q_factor[:, None] * k_row[None, :]  # (BLOCK_Q, BLOCK_K)
        if EDGE:
            s = tl.where(_allowed(position[:, None], (at + lane)[None, :], t_k, left, right, LEFT, RIGHT), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: -inf - -inf is no logit
        p = tl.exp2(s - m_safe[:, None])
        rescale = tl.exp2(m - m_safe)
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        values = _tile(v, stride_vt, at, lane, seen, t_k, tl.arange(0, DV_PAD), DV, DV_PAD, EDGE)  # (BLOCK_K, DV)
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _forward_kernel(
    q, k, v, q_scale, k_scale, o, lse,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, factor,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(t_q, BLOCK_Q)
    block = blocks - 1 - tl.program_id(0) % blocks  # under a causal mask the last queries see most
    head = (tl.program_id(0) // blocks).to(tl.int64)  # of all batches
    b, h = head // heads, head % heads
    kv_head = b * (heads // group) + h // group
    k += b * stride_kb + h // group * stride_kh
    v += b * stride_vb + h // group * stride_vh
    lane = tl.arange(0, BLOCK_Q)
    start = block * BLOCK_Q
    row = start + lane
    row_wide = block.to(tl.int64) * BLOCK_Q + lane  # for offsets
    offset = t_k - t_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0  # the first key that any row of the sequence sees
    dim = tl.arange(0, DV_PAD)
    queries = _tile(q + b * stride_qb + h * stride_qh, stride_qt, start, lane, 0, t_q, tl.arange(0, D_PAD), D, D_PAD, True)
    q_factor = tl.load(q_scale + head * t_q + row_wide, mask=row < t_q, other=0.0) * factor  # (BLOCK_Q,)
    last = tl.minimum(start + BLOCK_Q, t_q) - 1 + offset
    begin, full, cease, end = _reach(start + offset, last, left, right, t_k, LEFT, RIGHT, BLOCK_K)
    m = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, DV_PAD), tl.float32)
    for part in tl.static_range(0 if LEFT else 1, 3):
        first, stop = _part(part, begin, full, cease, end)
        m, l, acc = _absorb(
            m, l, acc, queries, q_factor, row + offset, k, k_scale + kv_head * t_k, v, stride_kt, stride_vt, first, stop,
            seen, t_k, left, right, D, DV, D_PAD, DV_PAD, BLOCK_K, LEFT, RIGHT, part != 1,
        )  # fmt: skip

    empty = l == 0  # a row without keys: output 0, log-sum-exp -inf
    l = tl.where(empty, 1.0, l)
    acc = acc / l[:, None]
    target = o + ((b * t_q + row_wide) * heads + h)[:, None] * DV + dim[None, :]
    tl.store(target, acc.to(o.dtype.element_ty), mask=(row < t_q)[:, None] & (dim < DV)[None, :])
    tl.store(lse + head * t_q + row_wide, tl.where(empty, float("-inf"), (m + tl.log2(l)) * LN2), mask=row < t_q)


def forward(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, *,
    left: int | None, right: int | None, scale: float, block_k: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes q (B, Tq, H, D), k (B, Tk, Hkv, D), numbers v (B, Tk, Hkv, DV) -> o (B, Tq, H, DV) in `dtype`, lse (B, H, Tq).

    q_scale is (B, H, Tq), k_scale (B, Hkv, Tk): one scale per row.
    """
    return _forward(q, k, v, q_scale, k_scale, left, right, scale, block_k, dtype)


@torch.library.custom_op("twofold::quantized_attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, left: int | None, right: int | None,
    scale: float, block_k: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    run = _forward_triton if backend.triton(q) else forward_torch
    return run(q, k, v, q_scale, k_scale, left, right, scale, block_k, dtype)


@_forward.register_fake
def _empty(q, k, v, q_scale, k_scale, left, right, scale, block_k, dtype):
    b, t_q, heads, _ = q.shape
    return q.new_empty((b, t_q, heads, v.shape[3]), dtype=dtype), q.new_empty((b, heads, t_q), dtype=torch.float32)


def _forward_triton(q, k, v, q_scale, k_scale, left, right, scale, block_k, dtype):
    q, k, v = (x if x.stride(1) < 2**24 else x.contiguous() for x in (q, k, v))  # offsets within a tile fit 32 bits
    (b, t_q, heads, d), (_, t_k, kv_heads, dv) = q.shape, v.shape
    o, lse = q.new_empty((b, t_q, heads, dv), dtype=dtype), q.new_empty((b, heads, t_q), dtype=torch.float32)
    if lse.numel():
        widest = t_q + t_k
        bounds = (widest if bound is None else min(bound, widest) for bound in (left, right))
        strides = (stride for x in (q, k, v) for stride in x.stride()[:3])
        d_pad, dv_pad = _padded(d), _padded(dv)
        tile, options = configuration(architecture(q), max(d_pad, dv_pad), v.element_size())
        with torch.cuda.device_of(q):
            _forward_kernel[(b * heads * triton.cdiv(t_q, tile["BLOCK_Q"]),)](
                q, k, v, q_scale, k_scale, o, lse, *strides, heads, heads // kv_heads, t_q, t_k, *bounds,
                scale * LOG2E, D=d, DV=dv, D_PAD=d_pad, DV_PAD=dv_pad, LEFT=left is not None, RIGHT=right is not None, **tile, **options,
            )  # fmt: skip
    return o, lse


def _padded(width):
    return max(32, triton.next_power_of_2(width))  # products of 8-bit codes are at least 32 deep


def configuration(architecture: int | str, width: int, size: int) -> tuple[dict[str, int], dict[str, int]]:
    """Tile, and warps and stages, for heads this wide and values of `size` bytes; scales belong to rows, so any tile will do."""
    if architecture == "interpreter":
        tile, options = (32, 16), {}
    elif size == 4:  # float32 products run on the ordinary cores
        tile, options = (16, 16), {"num_warps": 4 if width <= 128 else 8, "num_stages": 1}
    elif architecture == "gfx942":
        tile, options = (64, 32), {"num_warps": 4, "num_stages": 1}
    else:
        roomy = architecture in (90, 100) and width <= 128
        tile, options = (128 if width <= 128 else 64, 64 if roomy else 32), {"num_warps": 8, "num_stages": 2 if width <= 128 else 1}
    return {"BLOCK_Q": tile[0], "BLOCK_K": tile[1]}, options


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher can pick, with every switch on."""
    for values, width in itertools.product(("bf16", "fp32"), (64, 128, 256)):
        picked: dict[str, list[int | str]] = {}
        size = 2 if values == "bf16" else 4
        for target in (80, 90, 100, 120, "gfx942"):
            picked.setdefault(str(configuration(target, width, size)), []).append(target)
        for targets in picked.values():
            tile, options = configuration(targets[0], width, size)
            constants = {"D": width, "DV": width, "D_PAD": width, "DV_PAD": width, **tile}
            constants |= {"LEFT": True, "RIGHT": True}
            types = {"q": "*i8", "k": "*i8", "v": f"*{values}", "o": f"*{values}", "factor": "fp32"}
            types |= dict.fromkeys(("q_scale", "k_scale", "lse"), "*fp32") | dict.fromkeys(constants, "constexpr")
            signature = {argument: types.get(argument, "i32") for argument in _forward_kernel.arg_names}
            divisible = tuple(name for name in signature if signature[name].startswith("*") or name.startswith("stride"))
            tag = f"quantized-i8-{values}-d{width}-{tile['BLOCK_Q']}x{tile['BLOCK_K']}-w{options['num_warps']}-s{options['num_stages']}"
            yield Variant(tag, _forward_kernel, signature, constants, options, divisible, tuple(targets))
