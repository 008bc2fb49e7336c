"""Tiled attention whose products take codes: int8 or e4m3 for queries and keys, numbers or codes for weights and values.

The walk over tiles is that of `tiled_attention`. Codes come with one float32 scale per row of queries and of keys: blocks, or the groups
of a warp's threads, repeat theirs, so that the kernel knows nothing of how rows were grouped. A product of int8 codes is exact in int32.

What becomes of the weights follows from the dtype of the values. Numbers: weights are rounded to that dtype. e4m3: weights are multiplied
by `top` first, and rounded. int8: so are they, to integers, and then the sum takes the rounded ones; elsewhere it takes them unrounded.
Codes of values have a scale per channel, or one per tile of keys. Coded weights are rounded against the running maximum, so that for them
the tile of keys, and the order of the tiles, are part of the result.
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
NEAREST = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no bits behind the point, so float32 rounds half to even


@triton.jit
def _absorb(
    m, l, acc, q, q_factor, position, k, k_scale, v, v_scale, shared, stride_kt, stride_vt, start, stop, seen, t_k, left, right, factor,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, TOP: tl.constexpr, BY_TILE: tl.constexpr, SHARED: tl.constexpr, REVERSE: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys start … stop: running maximum, sum and unnormalized output, logits in base 2."""
    TYPE: tl.constexpr = v.dtype.element_ty
    lane = tl.arange(0, BLOCK_K)
    final = start + (stop - start + BLOCK_K - 1) // BLOCK_K * BLOCK_K - BLOCK_K
    for step in range(start, stop, BLOCK_K):
        at = final - (step - start) if REVERSE else step
        keys = _tile(k, stride_kt, at, lane, seen, t_k, tl.arange(0, D_PAD), D, D_PAD, EDGE)  # (BLOCK_K, D)
        k_row = tl.load(k_scale + (at + lane), mask=at + lane < t_k, other=0.0)  # (BLOCK_K,)
        s = tl.dot(q, tl.trans(keys)).to(tl.float32) * q_factor[:, None] * k_row[None, :]  # (BLOCK_Q, BLOCK_K)
        if SHARED:
            s += (tl.load(shared + (at + lane), mask=at + lane < t_k, other=0.0) * factor)[None, :]
        if EDGE:
            s = tl.where(_allowed(position[:, None], (at + lane)[None, :], t_k, left, right, LEFT, RIGHT), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: -inf - -inf is no logit
        p = tl.exp2(s - m_safe[:, None])
        rescale = tl.exp2(m - m_safe)
        if tl.int8 == TYPE:
            p = (p * TOP + NEAREST) - NEAREST
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        values = _tile(v, stride_vt, at, lane, seen, t_k, tl.arange(0, DV_PAD), DV, DV_PAD, EDGE)  # (BLOCK_K, DV)
        if tl.int8 == TYPE:
            acc += tl.dot(p.to(tl.int8), values).to(tl.float32)
        elif tl.float8e4nv == TYPE:
            products = tl.dot((p * TOP).to(TYPE), values)  # tile by tile: a tensor core's own sums of 8-bit floats are narrow
            acc += products * tl.load(v_scale + at // BLOCK_K) if BY_TILE else products
        else:
            acc = tl.dot(p.to(TYPE), values, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _forward_kernel(
    q, k, v, q_scale, k_scale, v_scale, shared, o, lse,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, shared_rows, left, right, factor,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, TOP: tl.constexpr, BY_TILE: tl.constexpr, SHARED: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    TYPE: tl.constexpr = v.dtype.element_ty
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
    if SHARED:  # one row of numbers for every shared_rows queries, of which a tile lies within one
        shared += (head * tl.cdiv(t_q, shared_rows) + start // shared_rows) * t_k
    if BY_TILE:
        v_scale += kv_head * tl.cdiv(t_k, BLOCK_K)
    last = tl.minimum(start + BLOCK_Q, t_q) - 1 + offset
    begin, full, cease, end = _reach(start + offset, last, left, right, t_k, LEFT, RIGHT, BLOCK_K)
    m = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, DV_PAD), tl.float32)
    for i in tl.static_range(0 if LEFT or REVERSE else 1, 3):
        first, stop = _part(2 - i if REVERSE else i, begin, full, cease, end)
        m, l, acc = _absorb(
            m, l, acc, queries, q_factor, row + offset, k, k_scale + kv_head * t_k, v, v_scale, shared, stride_kt, stride_vt, first, stop,
            seen, t_k, left, right, factor, D, DV, D_PAD, DV_PAD, BLOCK_K, LEFT, RIGHT, TOP, BY_TILE, SHARED, REVERSE, i != 1,
        )  # fmt: skip

    empty = l == 0  # a row without keys: output 0, log-sum-exp -inf
    l = tl.where(empty, 1.0, l)
    mass = l / TOP if tl.int8 == TYPE else l
    acc = acc / (l * TOP if tl.float8e4nv == TYPE else l)[:, None]
    if (tl.int8 == TYPE or tl.float8e4nv == TYPE) and not BY_TILE:
        acc = acc * tl.load(v_scale + kv_head * DV + dim, mask=dim < DV, other=0.0)[None, :]
    target = o + ((b * t_q + row_wide) * heads + h)[:, None] * DV + dim[None, :]
    tl.store(target, acc.to(o.dtype.element_ty), mask=(row < t_q)[:, None] & (dim < DV)[None, :])
    tl.store(lse + head * t_q + row_wide, tl.where(empty, float("-inf"), (m + tl.log2(mass)) * LN2), mask=row < t_q)


def forward(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor | None = None, shared: Tensor | None = None, *,
    shared_rows: int = 1, left: int | None, right: int | None, scale: float, block_k: int, top: float = 1.0, by_tile: bool = False,
    reverse: bool = False, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes q (B, Tq, H, D), k (B, Tk, Hkv, D), codes or numbers v (B, Tk, Hkv, DV) -> o (B, Tq, H, DV) in `dtype`, lse (B, H, Tq).

    q_scale (B, H, Tq), k_scale (B, Hkv, Tk), v_scale (B, Hkv, DV) or, by tile, (B, Hkv, tiles); `shared` (B, H, blocks, Tk) is added to the
    products, the same to each of `shared_rows` queries.
    """
    return _forward(q, k, v, q_scale, k_scale, v_scale, shared, shared_rows, left, right, scale, block_k, top, by_tile, reverse, dtype)


@torch.library.custom_op("twofold::quantized_attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_scale: Tensor, k_scale: Tensor, v_scale: Tensor | None, shared: Tensor | None, shared_rows: int,
    left: int | None, right: int | None, scale: float, block_k: int, top: float, by_tile: bool, reverse: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    run = _forward_triton if backend.triton(q) else forward_torch
    return run(q, k, v, q_scale, k_scale, v_scale, shared, shared_rows, left, right, scale, block_k, top, by_tile, reverse, dtype)


@_forward.register_fake
def _empty(q, k, v, q_scale, k_scale, v_scale, shared, shared_rows, left, right, scale, block_k, top, by_tile, reverse, dtype):
    b, t_q, heads, _ = q.shape
    return q.new_empty((b, t_q, heads, v.shape[3]), dtype=dtype), q.new_empty((b, heads, t_q), dtype=torch.float32)


def _forward_triton(q, k, v, q_scale, k_scale, v_scale, shared, shared_rows, left, right, scale, block_k, top, by_tile, reverse, dtype):
    q, k, v = (x if x.stride(1) < 2**24 else x.contiguous() for x in (q, k, v))  # offsets within a tile fit 32 bits
    (b, t_q, heads, d), (_, t_k, kv_heads, dv) = q.shape, v.shape
    o, lse = q.new_empty((b, t_q, heads, dv), dtype=dtype), q.new_empty((b, heads, t_q), dtype=torch.float32)
    if lse.numel():
        widest = t_q + t_k
        bounds = (widest if bound is None else min(bound, widest) for bound in (left, right))
        strides = (stride for x in (q, k, v) for stride in x.stride()[:3])
        d_pad, dv_pad = _padded(d), _padded(dv)
        tile, options = configuration(architecture(q), max(d_pad, dv_pad), v.element_size(), block_k)
        with torch.cuda.device_of(q):
            _forward_kernel[(b * heads * triton.cdiv(t_q, tile["BLOCK_Q"]),)](
                q, k, v, q_scale, k_scale, v_scale, shared, o, lse, *strides, heads, heads // kv_heads, t_q, t_k, shared_rows, *bounds,
                scale * LOG2E, D=d, DV=dv, D_PAD=d_pad, DV_PAD=dv_pad, LEFT=left is not None, RIGHT=right is not None,
                TOP=top, BY_TILE=by_tile, SHARED=shared is not None, REVERSE=reverse, **tile, **options,
            )  # fmt: skip
    return o, lse


def _padded(width):
    return max(32, triton.next_power_of_2(width))  # products of 8-bit codes are at least 32 deep


def configuration(architecture: int | str, width: int, size: int, block_k: int) -> tuple[dict[str, int], dict[str, int]]:
    """Tile, and warps and stages, for heads this wide and values of `size` bytes; if those are codes, the tile has `block_k` keys."""
    coded, wide = size == 1, width > 128
    if architecture == "interpreter":
        tile, options = (32, block_k if coded else 16), {}
    elif size == 4:  # float32 products run on the ordinary cores
        tile, options = (16, 16), {"num_warps": 8 if wide else 4, "num_stages": 1}
    elif architecture == "gfx942":
        tile, options = (64, 32), {"num_warps": 4, "num_stages": 1}
        if coded:
            tile = (16 if wide and block_k > 64 else 32, block_k)
    else:
        roomy = architecture in (90, 100) and not wide
        tile, options = (64 if wide else 128, 64 if roomy else 32), {"num_warps": 8, "num_stages": 1 if wide else 2}
        if coded:
            tile = ((16 if block_k > 64 else 32) if wide else 64, block_k)
    return {"BLOCK_Q": tile[0], "BLOCK_K": tile[1]}, options


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher can pick, with the switches of the forms that pick it. Where there is no e4m3, nobody does."""
    forms = dict.fromkeys(("i8-bf16", "i8-fp32", "i8-i8"), (False, False)) | {"i8-fp8e4nv": (False, True), "fp8e4nv-fp8e4nv": (True, False)}
    for form, width, block_k in itertools.product(forms, (64, 128, 256), (32, 64, 128)):
        (codes, values), (by_tile, shared) = form.split("-"), forms[form]
        size = {"bf16": 2, "fp32": 4}.get(values, 1)
        if size > 1 and block_k != 64:  # of no consequence
            continue
        picked: dict[str, list[int | str]] = {}
        for target in (90, 100, 120) if "fp8" in form else (80, 90, 100, 120, "gfx942"):
            picked.setdefault(str(configuration(target, width, size, block_k)), []).append(target)
        for targets in picked.values():
            tile, options = configuration(targets[0], width, size, block_k)
            constants: dict[str, float] = {"D": width, "DV": width, "D_PAD": width, "DV_PAD": width, **tile, "LEFT": True, "RIGHT": True}
            constants |= {"TOP": 127.0, "BY_TILE": by_tile, "SHARED": shared, "REVERSE": by_tile}
            types = {"q": f"*{codes}", "k": f"*{codes}", "v": f"*{values}", "o": "*fp32" if values == "fp32" else "*bf16", "factor": "fp32"}
            types |= dict.fromkeys(("q_scale", "k_scale", "v_scale", "shared", "lse"), "*fp32") | dict.fromkeys(constants, "constexpr")
            signature = {argument: types.get(argument, "i32") for argument in _forward_kernel.arg_names}
            divisible = tuple(name for name in signature if signature[name].startswith("*") or name.startswith("stride"))
            tag = f"quantized-{form}-d{width}-{tile['BLOCK_Q']}x{tile['BLOCK_K']}-w{options['num_warps']}-s{options['num_stages']}"
            yield Variant(tag, _forward_kernel, signature, constants, options, divisible, tuple(targets))
