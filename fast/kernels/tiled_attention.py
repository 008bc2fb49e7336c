"""One tiled attention as Triton kernels: the forward pass here, the backward pass in `tiled_attention_backward`, twins in `…_torch`.

A program owns one block of rows and walks over the tiles of the other side. Tiles in which no row sees anything are not visited. In
the forward pass tiles that every row sees entirely run without a mask, only the rest (edges of a window, the tail of the sequence) is
masked. Which tiles those are follows from a window or from a list:

- A window: row i at position p = i + Tk - Tq sees the keys p - left … p + right; causal is right = 0.
- Packed sequences (`packing`): a table says which sequence, and which block of it, a program has; a window counts within the sequence.
- Any mask and any score (`mods`) are device functions of batch, head, row and key, compiled into the kernel. `blocks` lists, for each block
    of rows, the full and the partial blocks of keys; a walk over a list is a walk over its positions, each of which `_at` looks up.

Precision: products of the inputs as they are, accumulated in float32; the softmax in float32 with base 2, the scale folded into its
exponent; probabilities and their gradients enter matrix products in the dtype of the inputs, the sum l is that of the unrounded ones.

Score and factor: a tile's scores are the raw products q·k, or tanh(q·k · inner) under a cap; times `factor` they are logits in base 2.
Both maps are increasing, so that the running maximum is one of scores. Under a score function they are natural logits: it is given
scores times `outer`, and may return anything.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from twofold.fast.kernels.attention_mods import Mods, kernel_function
from twofold.fast.kernels.packed_sequences import Packing, table
from twofold.fast.kernels.tiled_attention_config import architecture, configuration
from twofold.fast.kernels.variant import Variant

__all__ = ["Blocks", "forward_triton", "variants"]

NOTHING = Mods()
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
def _program(table, t_q, t_k, length, heads, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr, PACKED: tl.constexpr):
    """This program's batch and head, its block, and its sequence: first row, rows, first key, keys. What meets a stride is wide."""
    if PACKED:
        programs = tl.num_programs(0) // heads
        entry = table + tl.program_id(0) % programs * 5
        first_q, n_q, first_k, n_k = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
        b, h, block = 0, tl.program_id(0) // programs, tl.load(entry + 4)
    else:
        blocks = tl.cdiv(length, BLOCK)
        first_q, n_q, first_k, n_k = 0, t_q, 0, t_k
        b, h = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
        block = tl.program_id(0) % blocks
        if LAST_FIRST:  # under a causal mask the last rows see most
            block = blocks - 1 - block
    return tl.cast(b, tl.int64), tl.cast(h, tl.int64), block, tl.cast(first_q, tl.int64), n_q, tl.cast(first_k, tl.int64), n_k


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
def _listed(lists, part: tl.constexpr, line, SIZE: tl.constexpr):
    """The same for blocks of SIZE along a list: no tile has an edge of a window, full blocks come first, then partial ones."""
    offsets = lists[2 * part - 2] + line
    begin, end = tl.load(offsets), tl.load(offsets + 1)
    return 0, (end - begin) * SIZE, lists[2 * part - 1] + begin  # counted in the line: all lines together may have 2^31 keys and more


