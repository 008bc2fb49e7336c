"""One tiled attention, forward and backward, as Triton kernels; `tiled_attention_torch` is their twin.

A program owns one block of rows and walks over the tiles of the other side. Tiles in which no row sees anything are not visited. In
the forward pass tiles that every row sees entirely run without a mask, only the rest (edges of a window, the tail of the sequence) is
masked. A mask is a window: row i at position p = i + Tk - Tq sees the keys p - left … p + right; causal is right = 0. Further masks
and scores belong into `_scores`, `_allowed` and `_reach`.

Precision: products of the inputs as they are, accumulated in float32; the softmax in float32 with base 2, the scale folded into its
exponent; probabilities and their gradients enter matrix products in the dtype of the inputs, the sum l is that of the unrounded ones.

Score and factor: a tile's scores are the raw products q·k, or tanh(q·k · inner) under a cap; times `factor` they are logits in base 2.
Both maps are increasing, so that the running maximum is one of scores.

The backward pass makes every tile of probabilities twice, once for dQ and once for dK and dV: seven products instead of five. No two
programs ever add to one address, so the result does not depend on the order in which they run.
"""

import itertools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.tiled_attention_config import architecture, configuration
from twofold.fast.kernels.variant import Variant

__all__ = ["backward_triton", "forward_triton", "row_terms", "variants"]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _tanh(x):
    """Within 4 units of roundoff: a continued fraction near 0, where the exponential cancels."""
    y = x * x
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)  # e^(-2|x|)
    near = tl.abs(x) < 1.0
    above = tl.where(near, x * (10395 + y * (1260 + y * 21)), tl.where(x < 0, e - 1, 1 - e))
    return above / tl.where(near, 10395 + y * (4725 + y * (210 + y)), 1 + e)


@triton.jit
def _scores(a, b, inner, SOFTCAP: tl.constexpr):
    """Every row of `a` against every row of `b`: products, capped to (-1, 1) where there is a cap."""
    products = tl.dot(a, tl.trans(b), input_precision="ieee")
    if SOFTCAP:
        products = _tanh(products * inner)
    return products


