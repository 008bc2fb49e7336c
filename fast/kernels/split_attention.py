"""Attention of a few query rows over a long cache, split along the keys: kernel and operators; `split_attention_torch` is the twin.

A program owns one key head of one sequence, all query rows that read it (the g query heads of the group times N rows, packed into one
tile), and one chunk of the keys: every key and value is read once. Chunks have a fixed size, so what happens to a sequence depends on its
own length and on nothing else in the batch; `bounds` cuts anywhere instead. Each chunk leaves a normalized output and its log-sum-exp in
float32, and `combine_splits` merges those of the chunks that were visited; nobody reads the others.

Keys lie in rows (B, Tk, Hkv, D), or in blocks (n_blocks, page, Hkv, D) that `table` names. The table is read once per tile, as a vector
if the tile spans blocks. Entries behind a sequence's end, or in front of its window, are not read at all.

Two hooks. Keys may have a second part that all heads share: logits are q·k + q_rest·k_rest, as in latent attention. Without `v` the keys
are the values as well, and read once. How a key or value is stored is known to `_stored` only: a quantized cache is decoded there.

Precision as in `tiled_attention`: float32 sums, softmax in base 2, probabilities rounded to the dtype of the values before their product.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels import kv_formats, split_attention_torch
from twofold.fast.kernels.combine_splits import combine_triton, share
from twofold.fast.kernels.kv_formats import NUMBERS, PLAIN, stored_tile
from twofold.fast.kernels.split_attention_config import configuration
from twofold.fast.kernels.tiled_attention import LN2, _allowed, _reach, _score_map, _tanh
from twofold.fast.kernels.tiled_attention_config import architecture
from twofold.fast.kernels.variant import Variant

__all__ = ["SIZE", "demand_places", "split_attention", "split_partials", "variants"]

SIZE = 512  # tokens per chunk
POINTERS = ("q", "k", "k_scale", "k_zero", "v", "v_scale", "v_zero", "q_rest", "k_rest")  # of the dtype of the queries, or a format's


@triton.jit
def _load(base, offset, valid, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The rows at these offsets; zeros where not valid, and beyond the head's width."""
    dim = tl.arange(0, PADDED)
    mask = valid[:, None] & (dim < WIDTH)[None, :] if WIDTH < PADDED else valid[:, None]
    return tl.load(base + offset[:, None] + dim[None, :], mask=mask, other=0.0)


