"""Merge the chunks of split attention: outputs (S, B, N, H, DV) and log-sum-exps (S, B, H, N) become one of each. Kernel and twin.

A program owns one row of one head and reads the log-sum-exps of its chunks, then the outputs, in an order that depends on the row's own
chunks only. A chunk whose log-sum-exp is -inf holds no key: its output is not read. Inside `split_attention` the chunks behind a
sequence's end, or in front of its window, were never written, and neither is read.
"""

import itertools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels.tiled_attention import LN2, LOG2E
from twofold.fast.kernels.variant import Variant

__all__ = ["combine_splits", "combine_torch", "combine_triton", "share", "variants"]

BLOCK_S = 16


@triton.jit
def share(natural, sink):
    """What a sink leaves to the keys, sigma(L - z); never overflows, however far apart the two are."""
    above = natural - sink
    small = tl.exp2(-tl.abs(above) * LOG2E)
    return tl.where(above > 0, 1.0, small) / (1 + small)


@triton.jit
def _combine_kernel(
    parts, sums, length, sink, o, lse, batch, t_q, heads, splits, capacity, size, left,
    DV: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_S: tl.constexpr,
    LEFT: tl.constexpr, LENGTH: tl.constexpr, SINK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """ALL: every chunk was written. Otherwise those that a sequence of its length sees through its window."""
    head = tl.program_id(0) % heads
    row = tl.program_id(0) // heads % t_q
    b = (tl.program_id(0) // heads // t_q).to(tl.int64)
    begin = 0
    end = splits
    if not ALL:
        t_k = tl.minimum(tl.maximum(tl.load(length + b), 0), capacity).to(tl.int32) if LENGTH else capacity
        end = tl.cdiv(t_k, size)
        if LEFT:
            begin = tl.maximum(t_k - t_q - left, 0) // size
    lane = tl.arange(0, BLOCK_S).to(tl.int64)
    dim = tl.arange(0, DV_PAD)
    parts += ((b * t_q + row) * heads + head) * DV
    sums += (b * heads + head) * t_q + row
    rows = batch.to(tl.int64) * t_q * heads  # of one chunk

    top = tl.full((BLOCK_S,), float("-inf"), tl.float32)
    for s in range(begin, end, BLOCK_S):
        top = tl.maximum(top, tl.load(sums + (s + lane) * rows, mask=s + lane < end, other=float("-inf")))
    m = tl.max(top, 0)
    m_safe = tl.where(m == float("-inf"), 0.0, m)  # no chunk holds a key
    total = tl.zeros((BLOCK_S,), tl.float32)
    acc = tl.zeros((BLOCK_S, DV_PAD), tl.float32)
    for s in range(begin, end, BLOCK_S):
        x = tl.load(sums + (s + lane) * rows, mask=s + lane < end, other=float("-inf"))
        weight = tl.exp2((x - m_safe) * LOG2E)
        part = parts + ((s + lane) * rows * DV)[:, None] + dim[None, :]
        acc += weight[:, None] * tl.load(part, mask=(x > float("-inf"))[:, None] & (dim < DV)[None, :], other=0.0).to(tl.float32)
        total += weight
    l = tl.sum(total, 0)
    empty = l == 0
    l = tl.where(empty, 1.0, l)
    natural = m_safe + tl.log2(l) * LN2
    result = tl.sum(acc, 0) / l
    if SINK:
        result = result * share(natural, tl.load(sink + head))
    tl.store(o + ((b * t_q + row) * heads + head) * DV + dim, result.to(o.dtype.element_ty), mask=dim < DV)
    tl.store(lse + (b * heads + head) * t_q + row, tl.where(empty, float("-inf"), natural))


def combine_triton(parts, sums, dtype, sink=None, length=None, capacity=None, size=1, left=None):
    """parts (S, B, N, H, DV), sums (S, B, H, N) -> o (B, N, H, DV) in `dtype`, lse (B, H, N) in float32; both inputs contiguous.

    Without `capacity` every chunk counts; with it, those of `size` keys that a sequence of its `length` (B,) sees through its window.
    """
    splits, batch, t_q, heads, dv = parts.shape
    o = parts.new_empty(batch, t_q, heads, dv, dtype=dtype)
    lse = parts.new_empty(batch, heads, t_q, dtype=torch.float32)
    if lse.numel():
        with torch.cuda.device_of(parts):
            _combine_kernel[(lse.numel(),)](
                parts, sums, length, sink, o, lse, batch, t_q, heads, splits, capacity or 0, size, 0 if left is None else left,
                DV=dv, DV_PAD=max(16, triton.next_power_of_2(dv)), BLOCK_S=BLOCK_S,
                LEFT=left is not None, LENGTH=length is not None, SINK=sink is not None, ALL=capacity is None, num_warps=_warps(dv),
            )  # fmt: skip
    return o, lse


def combine_torch(parts, sums, dtype, sink=None):
    """The same, every chunk counting, one after the other: empty chunks add zeros, and their number does not show in the bits."""
    top = sums.amax(0) if len(sums) else sums.new_full(sums.shape[1:], -math.inf)
    top = torch.where(top == -math.inf, 0, top)  # (B, H, N)
    weights = torch.exp(sums - top)  # (S, B, H, N)
    by_row = weights.transpose(2, 3)[..., None]
    total = _in_order(weights, top.shape)
    acc = _in_order(torch.where(by_row > 0, parts, 0) * by_row, parts.shape[1:])  # (B, N, H, DV)
    empty = total == 0
    natural = top + torch.where(empty, 1, total).log()
    o = acc / torch.where(empty, 1, total).transpose(1, 2)[..., None]
    if sink is not None:
        o = o * torch.sigmoid(natural - sink[:, None]).transpose(1, 2)[..., None]
    return o.to(dtype), torch.where(empty, -math.inf, natural)


def _in_order(parts, shape):
    """The sum over the first axis, one after the other."""
    return parts.cumsum(0)[-1] if len(parts) else parts.new_zeros(shape)


def combine_splits(parts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """parts (S, B, N, H, DV), sums (S, B, H, N) -> o (B, N, H, DV) in the dtype of `parts`, lse (B, H, N) in float32."""
    return _combine(parts, sums)


@torch.library.custom_op("twofold::combine_splits", mutates_args=())
def _combine(parts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    run = combine_triton if backend.triton(parts) else combine_torch
    return run(parts.contiguous(), sums.contiguous(), parts.dtype)


@_combine.register_fake
def _(parts, sums):
    return parts.new_empty(parts.shape[1:]), sums.new_empty(sums.shape[1:], dtype=torch.float32)


def _warps(dv):
    return 1 if dv <= 64 else 4 if dv <= 256 else 8


def variants() -> Iterator[Variant]:
    """Every configuration, for the chunks of `split_attention` and for those of a caller."""
    pointers = ("parts", "sums", "length", "sink", "o", "lse")
    for dtype, dv, inner in itertools.product(("bf16", "fp32"), (64, 128, 256, 512), (True, False)):
        switches = {"LEFT": inner, "LENGTH": inner, "SINK": inner, "ALL": not inner}
        constants = {"DV": dv, "DV_PAD": dv, "BLOCK_S": BLOCK_S, **switches}
        types = dict.fromkeys(("sums", "sink", "lse"), "*fp32") | {"length": "*i32", "o": f"*{dtype}"}
        types |= {"parts": "*fp32" if inner else f"*{dtype}"}
        signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in _combine_kernel.arg_names}
        name = f"{'combine' if inner else 'merge'}-{dtype}-d{dv}"
        yield Variant(name, _combine_kernel, signature, constants, {"num_warps": _warps(dv)}, pointers)