@triton.jit
def _allowed(position, key, t_k, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Whether the row at `position` sees `key`; both broadcast."""
    allowed = key < t_k
    if LEFT:
        allowed = allowed & (key >= position - left)
    if RIGHT:
        allowed = allowed & (key <= position + right)
    return allowed


@triton.jit
def _program(length, heads, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """This program's batch and head, wide enough for offsets, and its block: the last rows first where they have most to do."""
    blocks = tl.cdiv(length, BLOCK)
    block, other = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    return (other // heads).to(tl.int64), (other % heads).to(tl.int64), blocks - 1 - block if LAST_FIRST else block


@triton.jit
def _reach(first, last, back, ahead, length, BACK: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Where the tiles that rows first … last see begin, become full, cease to be full and end; x sees x - back … x + ahead."""
    begin = 0
    full = 0
    end = length
    cease = length
    if BACK:
        begin = tl.maximum(first - back, 0) // BLOCK * BLOCK
        full = tl.cdiv(tl.maximum(last - back, 0), BLOCK) * BLOCK
    if AHEAD:
        end = tl.minimum(last + ahead + 1, length)
        cease = tl.maximum(tl.minimum(first + ahead + 1, length), 0)
    return begin, full, tl.maximum(cease // BLOCK * BLOCK, full), end


@triton.jit
def _part(part: tl.constexpr, begin, full, cease, end):
    """The three stretches of a walk: tiles with an edge, full tiles, tiles with an edge."""
    if part == 0:
        return begin, tl.minimum(full, end)
    elif part == 1:
        return full, cease
    else:
        return cease, end


@triton.jit
def _tile(base, stride, start, lane, begin, end, dim, WIDTH: tl.constexpr, PADDED: tl.constexpr, EDGE: tl.constexpr):
    """Rows start + lane of one head; zeros outside begin … end and beyond the head's width. Only an EDGE tile can reach outside."""
    row = start + lane
    pointers = base + tl.cast(start, tl.int64) * stride + (lane[:, None] * stride + dim[None, :])  # within a tile 32 bits do
    if EDGE:
        return tl.load(pointers, mask=((row >= begin) & (row < end))[:, None] & (dim < WIDTH)[None, :], other=0.0)
    elif WIDTH < PADDED:
        return tl.load(pointers, mask=(dim < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _absorb(
    m, l, acc, q, position, k, v, stride_kt, stride_vt, start, stop, seen, t_k, left, right, inner, factor,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys start … stop: running maximum, sum and unnormalized output."""
    lane = tl.arange(0, BLOCK_K)
    for at in range(start, stop, BLOCK_K):
        keys = _tile(k, stride_kt, at, lane, seen, t_k, tl.arange(0, D_PAD), D, D_PAD, EDGE)  # (BLOCK_K, D)
        s = _scores(q, keys, inner, SOFTCAP)  # (BLOCK_Q, BLOCK_K)
        if EDGE:
            s = tl.where(_allowed(position[:, None], (at + lane)[None, :], t_k, left, right, LEFT, RIGHT), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: -inf - -inf is no logit
        p = tl.exp2(s * factor - (m_safe * factor)[:, None])
        rescale = tl.exp2(m * factor - m_safe * factor)
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        values = _tile(v, stride_vt, at, lane, seen, t_k, tl.arange(0, DV_PAD), DV, DV_PAD, EDGE)  # (BLOCK_K, DV)
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _forward_kernel(
    q, k, v, sink, o, lse,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, inner, factor,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SINK: tl.constexpr,
):  # fmt: skip
    b, h, block = _program(t_q, heads, BLOCK_Q, True)  # under a causal mask the last queries see most
    k += b * stride_kb + h // group * stride_kh
    v += b * stride_vb + h // group * stride_vh
    lane = tl.arange(0, BLOCK_Q)
    row = block * BLOCK_Q + lane
    row_wide = block.to(tl.int64) * BLOCK_Q + lane  # for offsets
    offset = t_k - t_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0  # the first key that any row of the sequence sees

    queries = _tile(
        q + b * stride_qb + h * stride_qh, stride_qt, block * BLOCK_Q, lane, 0, t_q, tl.arange(0, D_PAD), D, D_PAD, True
    )  # (BLOCK_Q, D)
    first = block * BLOCK_Q + offset
    last = tl.minimum(block * BLOCK_Q + BLOCK_Q, t_q) - 1 + offset
    begin, full, cease, end = _reach(first, last, left, right, t_k, LEFT, RIGHT, BLOCK_K)
    m = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, DV_PAD), tl.float32)
    for part in tl.static_range(0 if LEFT else 1, 3):
        start, stop = _part(part, begin, full, cease, end)
        m, l, acc = _absorb(
            m, l, acc, queries, row + offset, k, v, stride_kt, stride_vt, start, stop, seen, t_k, left, right, inner, factor,
            D, DV, D_PAD, DV_PAD, BLOCK_K, LEFT, RIGHT, SOFTCAP, part != 1,
        )  # fmt: skip

    empty = l == 0  # a row without keys: output 0, log-sum-exp -inf
    l = tl.where(empty, 1.0, l)
    natural = tl.where(empty, 0.0, (m * factor + tl.log2(l)) * LN2)
    acc = acc / l[:, None]
    if SINK:
        above = natural - tl.load(sink + h)
        small = tl.exp2(-tl.abs(above) * LOG2E)
        acc = acc * (tl.where(above > 0, 1.0, small) / (1 + small))[:, None]
    dim = tl.arange(0, DV_PAD)
    base = (b * t_q + row_wide) * heads + h
    tl.store(o + base[:, None] * DV + dim[None, :], acc.to(o.dtype.element_ty), mask=(row < t_q)[:, None] & (dim < DV)[None, :])
    tl.store(lse + (b * heads + h) * t_q + row_wide, tl.where(empty, float("-inf"), natural), mask=row < t_q)


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
def _query_gradient_kernel(
    q, k, v, do, lse, delta, dq,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, inner, factor, scale,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    b, h, block = _program(t_q, heads, BLOCK_Q, True)  # under a causal mask the last queries see most
    k += b * stride_kb + h // group * stride_kh
    v += b * stride_vb + h // group * stride_vh
    lane = tl.arange(0, BLOCK_Q)
    row = block * BLOCK_Q + lane
    row_wide = block.to(tl.int64) * BLOCK_Q + lane  # for offsets
    offset = t_k - t_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0
    dim = tl.arange(0, D_PAD)
    dim_v = tl.arange(0, DV_PAD)
    start = block * BLOCK_Q
    queries = _tile(q + b * stride_qb + h * stride_qh, stride_qt, start, lane, 0, t_q, dim, D, D_PAD, True)  # (BLOCK_Q, D)
    do += (b * t_q * heads + h) * DV
    gradients = _tile(do, heads * DV, start, lane, 0, t_q, dim_v, DV, DV_PAD, True)  # (BLOCK_Q, DV)
    at = (b * heads + h) * t_q + row_wide
    sums = tl.load(lse + at, mask=row < t_q, other=float("inf"))
    deltas = tl.load(delta + at, mask=row < t_q, other=0.0)

    last = tl.minimum(start + BLOCK_Q, t_q) - 1 + offset
    begin, _, _, end = _reach(start + offset, last, left, right, t_k, LEFT, RIGHT, BLOCK_K)
    acc = tl.zeros((BLOCK_Q, D_PAD), tl.float32)
    lane_k = tl.arange(0, BLOCK_K)
    for at_key in range(begin, end, BLOCK_K):
        keys = _tile(k, stride_kt, at_key, lane_k, seen, t_k, dim, D, D_PAD, True)  # (BLOCK_K, D)
        values = _tile(v, stride_vt, at_key, lane_k, seen, t_k, dim_v, DV, DV_PAD, True)  # (BLOCK_K, DV)
        s = _scores(queries, keys, inner, SOFTCAP)  # (BLOCK_Q, BLOCK_K)
        allowed = _allowed((row + offset)[:, None], (at_key + lane_k)[None, :], t_k, left, right, LEFT, RIGHT)
        p = tl.where(allowed, tl.exp2(s * factor - sums[:, None]), 0.0)
        ds = p * (tl.dot(gradients, tl.trans(values), input_precision="ieee") - deltas[:, None])
        if SOFTCAP:
            ds = ds * (1 - s * s)
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision="ieee")
    target = dq + ((b * t_q + row_wide) * heads + h)[:, None] * D + dim[None, :]
    tl.store(target, (scale * acc).to(dq.dtype.element_ty), mask=(row < t_q)[:, None] & (dim < D)[None, :])


@triton.jit
def _key_gradient_kernel(
    q, k, v, do, lse, delta, dk, dv,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, inner, factor, scale,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // group
    b, h, block = _program(t_k, kv_heads, BLOCK_K, False)
    start = block * BLOCK_K
    lane = tl.arange(0, BLOCK_K)
    key = start + lane
    offset = t_k - t_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0
    dim = tl.arange(0, D_PAD)
    dim_v = tl.arange(0, DV_PAD)
    keys = _tile(k + b * stride_kb + h * stride_kh, stride_kt, start, lane, seen, t_k, dim, D, D_PAD, True)  # (BLOCK_K, D)
    values = _tile(v + b * stride_vb + h * stride_vh, stride_vt, start, lane, seen, t_k, dim_v, DV, DV_PAD, True)  # (BLOCK_K, DV)
    last = tl.minimum(start + BLOCK_K, t_k) - 1 - offset
    begin, _, _, end = _reach(start - offset, last, right, left, t_q, RIGHT, LEFT, BLOCK_Q)
    acc_k = tl.zeros((BLOCK_K, D_PAD), tl.float32)
    acc_v = tl.zeros((BLOCK_K, DV_PAD), tl.float32)
    lane_q = tl.arange(0, BLOCK_Q)
    for head in range(h * group, h * group + group):  # the queries that share these keys, in order; tiles lie transposed, keys down
        rows = (b * heads + head) * t_q
        for at in range(begin, end, BLOCK_Q):
            row = at + lane_q
            queries = _tile(q + b * stride_qb + head * stride_qh, stride_qt, at, lane_q, 0, t_q, dim, D, D_PAD, True)  # (BLOCK_Q, D)
            gradients = _tile(do + (b * t_q * heads + head) * DV, heads * DV, at, lane_q, 0, t_q, dim_v, DV, DV_PAD, True)  # (BLOCK_Q, DV)
            sums = tl.load(lse + rows + row, mask=row < t_q, other=float("inf"))  # beyond the last row every probability is e^-inf
            deltas = tl.load(delta + rows + row, mask=row < t_q, other=0.0)
            s = _scores(keys, queries, inner, SOFTCAP)  # (BLOCK_K, BLOCK_Q)
            allowed = _allowed((row + offset)[None, :], key[:, None], t_k, left, right, LEFT, RIGHT)
            p = tl.where(allowed, tl.exp2(s * factor - sums[None, :]), 0.0)
            acc_v = tl.dot(p.to(gradients.dtype), gradients, acc_v, input_precision="ieee")
            ds = p * (tl.dot(values, tl.trans(gradients), input_precision="ieee") - deltas[None, :])
            if SOFTCAP:
                ds = ds * (1 - s * s)
            acc_k = tl.dot(ds.to(queries.dtype), queries, acc_k, input_precision="ieee")
    base = ((b * t_k + block.to(tl.int64) * BLOCK_K + lane) * kv_heads + h)[:, None]
    inside = (key < t_k)[:, None]
    tl.store(dk + base * D + dim[None, :], (scale * acc_k).to(dk.dtype.element_ty), mask=inside & (dim < D)[None, :])
    tl.store(dv + base * DV + dim_v[None, :], acc_v.to(dv.dtype.element_ty), mask=inside & (dim_v < DV)[None, :])


def forward_triton(q, k, v, sink, left, right, scale, softcap):
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV), sink (H,) or None -> o (B, Tq, H, DV), lse (B, H, Tq)."""
    q, k, v = _addressable(q, k, v)
    (b, t_q, heads, _), dv = q.shape, v.shape[3]
    o = q.new_empty(b, t_q, heads, dv)
    lse = q.new_empty(b, heads, t_q, dtype=torch.float32)
    if lse.numel():
        numbers, constants = _numbers(q, k, v, left, right, scale, softcap), _constants(q, v, left, right, softcap)
        tile, options = _configuration("forward", q, v)
        grid = (b * heads * triton.cdiv(t_q, tile["BLOCK_Q"]),)
        with torch.cuda.device_of(q):
            _forward_kernel[grid](q, k, v, sink, o, lse, *numbers, **constants, **tile, SINK=sink is not None, **options)
    return o, lse


def backward_triton(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap):
    """The gradients dq, dk, dv in the dtype of the inputs, and dsink (H,) in float32 (None without a sink)."""
    q, k, v = _addressable(q, k, v)
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    do, o = do.contiguous(), o.contiguous()
    d = lse.new_empty(b, heads, t_q)
    dq, dk, dv_ = (x.new_empty(x.shape) for x in (q, k, v))
    numbers, constants = _numbers(q, k, v, left, right, scale, softcap), _constants(q, v, left, right, softcap)
    with torch.cuda.device_of(q):
        if d.numel():
            rows, block = d.numel(), 64
            _row_products_kernel[(triton.cdiv(rows, block),)](o, do, d, rows, heads, t_q, dv, constants["DV_PAD"], block)
        sums, delta, dsink = row_terms(d, lse, dlse, sink)
        sums = sums * LOG2E.value
        if dq.numel():
            tile, options = _configuration("query", q, v)
            grid = (b * heads * triton.cdiv(t_q, tile["BLOCK_Q"]),)
            _query_gradient_kernel[grid](q, k, v, do, sums, delta, dq, *numbers, scale, **constants, **tile, **options)
        if dk.numel():
            tile, options = _configuration("key", q, v)
            grid = (b * kv_heads * triton.cdiv(t_k, tile["BLOCK_K"]),)
            _key_gradient_kernel[grid](q, k, v, do, sums, delta, dk, dv_, *numbers, scale, **constants, **tile, **options)
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


def _addressable(*tensors):
    """Rows at most 2^24 elements apart, so that offsets within a tile of 128 rows fit 32 bits; tensors of any size, copied if need be."""
    return [x if x.stride(1) < 2**24 else x.contiguous() for x in tensors]


def _score_map(scale: float, softcap: float | None) -> tuple[float, float]:
    """`inner` and `factor`: base-2 logits are factor · q·k, or factor · tanh(inner · q·k) under a cap."""
    return (1.0, scale * LOG2E.value) if softcap is None else (scale / softcap, softcap * LOG2E.value)


def _window(q, k, left, right):
    """Window bounds as integers that fit 32 bits: wider than the sequences is as wide as they are."""
    widest = q.shape[1] + k.shape[1]
    return widest if left is None else min(left, widest), widest if right is None else min(right, widest)


def _padded(q, v):
    return max(16, triton.next_power_of_2(q.shape[3])), max(16, triton.next_power_of_2(v.shape[3]))


def _configuration(form, q, v):
    return configuration(form, architecture(q), *_padded(q, v), q.element_size())


def _numbers(q, k, v, left, right, scale, softcap):
    """What every kernel is told of sizes, strides and scores, in the order of its parameters from `stride_qb` to `factor`."""
    strides = (stride for x in (q, k, v) for stride in x.stride()[:3])
    sizes = q.shape[2], q.shape[2] // k.shape[2], q.shape[1], k.shape[1]  # heads, group, t_q, t_k
    return *strides, *sizes, *_window(q, k, left, right), *_score_map(scale, softcap)


def _constants(q, v, left, right, softcap):
    d_pad, dv_pad = _padded(q, v)
    return {
        "D": q.shape[3], "DV": v.shape[3], "D_PAD": d_pad, "DV_PAD": dv_pad,
        "LEFT": left is not None, "RIGHT": right is not None, "SOFTCAP": softcap is not None,
    }  # fmt: skip


def variants() -> Iterator[Variant]:
    """Every configuration, with every switch on: the largest kernel that it compiles to."""
    kernels = {"forward": _forward_kernel, "query": _query_gradient_kernel, "key": _key_gradient_kernel}
    for form, dtype, width in itertools.product(kernels, ("bf16", "fp32"), (64, 128, 256)):
        picked: dict[str, list[int | str]] = {}
        for target in (80, 90, 100, 120, "gfx942"):
            picked.setdefault(str(configuration(form, target, width, width, 2 if dtype == "bf16" else 4)), []).append(target)
        for targets in picked.values():
            tile, options = configuration(form, targets[0], width, width, 2 if dtype == "bf16" else 4)
            switches = {"LEFT": True, "RIGHT": True, "SOFTCAP": True, "SINK": True}
            constants = {"D": width, "DV": width, "D_PAD": width, "DV_PAD": width, **tile, **switches}
            types = {name: "*fp32" for name in ("sink", "lse", "delta")} | {name: "fp32" for name in ("inner", "factor", "scale")}
            types |= {name: f"*{dtype}" for name in ("q", "k", "v", "o", "do", "dq", "dk", "dv")} | dict.fromkeys(constants, "constexpr")
            names = kernels[form].arg_names
            signature = {name: types.get(name, "i32") for name in names}
            divisible = tuple(name for name in names if signature[name].startswith("*") or name.startswith("stride"))
            constants = {name: value for name, value in constants.items() if name in names}
            tag = f"{form}-{dtype}-d{width}-{tile['BLOCK_Q']}x{tile['BLOCK_K']}-w{options['num_warps']}-s{options['num_stages']}"
            yield Variant(tag, kernels[form], signature, constants, options, divisible, tuple(targets))