@triton.jit
def _stored(
    x, scale, zero, stride_b, stride_t, stride_pb, stride_pt, block, slot, valid,
    TYPE: tl.constexpr, FORMAT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """A tile of keys or values (BLOCK_N, WIDTH) of one head, from these slots of these blocks."""
    if FORMAT[0] == "plain":
        return _load(x, block * stride_b + slot * stride_t, valid, WIDTH, PADDED)
    else:
        return stored_tile(x, scale, zero, stride_b, stride_t, stride_pb, stride_pt, block, slot, valid, TYPE, FORMAT, WIDTH, PADDED)


@triton.jit
def _places(table, b, first, lane, valid, PAGE: tl.constexpr, WITHIN: tl.constexpr):
    """Block and slot of the tokens first + lane, wide enough for offsets. WITHIN: no tile spans two blocks."""
    if PAGE == 0:  # one long row per sequence
        return b, tl.cast(first, tl.int64) + lane
    elif WITHIN:
        return tl.load(table + first // PAGE).to(tl.int64), (first % PAGE + lane).to(tl.int64)
    else:
        token = first + lane
        return tl.load(table + token // PAGE, mask=valid, other=0).to(tl.int64), (token % PAGE).to(tl.int64)


@triton.jit
def _absorb(
    m, l, acc, q, q_rest, position, k, k_scale, k_zero, v, v_scale, v_zero, k_rest, table, b,
    stride_kb, stride_kt, stride_xb, stride_xt, stride_vb, stride_vt, stride_yb, stride_yt, stride_sb, stride_st,
    begin, end, seen, stop, left, right, inner, factor,
    D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, R_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr, PAGE: tl.constexpr, WITHIN: tl.constexpr, TIED: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, K_FORMAT: tl.constexpr, V_FORMAT: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys begin … end: running maximum, sum and unnormalized output."""
    lane = tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        key = first + lane
        valid = (key >= seen) & (key < stop)
        block, slot = _places(table, b, first, lane, valid, PAGE, WITHIN)
        keys = _stored(
            k, k_scale, k_zero, stride_kb, stride_kt, stride_xb, stride_xt, block, slot, valid, q.dtype, K_FORMAT, D, D_PAD
        )  # (BLOCK_N, D)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        if R > 0:
            rest = _load(k_rest, block * stride_sb + slot * stride_st, valid, R, R_PAD)  # (BLOCK_N, R)
            s = tl.dot(q_rest, tl.trans(rest), s, input_precision="ieee")
        if SOFTCAP:
            s = _tanh(s * inner)
        s = tl.where(_allowed(position[:, None], key[None, :], stop, left, right, LEFT, RIGHT), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: -inf - -inf is no logit
        p = tl.exp2(s * factor - (m_safe * factor)[:, None])
        rescale = tl.exp2(m * factor - m_safe * factor)
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        if TIED:
            values = keys
        else:
            values = _stored(
                v, v_scale, v_zero, stride_vb, stride_vt, stride_yb, stride_yt, block, slot, valid, q.dtype, V_FORMAT, DV, DV_PAD
            )  # (BLOCK_N, DV)
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _chunk(bounds, s, size, t_k, BOUNDS: tl.constexpr):
    """The keys of chunk s, as many as the sequence has."""
    if BOUNDS:
        return tl.minimum(tl.load(bounds + s), t_k), tl.minimum(tl.load(bounds + s + 1), t_k)
    else:
        return s * size, tl.minimum(s * size + size, t_k)


@triton.jit
def _split_kernel(
    q, k, k_scale, k_zero, v, v_scale, v_zero, q_rest, k_rest, table, length, bounds, sink, o, lse,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_rb, stride_rt, stride_rh, stride_sb, stride_st, stride_xb, stride_xt, stride_xh, stride_yb, stride_yt, stride_yh, stride_table,
    batch, kv_heads, group, t_q, capacity, splits, size, left, right, inner, factor,
    D: tl.constexpr, DV: tl.constexpr, R: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, R_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, WITHIN: tl.constexpr, TIED: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SINK: tl.constexpr, LENGTH: tl.constexpr, BOUNDS: tl.constexpr,
    ALL: tl.constexpr, K_FORMAT: tl.constexpr, V_FORMAT: tl.constexpr,
):  # fmt: skip
    """ALL: every chunk leaves a result, also one that holds nothing. The sink is applied here where there is one chunk only."""
    tiles = tl.cdiv(t_q * group, BLOCK_M)
    tile = tl.program_id(0) % tiles
    h = (tl.program_id(0) // tiles % kv_heads).to(tl.int64)
    s = tl.program_id(0) // tiles // kv_heads % splits
    b = (tl.program_id(0) // tiles // kv_heads // splits).to(tl.int64)
    t_k = tl.minimum(tl.maximum(tl.load(length + b), 0), capacity).to(tl.int32) if LENGTH else capacity
    offset = t_k - t_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0  # the first key that any row of the sequence sees
    start, stop = _chunk(bounds, s, size, t_k, BOUNDS)
    if ALL or ((start < t_k) & (stop > seen)):
        lane = tl.arange(0, BLOCK_M)
        packed = tile * BLOCK_M + lane
        row, head = packed // group, h * group + packed % group
        row_wide, inside = row.to(tl.int64), row < t_q
        queries = _load(q, b * stride_qb + row_wide * stride_qt + head * stride_qh, inside, D, D_PAD)  # (BLOCK_M, D)
        if R > 0:
            rests = _load(q_rest, b * stride_rb + row_wide * stride_rt + head * stride_rh, inside, R, R_PAD)  # (BLOCK_M, R)
        else:
            rests = queries
        k += h * stride_kh
        if not TIED:
            v += h * stride_vh
        if K_FORMAT[0] != "plain":
            k_scale += h * stride_xh
            v_scale += h * stride_yh
        if K_FORMAT[0] == "grid":
            k_zero += h * stride_xh
            v_zero += h * stride_yh
        if PAGE > 0:
            table += b * stride_table

        # positions count from the chunk's start, where its tiles begin
        first = tile * BLOCK_M // group + offset - start
        last = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // group, t_q - 1) + offset - start
        begin, _, _, end = _reach(first, last, left, right, tl.maximum(stop - start, 0), LEFT, RIGHT, BLOCK_N)
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, DV_PAD), tl.float32)
        m, l, acc = _absorb(
            m, l, acc, queries, rests, row + offset, k, k_scale, k_zero, v, v_scale, v_zero, k_rest, table, b,
            stride_kb, stride_kt, stride_xb, stride_xt, stride_vb, stride_vt, stride_yb, stride_yt, stride_sb, stride_st,
            start + begin, start + end, seen, stop, left, right, inner, factor,
            D, DV, R, D_PAD, DV_PAD, R_PAD, BLOCK_N, PAGE, WITHIN, TIED, LEFT, RIGHT, SOFTCAP, K_FORMAT, V_FORMAT,
        )  # fmt: skip

        empty = l == 0  # a row without keys: output 0, log-sum-exp -inf
        l = tl.where(empty, 1.0, l)
        natural = tl.where(empty, 0.0, (m * factor + tl.log2(l)) * LN2)
        acc = acc / l[:, None]
        heads = kv_heads * group
        if SINK:
            acc = acc * share(natural, tl.load(sink + head, mask=inside, other=0.0))[:, None]
        dim = tl.arange(0, DV_PAD)
        part_of = s.to(tl.int64) * batch + b
        target = o + ((part_of * t_q + row_wide) * heads + head)[:, None] * DV + dim[None, :]
        tl.store(target, acc.to(o.dtype.element_ty), mask=inside[:, None] & (dim < DV)[None, :])
        tl.store(lse + (part_of * heads + head) * t_q + row_wide, tl.where(empty, float("-inf"), natural), mask=inside)


def split_attention(
    q: Tensor, k: Tensor, v: Tensor | None, *, sink: Tensor | None = None, q_rest: Tensor | None = None, k_rest: Tensor | None = None,
    table: Tensor | None = None, length: Tensor | None = None, bounds: Tensor | None = None, size: int = SIZE,
    left: int | None = None, right: int | None = None, scale: float, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, N, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV) -> o (B, N, H, DV) in the dtype of q, lse (B, H, N) in float32.

    With `table` (B, n), k and v are pools (n_blocks, page, Hkv, ·). `length` (B,) is how many keys each sequence has, all of them if left
    out. `q_rest` (B, N, H, R) and `k_rest` (B, Tk, R), or (n_blocks, page, R), are the part of the keys that all heads share. Without `v`
    the keys are the values. `bounds` (S + 1,) cuts the keys of every sequence there instead of every `size` tokens. No gradients.
    """
    return _attention(q, k, v, sink, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap)


def split_partials(
    q: Tensor, k: Tensor, v: Tensor | None, *, q_rest: Tensor | None = None, k_rest: Tensor | None = None,
    table: Tensor | None = None, length: Tensor | None = None, bounds: Tensor | None = None, size: int = SIZE,
    left: int | None = None, right: int | None = None, scale: float, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same before chunks are combined: o (S, B, N, H, DV) and lse (S, B, H, N), float32."""
    return _partials(q, k, v, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap)


@torch.library.custom_op("twofold::split_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor | None, sink: Tensor | None, q_rest: Tensor | None, k_rest: Tensor | None, table: Tensor | None,
    length: Tensor | None, bounds: Tensor | None, size: int, left: int | None, right: int | None, scale: float, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    demand_places(k, table, length)
    run = _attention_triton if backend.triton(q) else split_attention_torch.attention
    return run(q, k, k if v is None else v, sink, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap)


@_attention.register_fake
def _(q, k, v, sink, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap):
    b, n, heads, _ = q.shape
    return q.new_empty(b, n, heads, (k if v is None else v).shape[3]), q.new_empty(b, heads, n, dtype=torch.float32)


@torch.library.custom_op("twofold::split_attention_partials", mutates_args=())
def _partials(
    q: Tensor, k: Tensor, v: Tensor | None, q_rest: Tensor | None, k_rest: Tensor | None, table: Tensor | None, length: Tensor | None,
    bounds: Tensor | None, size: int, left: int | None, right: int | None, scale: float, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    demand_places(k, table, length)
    run = _partials_triton if backend.triton(q) else split_attention_torch.partials
    return run(q, k, k if v is None else v, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap)


@_partials.register_fake
def _(q, k, v, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap):
    return _empty(_splits(k, table, bounds, size), q, k if v is None else v, torch.float32)


def demand_places(k, table, length):
    """On the CPU, lengths without room and table entries that name no block are errors. A GPU would have to be waited for."""
    if k.is_cuda or length is None or not length.numel():
        return
    capacity = _capacity(k, table)
    if length.min() < 0 or length.max() > capacity:
        raise ValueError(f"length must lie between 0 and {capacity}, which is all there is room for, not be {length.tolist()}")
    if table is not None:
        used = torch.arange(table.shape[1]) * k.shape[1] < length[:, None]  # (B, n)
        wrong = used & ((table < 0) | (table >= k.shape[0]))
        if wrong.any():
            b, i = wrong.nonzero()[0].tolist()
            raise ValueError(f"table must name blocks from 0 to {k.shape[0] - 1}, but entry ({b}, {i}) is {int(table[b, i])}")


def _capacity(k, table):
    """How many keys a sequence can have."""
    return k.shape[1] if table is None else table.shape[1] * k.shape[1]


def _splits(k, table, bounds, size):
    return triton.cdiv(_capacity(k, table), size) if bounds is None else bounds.shape[0] - 1


def _empty(splits, q, v, dtype):
    b, n, heads, _ = q.shape
    return q.new_empty(splits, b, n, heads, v.shape[3], dtype=dtype), q.new_empty(splits, b, heads, n, dtype=torch.float32)


def _attention_triton(q, k, v, sink, *options):
    _, _, table, length, bounds, size, left, *_ = options
    splits = _splits(k, table, bounds, size)
    if splits == 1:
        o, lse = _empty(1, q, v, q.dtype)
        _launch(o, lse, True, q, k, v, sink, *options)
        return o[0], lse[0]
    o, lse = _empty(splits, q, v, torch.float32)
    _launch(o, lse, bounds is not None, q, k, v, None, *options)
    if bounds is not None:
        return combine_triton(o, lse, q.dtype, sink)
    return combine_triton(o, lse, q.dtype, sink, length, _capacity(k, table), size, left)


def _partials_triton(q, k, v, *options):
    _, _, table, _, bounds, size, *_ = options
    o, lse = _empty(_splits(k, table, bounds, size), q, v, torch.float32)
    _launch(o, lse, True, q, k, v, None, *options)
    return o, lse


def _launch(o, lse, everything, q, k, v, sink, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap, stored=NUMBERS):
    """Fill o (S, B, N, H, DV) and lse (S, B, H, N), all chunks or those that a sequence sees; `stored`: how keys and values are."""
    if not lse.numel():
        return
    (batch, t_q, heads, d), kv_heads, dv, rest = q.shape, k.shape[2], o.shape[4], 0 if q_rest is None else q_rest.shape[3]
    pads = [max(16, triton.next_power_of_2(width)) if width else 0 for width in (d, dv, rest)]
    page, capacity, group = 0 if table is None else k.shape[1], _capacity(k, table), heads // kv_heads
    if stored is NUMBERS:
        tile, options = configuration(architecture(q), t_q * group, *pads, q.element_size(), page > 0)
    else:
        tile, options = kv_formats.configuration(architecture(q), t_q * group, max(pads), q.element_size(), stored[0].format)
    strides = [*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]]
    strides += [0] * 5 if q_rest is None else [*q_rest.stride()[:3], *k_rest.stride()[:2]]
    for _, parameters, _ in stored:
        strides += [0] * 3 if parameters is None else parameters.stride()[:3]
    widest = t_q + capacity  # wider windows are as wide, and fit 32 bits
    window = [widest if bound is None else min(bound, widest) for bound in (left, right)]
    constants = {
        "D": d, "DV": dv, "R": rest, "D_PAD": pads[0], "DV_PAD": pads[1], "R_PAD": pads[2], "PAGE": page,
        "WITHIN": page > 0 and bounds is None and page % tile["BLOCK_N"] == size % tile["BLOCK_N"] == 0, "TIED": v is k,
        "LEFT": left is not None, "RIGHT": right is not None, "SOFTCAP": softcap is not None, "SINK": sink is not None,
        "LENGTH": length is not None, "BOUNDS": bounds is not None, "ALL": everything,
        "K_FORMAT": stored[0].format, "V_FORMAT": stored[1].format,
    }  # fmt: skip
    inner, _, factor = _score_map(scale, softcap)
    grid = (triton.cdiv(t_q * group, tile["BLOCK_M"]) * kv_heads * len(lse) * batch,)
    with torch.cuda.device_of(q):
        _split_kernel[grid](
            q, k, *stored[0][1:], v, *stored[1][1:], q_rest, k_rest, table, length, bounds, sink, o, lse,
            *strides, 0 if table is None else table.stride(0),
            batch, kv_heads, group, t_q, capacity, len(lse), size, *window, inner, factor, **constants, **tile, **options,
        )  # fmt: skip


def variants() -> Iterator[Variant]:
    """Every configuration, with every switch on: rows of keys, pools of blocks smaller and larger than a tile, latents."""
    shapes = {"d64": (64, 64, 0), "d128": (128, 128, 0), "d256": (256, 256, 0), "latent": (512, 512, 64)}
    sizes = {"bf16": 2, "fp32": 4}
    targets: tuple[int | str, ...] = (80, 90, 100, 120, "gfx942")
    picked: dict[str, tuple[dict, dict, str, dict[int | str, None]]] = {}
    for shape, dtype, rows, page, target in itertools.product(shapes, sizes, (16, 32, 64), (0, 16, 256), targets):
        d, dv, rest = shapes[shape]
        tile, options = configuration(target, rows, d, dv, rest, sizes[dtype], page > 0)
        constants = {
            "D": d, "DV": dv, "R": rest, "D_PAD": d, "DV_PAD": dv, "R_PAD": rest, "PAGE": page, "TIED": rest > 0, **tile,
            "WITHIN": page > 0 and page % tile["BLOCK_N"] == 0, "BOUNDS": False, "ALL": False,
            "K_FORMAT": PLAIN, "V_FORMAT": PLAIN,
        } | dict.fromkeys(("LEFT", "RIGHT", "SOFTCAP", "SINK", "LENGTH"), True)  # fmt: skip
        tag = f"{shape}-{dtype}-page{page}-{tile['BLOCK_M']}x{tile['BLOCK_N']}-w{options['num_warps']}-s{options['num_stages']}"
        picked.setdefault(tag, (constants, options, dtype, {}))[-1][target] = None
    for tag, (constants, options, dtype, where) in picked.items():
        types = dict.fromkeys(("table", "length", "bounds"), "*i32") | dict.fromkeys(("sink", "lse", "o"), "*fp32")
        types |= dict.fromkeys(POINTERS, f"*{dtype}") | {"inner": "fp32", "factor": "fp32"}
        types |= dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "i32") for name in _split_kernel.arg_names}
        divisible = tuple(name for name in signature if signature[name].startswith("*") or name.startswith("stride"))
        yield Variant(tag, _split_kernel, signature, constants, options, divisible, tuple(where))