@triton.jit
def _at(listed, step, SIZE: tl.constexpr):
    """Where a walk stands after so many steps: there, or that far into the listed blocks."""
    if SIZE:
        return tl.load(listed + step // SIZE) + step % SIZE
    else:
        return step


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
    m, l, acc, q, b, h, row, offset, k, v, stride_kt, stride_vt, start, stop, listed, seen, n_q, n_k, left, right,
    inner, outer, factor, tables, numbers,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SPARSE_K: tl.constexpr,
    EDGE: tl.constexpr, MASK: tl.constexpr, SCORE: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys start … stop: running maximum, sum and unnormalized output."""
    lane = tl.arange(0, BLOCK_K)
    for step in range(start, stop, BLOCK_K):
        at = _at(listed, step, SPARSE_K)
        keys = _tile(k, stride_kt, at, lane, seen, n_k, tl.arange(0, D_PAD), D, D_PAD, EDGE)  # (BLOCK_K, D)
        s = _scores(q, keys, inner, SOFTCAP)  # (BLOCK_Q, BLOCK_K)
        i, j = tl.minimum(row, n_q - 1)[:, None], tl.minimum(at + lane, n_k - 1)[None, :]  # what a mask or score may look up
        if SCORE is not None:
            s = tl.broadcast_to(SCORE(s * outer, b, h, i, j, tables, numbers), s.shape)
        if EDGE:
            s = tl.where(_allowed((row + offset)[:, None], (at + lane)[None, :], n_k, left, right, LEFT, RIGHT), s, float("-inf"))
        if MASK is not None:
            s = tl.where(MASK(b, h, i, j, tables, numbers), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet: -inf - -inf is no logit
        p = tl.exp2(s * factor - (m_safe * factor)[:, None])
        rescale = tl.exp2(m * factor - m_safe * factor)
        l = l * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        values = _tile(v, stride_vt, at, lane, seen, n_k, tl.arange(0, DV_PAD), DV, DV_PAD, EDGE)  # (BLOCK_K, DV)
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _forward_kernel(
    q, k, v, sink, o, lse, table, lists, tables, numbers,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, inner, outer, factor,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, SINK: tl.constexpr, PACKED: tl.constexpr,
    SPARSE_Q: tl.constexpr, SPARSE_K: tl.constexpr, MASK: tl.constexpr, SCORE: tl.constexpr,
):  # fmt: skip
    b, h, block, first_q, n_q, first_k, n_k = _program(table, t_q, t_k, t_q, heads, BLOCK_Q, True, PACKED)
    q += b * stride_qb + first_q * stride_qt + h * stride_qh
    k += b * stride_kb + first_k * stride_kt + h // group * stride_kh
    v += b * stride_vb + first_k * stride_vt + h // group * stride_vh
    lane = tl.arange(0, BLOCK_Q)
    row = block * BLOCK_Q + lane
    offset = n_k - n_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0  # the first key that any row of the sequence sees

    queries = _tile(q, stride_qt, block * BLOCK_Q, lane, 0, n_q, tl.arange(0, D_PAD), D, D_PAD, True)  # (BLOCK_Q, D)
    first = block * BLOCK_Q + offset
    last = tl.minimum(block * BLOCK_Q + BLOCK_Q, n_q) - 1 + offset
    begin, full, cease, end = _reach(first, last, left, right, n_k, LEFT, RIGHT, BLOCK_K)
    m = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, DV_PAD), tl.float32)
    for part in tl.static_range(0 if LEFT else 1, 3):
        if SPARSE_K:
            start, stop, listed = _listed(lists, part, block * BLOCK_Q // SPARSE_Q, SPARSE_K)
        else:
            start, stop = _part(part, begin, full, cease, end)
            listed = lists
        m, l, acc = _absorb(
            m, l, acc, queries, b, h, row, offset, k, v, stride_kt, stride_vt, start, stop, listed, seen, n_q, n_k, left, right,
            inner, outer, factor, tables, numbers, D, DV, D_PAD, DV_PAD, BLOCK_K, LEFT, RIGHT, SOFTCAP, SPARSE_K,
            part != 1 or SPARSE_K > 0, MASK if part != 1 or SPARSE_K == 0 else None, SCORE,
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
    row_wide = first_q + block.to(tl.int64) * BLOCK_Q + lane
    base = (b * t_q + row_wide) * heads + h
    tl.store(o + base[:, None] * DV + dim[None, :], acc.to(o.dtype.element_ty), mask=(row < n_q)[:, None] & (dim < DV)[None, :])
    tl.store(lse + (b * heads + h) * t_q + row_wide, tl.where(empty, float("-inf"), natural), mask=row < n_q)


class Blocks(NamedTuple):
    """Which blocks of `rows` by `keys` pairs are full and which partial: for each line of blocks, and transposed, for each column.

    Each list is two int32 tensors: where a line's entries begin, (lines + 1,), and the entries, ascending in each line.
    """

    rows: int
    keys: int
    lines: tuple[Tensor, Tensor, Tensor, Tensor]  # full offsets, full, partial offsets, partial
    columns: tuple[Tensor, Tensor, Tensor, Tensor]


def forward_triton(q, k, v, sink, left, right, scale, softcap, packing: Packing | None = None, mods=NOTHING, blocks: Blocks | None = None):
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV), sink (H,) or None -> o (B, Tq, H, DV), lse (B, H, Tq).

    Packed sequences lie in a batch of 1; rows of no sequence have output 0 and log-sum-exp -inf.
    """
    q, k, v = _addressable(q, k, v)
    (b, t_q, heads, _), dv = q.shape, v.shape[3]
    o = q.new_empty(b, t_q, heads, dv) if packing is None else q.new_zeros(b, t_q, heads, dv)
    lse = q.new_full((b, heads, t_q), -math.inf, dtype=torch.float32) if packing else q.new_empty(b, heads, t_q, dtype=torch.float32)
    if lse.numel():
        tile, options = _configuration("forward", q, v, blocks)
        entries, programs = _programs(packing, b, t_q, tile["BLOCK_Q"], keys=False)
        with torch.cuda.device_of(q):
            _forward_kernel[(programs * heads,)](
                q, k, v, sink, o, lse, entries, blocks and _starts(blocks.lines, blocks.keys), *_values(mods),
                *_numbers(q, k, v, left, right, scale, softcap, mods),
                **_constants(q, v, left, right, softcap, packing, mods, blocks), **tile, SINK=sink is not None, **options,
            )  # fmt: skip
    return o, lse


def _addressable(*tensors):
    """Rows at most 2^24 elements apart, so that offsets within a tile of 128 rows fit 32 bits; tensors of any size, copied if need be."""
    return [x if x.stride(1) < 2**24 else x.contiguous() for x in tensors]


def _score_map(scale: float, softcap: float | None, mods: Mods = NOTHING) -> tuple[float, float, float]:
    """`inner`, `outer` and `factor`: natural logits are outer · q·k, or outer · tanh(inner · q·k) under a cap; see the module."""
    inner, outer = (1.0, scale) if softcap is None else (scale / softcap, softcap)
    return inner, outer, (1.0 if mods.score else outer) * LOG2E.value


def _programs(packing, b, length, block, keys):
    """The table of blocks of packed rows (or keys), None where sequences are not packed; and how many programs a head needs."""
    if packing is None:
        return None, b * triton.cdiv(length, block)
    entries = table(packing, length, block, keys)
    return entries, len(entries)


def _starts(lists, size):
    """Lists as the kernel walks them: of each block its first key (or row), whose number fits 32 bits."""
    full_at, full, partial_at, partial = lists
    return full_at, full * size, partial_at, partial * size


def _values(mods):
    """Tables and numbers of the mods as the kernel takes them."""
    return tuple(x.contiguous() for x in mods.tables) or None, tuple(mods.numbers) or None


def _window(q, k, left, right):
    """Window bounds as integers that fit 32 bits: wider than the sequences is as wide as they are."""
    widest = q.shape[1] + k.shape[1]
    return widest if left is None else min(left, widest), widest if right is None else min(right, widest)


def _padded(q, v):
    return max(16, triton.next_power_of_2(q.shape[3])), max(16, triton.next_power_of_2(v.shape[3]))


def _configuration(form, q, v, blocks=None):
    """Tile and options; listed blocks are walked in tiles that divide them."""
    tile, options = configuration(form, architecture(q), *_padded(q, v), q.element_size())
    if blocks is not None:
        tile = {"BLOCK_Q": math.gcd(tile["BLOCK_Q"], blocks.rows), "BLOCK_K": math.gcd(tile["BLOCK_K"], blocks.keys)}
    return tile, options


def _numbers(q, k, v, left, right, scale, softcap, mods):
    """What every kernel is told of sizes, strides and scores, in the order of its parameters from `stride_qb` to `factor`."""
    return *_sizes(q, k, v, left, right), *_score_map(scale, softcap, mods)


def _sizes(q, k, v, left, right):
    """Strides, sizes and the window, from `stride_qb` to `right`."""
    strides = (stride for x in (q, k, v) for stride in x.stride()[:3])
    sizes = q.shape[2], q.shape[2] // k.shape[2], q.shape[1], k.shape[1]  # heads, group, t_q, t_k
    return *strides, *sizes, *_window(q, k, left, right)


def _windowed(q, v, left, right):
    """The constants of every walk within a window."""
    d_pad, dv_pad = _padded(q, v)
    widths = {"D": q.shape[3], "DV": v.shape[3], "D_PAD": d_pad, "DV_PAD": dv_pad}
    return widths | {"LEFT": left is not None, "RIGHT": right is not None}


def _constants(q, v, left, right, softcap, packing, mods, blocks):
    return _windowed(q, v, left, right) | {
        "SOFTCAP": softcap is not None, "PACKED": packing is not None,
        "SPARSE_Q": blocks.rows if blocks else 0, "SPARSE_K": blocks.keys if blocks else 0,
        "MASK": kernel_function("mask", mods.mask), "SCORE": kernel_function("score", mods.score),
    }  # fmt: skip


def variants() -> Iterator[Variant]:
    """Every configuration for sequences of one length, packed ones and blocks, each with every switch on that goes with it."""
    types = {"sink": "*fp32", "lse": "*fp32"}
    yield from variants_of({"forward": _forward_kernel}, types, ("q", "k", "v", "o"), {"SINK": True})


WINDOW = {"LEFT": True, "RIGHT": True, "SOFTCAP": True, "PACKED": False, "SPARSE_Q": 0, "SPARSE_K": 0}
MASK = "((read(tables[0], i) >= read(tables[0], j)) & ((j - i) < numbers[0]))"
SCORE, SLOPE = "(s * read(tables[1], h) + (s * s) * numbers[1])", "(read(tables[1], h) + numbers[1] * s)"
FUNCTIONS = {"MASK": kernel_function("mask", MASK), "SCORE": kernel_function("score", SCORE), "SLOPE": kernel_function("slope", SLOPE)}
KINDS: dict[str, dict[str, Any]] = {
    "window": WINDOW | dict.fromkeys(FUNCTIONS),
    "packed": WINDOW | dict.fromkeys(FUNCTIONS) | {"PACKED": True},
    "blocks": {"LEFT": False, "RIGHT": False, "SOFTCAP": False, "PACKED": False, "SPARSE_Q": 128, "SPARSE_K": 128} | FUNCTIONS,
}


def variants_of(kernels: dict[str, Any], types: dict[str, str], tensors: tuple[str, ...], more: dict[str, Any]) -> Iterator[Variant]:
    """The kernels of these forms in every kind, dtype and width, for the targets that share a configuration."""
    for form, kind, dtype, width in itertools.product(kernels, KINDS, ("bf16", "fp32"), (64, 128, 256)):
        picked: dict[str, list[int | str]] = {}
        for target in (80, 90, 100, 120, "gfx942"):
            picked.setdefault(str(configuration(form, target, width, width, 2 if dtype == "bf16" else 4)), []).append(target)
        for targets in picked.values():
            tile, options = configuration(form, targets[0], width, width, 2 if dtype == "bf16" else 4)
            constants = {"D": width, "DV": width, "D_PAD": width, "DV_PAD": width, **tile, **more, **KINDS[kind]}
            names = kernels[form].arg_names
            if kind != "blocks":
                constants |= {"lists": None, "tables": None, "numbers": None}
            if kind != "packed":
                constants["table"] = None
            constants = {name: value for name, value in constants.items() if name in names}
            by_name: dict[str, Any] = dict.fromkeys(("inner", "outer", "factor", "scale"), "fp32") | types
            by_name |= {"table": "*i32", "lists": ("*i32",) * 4, "tables": ("*i32", "*fp32"), "numbers": ("i32", "fp32")}
            by_name |= dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(constants, "constexpr")
            signature = {name: by_name.get(name, "i32") for name in names}
            divisible = tuple(name for name in names if name.startswith("stride") or str(signature[name]).startswith("*"))
            tag = f"{form}-{kind}-{dtype}-d{width}-{tile['BLOCK_Q']}x{tile['BLOCK_K']}-w{options['num_warps']}-s{options['num_stages']}"
            yield Variant(tag, kernels[form], signature, constants, options, divisible, tuple(targets))
