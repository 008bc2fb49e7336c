"""The gradients of `tiled_attention`, in two kernels: one with its queries at rest, one with its keys.

Every tile of probabilities is made twice, once for dQ and once for dK and dV: seven products instead of five. No two programs ever add to
one address, so the result does not depend on the order in which they run. Masks, scores and walks are those of the forward pass; the
kernel at rest on keys walks over rows, along the lists' transpose.
"""

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.attention_mods import kernel_function
from twofold.fast.kernels.packed_sequences import Packing
from twofold.fast.kernels.tiled_attention import (
    LOG2E,
    NOTHING,
    Blocks,
    _addressable,
    _allowed,
    _at,
    _configuration,
    _constants,
    _listed,
    _numbers,
    _program,
    _programs,
    _reach,
    _scores,
    _starts,
    _tile,
    _values,
    variants_of,
)  # fmt: skip
from twofold.fast.kernels.variant import Variant

__all__ = ["backward_triton", "row_terms", "variants"]


@triton.jit
def _row_products_kernel(o, do, d, rows, heads, t_q, DV: tl.constexpr, DV_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """D = rowsum(do * o), from (B, T, H, DV) to (B, H, T)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dim = tl.arange(0, DV_PAD)
    mask = (row < rows)[:, None] & (dim < DV)[None, :]
    outputs = tl.load(o + row[:, None] * DV + dim[None, :], mask=mask, other=0.0).to(tl.float32)
    gradients = tl.load(do + row[:, None] * DV + dim[None, :], mask=mask, other=0.0).to(tl.float32)
    b, t, h = row // heads // t_q, row // heads % t_q, row % heads
    tl.store(d + (b * heads + h) * t_q + t, tl.sum(outputs * gradients, 1), mask=row < rows)


@triton.jit
def _weights(
    s, dp, sums, deltas, allowed, b, h, i, j, inner, outer, factor, tables, numbers,
    SOFTCAP: tl.constexpr, MASK: tl.constexpr, SCORE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """A tile's probabilities, and the gradient of its scaled products; `dp` is do·v, and what is not allowed is 0 in both."""
    logits = s
    if SCORE is not None:
        logits = SCORE(s * outer, b, h, i, j, tables, numbers)
    p = tl.where(allowed, tl.exp2(logits * factor - sums), 0.0)
    ds = p * (dp - deltas)
    if SLOPE is not None:
        ds = ds * SLOPE(s * outer, b, h, i, j, tables, numbers)
    if SOFTCAP:
        ds = ds * (1 - s * s)
    if MASK is not None or SCORE is not None:  # there, a score may be NaN and a slope infinite
        ds = tl.where(allowed, ds, 0.0)
    return p, ds


@triton.jit
def _absorb_keys(
    acc, queries, gradients, sums, deltas, b, h, row, offset, k, v, stride_kt, stride_vt, start, stop, listed, seen, n_q, n_k, left, right,
    inner, outer, factor, tables, numbers,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SPARSE_K: tl.constexpr,
    MASK: tl.constexpr, SCORE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """What the keys start … stop add to dQ."""
    lane = tl.arange(0, BLOCK_K)
    for step in range(start, stop, BLOCK_K):
        at = _at(listed, step, SPARSE_K)
        i, j = tl.minimum(row, n_q - 1)[:, None], tl.minimum(at + lane, n_k - 1)[None, :]
        allowed = _allowed((row + offset)[:, None], (at + lane)[None, :], n_k, left, right, LEFT, RIGHT)
        if MASK is not None:
            allowed = allowed & MASK(b, h, i, j, tables, numbers)
        keys = _tile(k, stride_kt, at, lane, seen, n_k, tl.arange(0, D_PAD), D, D_PAD, True)  # (BLOCK_K, D)
        values = _tile(v, stride_vt, at, lane, seen, n_k, tl.arange(0, DV_PAD), DV, DV_PAD, True)  # (BLOCK_K, DV)
        s = _scores(queries, keys, inner, SOFTCAP)  # (BLOCK_Q, BLOCK_K)
        dp = tl.dot(gradients, tl.trans(values), input_precision="ieee")
        _, ds = _weights(
            s, dp, sums[:, None], deltas[:, None], allowed, b, h, i, j, inner, outer, factor, tables, numbers, SOFTCAP, MASK, SCORE, SLOPE
        )
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision="ieee")
    return acc


@triton.jit
def _query_gradient_kernel(
    q, k, v, do, lse, delta, dq, table, lists, tables, numbers,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, inner, outer, factor, scale,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, PACKED: tl.constexpr, SPARSE_Q: tl.constexpr, SPARSE_K: tl.constexpr,
    MASK: tl.constexpr, SCORE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    b, h, block, first_q, n_q, first_k, n_k = _program(table, t_q, t_k, t_q, heads, BLOCK_Q, True, PACKED)
    k += b * stride_kb + first_k * stride_kt + h // group * stride_kh
    v += b * stride_vb + first_k * stride_vt + h // group * stride_vh
    lane = tl.arange(0, BLOCK_Q)
    row = block * BLOCK_Q + lane
    row_wide = first_q + block.to(tl.int64) * BLOCK_Q + lane  # for offsets
    offset = n_k - n_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0
    dim = tl.arange(0, D_PAD)
    dim_v = tl.arange(0, DV_PAD)
    start = block * BLOCK_Q
    q += b * stride_qb + first_q * stride_qt + h * stride_qh
    do += ((b * t_q + first_q) * heads + h) * DV
    queries = _tile(q, stride_qt, start, lane, 0, n_q, dim, D, D_PAD, True)  # (BLOCK_Q, D)
    gradients = _tile(do, heads * DV, start, lane, 0, n_q, dim_v, DV, DV_PAD, True)  # (BLOCK_Q, DV)
    at = (b * heads + h) * t_q + row_wide
    sums = tl.load(lse + at, mask=row < n_q, other=float("inf"))
    deltas = tl.load(delta + at, mask=row < n_q, other=0.0)

    last = tl.minimum(start + BLOCK_Q, n_q) - 1 + offset
    begin, _, _, end = _reach(start + offset, last, left, right, n_k, LEFT, RIGHT, BLOCK_K)
    acc = tl.zeros((BLOCK_Q, D_PAD), tl.float32)
    for part in tl.static_range(1 if SPARSE_K else 2, 3):  # full and partial blocks, or everything
        if SPARSE_K:
            from_key, to_key, listed = _listed(lists, part, start // SPARSE_Q, SPARSE_K)
        else:
            from_key, to_key, listed = begin, end, lists
        acc = _absorb_keys(
            acc, queries, gradients, sums, deltas, b, h, row, offset, k, v, stride_kt, stride_vt, from_key, to_key, listed, seen, n_q, n_k,
            left, right, inner, outer, factor, tables, numbers,
            D, DV, D_PAD, DV_PAD, BLOCK_Q, BLOCK_K, LEFT, RIGHT, SOFTCAP, SPARSE_K, MASK if part == 2 else None, SCORE, SLOPE,
        )  # fmt: skip
    target = dq + ((b * t_q + row_wide) * heads + h)[:, None] * D + dim[None, :]
    tl.store(target, (scale * acc).to(dq.dtype.element_ty), mask=(row < n_q)[:, None] & (dim < D)[None, :])


@triton.jit
def _absorb_rows(
    acc_k, acc_v, keys, values, b, h, key, offset, q, do, lse, delta, stride_qt, stride_dot, start, stop, listed, n_q, n_k, left, right,
    inner, outer, factor, tables, numbers,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SPARSE_Q: tl.constexpr,
    MASK: tl.constexpr, SCORE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """What the rows start … stop add to dK and dV; tiles lie transposed, keys down."""
    lane = tl.arange(0, BLOCK_Q)
    for step in range(start, stop, BLOCK_Q):
        at = _at(listed, step, SPARSE_Q)
        row = at + lane
        queries = _tile(q, stride_qt, at, lane, 0, n_q, tl.arange(0, D_PAD), D, D_PAD, True)  # (BLOCK_Q, D)
        gradients = _tile(do, stride_dot, at, lane, 0, n_q, tl.arange(0, DV_PAD), DV, DV_PAD, True)  # (BLOCK_Q, DV)
        sums = tl.load(lse + row, mask=row < n_q, other=float("inf"))  # beyond the last row every probability is e^-inf
        deltas = tl.load(delta + row, mask=row < n_q, other=0.0)
        i, j = tl.minimum(row, n_q - 1)[None, :], tl.minimum(key, n_k - 1)[:, None]
        allowed = _allowed((row + offset)[None, :], key[:, None], n_k, left, right, LEFT, RIGHT)
        if MASK is not None:
            allowed = allowed & MASK(b, h, i, j, tables, numbers)
        s = _scores(keys, queries, inner, SOFTCAP)  # (BLOCK_K, BLOCK_Q)
        dp = tl.dot(values, tl.trans(gradients), input_precision="ieee")
        p, ds = _weights(
            s, dp, sums[None, :], deltas[None, :], allowed, b, h, i, j, inner, outer, factor, tables, numbers, SOFTCAP, MASK, SCORE, SLOPE
        )
        acc_v = tl.dot(p.to(gradients.dtype), gradients, acc_v, input_precision="ieee")
        acc_k = tl.dot(ds.to(queries.dtype), queries, acc_k, input_precision="ieee")
    return acc_k, acc_v


@triton.jit
def _key_gradient_kernel(
    q, k, v, do, lse, delta, dk, dv, table, lists, tables, numbers,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, inner, outer, factor, scale,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, PACKED: tl.constexpr, SPARSE_Q: tl.constexpr, SPARSE_K: tl.constexpr,
    MASK: tl.constexpr, SCORE: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    b, h, block, first_q, n_q, first_k, n_k = _program(table, t_q, t_k, t_k, kv_heads, BLOCK_K, False, PACKED)
    k += b * stride_kb + first_k * stride_kt + h * stride_kh
    v += b * stride_vb + first_k * stride_vt + h * stride_vh
    start = block * BLOCK_K
    lane = tl.arange(0, BLOCK_K)
    key = start + lane
    offset = n_k - n_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0
    dim = tl.arange(0, D_PAD)
    dim_v = tl.arange(0, DV_PAD)
    keys = _tile(k, stride_kt, start, lane, seen, n_k, dim, D, D_PAD, True)  # (BLOCK_K, D)
    values = _tile(v, stride_vt, start, lane, seen, n_k, dim_v, DV, DV_PAD, True)  # (BLOCK_K, DV)
    last = tl.minimum(start + BLOCK_K, n_k) - 1 - offset
    begin, _, _, end = _reach(start - offset, last, right, left, n_q, RIGHT, LEFT, BLOCK_Q)
    acc_k = tl.zeros((BLOCK_K, D_PAD), tl.float32)
    acc_v = tl.zeros((BLOCK_K, DV_PAD), tl.float32)
    for head in range(h * group, h * group + group):  # the queries that share these keys, in order
        rows = (b * heads + head) * t_q + first_q
        queries = q + b * stride_qb + first_q * stride_qt + head * stride_qh
        gradients = do + ((b * t_q + first_q) * heads + head) * DV
        for part in tl.static_range(1 if SPARSE_Q else 2, 3):
            if SPARSE_Q:
                from_row, to_row, listed = _listed(lists, part, start // SPARSE_K, SPARSE_Q)
            else:
                from_row, to_row, listed = begin, end, lists
            acc_k, acc_v = _absorb_rows(
                acc_k, acc_v, keys, values, b, head, key, offset, queries, gradients, lse + rows, delta + rows, stride_qt, heads * DV,
                from_row, to_row, listed, n_q, n_k, left, right, inner, outer, factor, tables, numbers,
                D, DV, D_PAD, DV_PAD, BLOCK_Q, LEFT, RIGHT, SOFTCAP, SPARSE_Q, MASK if part == 2 else None, SCORE, SLOPE,
            )  # fmt: skip
    base = ((b * t_k + first_k + block.to(tl.int64) * BLOCK_K + lane) * kv_heads + h)[:, None]
    inside = (key < n_k)[:, None]
    tl.store(dk + base * D + dim[None, :], (scale * acc_k).to(dk.dtype.element_ty), mask=inside & (dim < D)[None, :])
    tl.store(dv + base * DV + dim_v[None, :], acc_v.to(dv.dtype.element_ty), mask=inside & (dim_v < DV)[None, :])


def backward_triton(
    q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap, packing: Packing | None = None, mods=NOTHING, blocks: Blocks | None = None
):
    """The gradients dq, dk, dv in the dtype of the inputs, and dsink (H,) in float32 (None without a sink)."""
    q, k, v = _addressable(q, k, v)
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    do, o = do.contiguous(), o.contiguous()
    d = lse.new_empty(b, heads, t_q)
    dq, dk, dv_ = (x.new_empty(x.shape) if packing is None else x.new_zeros(x.shape) for x in (q, k, v))
    numbers = *_values(mods), *_numbers(q, k, v, left, right, scale, softcap, mods), scale
    constants = _constants(q, v, left, right, softcap, packing, mods, blocks) | {"SLOPE": kernel_function("slope", mods.slope)}
    with torch.cuda.device_of(q):
        if d.numel():
            rows, block = d.numel(), 64
            _row_products_kernel[(triton.cdiv(rows, block),)](o, do, d, rows, heads, t_q, dv, constants["DV_PAD"], block)
        sums, delta, dsink = row_terms(d, lse, dlse, sink)
        sums = sums * LOG2E.value
        if dq.numel():
            tile, options = _configuration("query", q, v, blocks)
            entries, programs = _programs(packing, b, t_q, tile["BLOCK_Q"], keys=False)
            arguments = q, k, v, do, sums, delta, dq, entries, blocks and _starts(blocks.lines, blocks.keys), *numbers
            _query_gradient_kernel[(programs * heads,)](*arguments, **constants, **tile, **options)
        if dk.numel():
            tile, options = _configuration("key", q, v, blocks)
            entries, programs = _programs(packing, b, t_k, tile["BLOCK_K"], keys=True)
            arguments = q, k, v, do, sums, delta, dk, dv_, entries, blocks and _starts(blocks.columns, blocks.rows), *numbers
            _key_gradient_kernel[(programs * kv_heads,)](*arguments, **constants, **tile, **options)
    return dq, dk, dv_, dsink


def row_terms(d, lse, dlse, sink):
    """What the gradients need of each row: e^(s - sums) is its probability and `delta` what dS subtracts, (B, H, Tq); and dsink (H,).

    A sink's share w goes into the exponent, P = w e^(s - L) = e^(s - (L - log w)), and then e^(s - L) dlse is P dlse / w.
    """
    sums = lse.masked_fill(lse == -math.inf, math.inf)  # a row without keys: every probability is e^-inf
    if sink is None:
        return sums, d if dlse is None else d - dlse, None
    log_share = torch.nn.functional.logsigmoid(lse.masked_fill(lse == -math.inf, 0) - sink[:, None])
    dsink = (torch.expm1(log_share) * d).sum((0, 2))
    log_share = log_share.clamp(min=-64)  # smaller shares are 0 to any output, but dlse is still divided by them
    return sums - log_share, d if dlse is None else d - dlse * torch.exp(-log_share), dsink


def variants() -> Iterator[Variant]:
    """Every configuration for sequences of one length, packed ones and blocks, each with every switch on that goes with it."""
    kernels = {"query": _query_gradient_kernel, "key": _key_gradient_kernel}
    yield from variants_of(kernels, {"lse": "*fp32", "delta": "*fp32"}, ("q", "k", "v", "do", "dq", "dk", "dv"), {})
