"""Tiled attention as PyTorch operators: the kernels or their twins, with autograd, whole for a compiler.

Operators take tensors, numbers and text only: packed sequences, traced functions and block lists are taken apart here and put together
again on the other side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels import tiled_attention, tiled_attention_backward, tiled_attention_torch
from twofold.fast.kernels.attention_mods import Mods
from twofold.fast.kernels.packed_sequences import Packing
from twofold.fast.kernels.tiled_attention import NOTHING, Blocks

__all__ = ["backward", "forward"]


def forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, left: int | None, right: int | None, scale: float, softcap: float | None,
    packing: Packing | None = None, mods: Mods = NOTHING, blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV), sink (H,) -> o (B, Tq, H, DV), lse (B, H, Tq); both are differentiable."""
    sink = None if sink is None else sink.float()
    return _forward(q, k, v, sink, left, right, scale, softcap, *_apart(packing, mods, blocks))


def backward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None,
    left: int | None, right: int | None, scale: float, softcap: float | None,
    packing: Packing | None = None, mods: Mods = NOTHING, blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv in the dtype of the inputs, dsink (H,) in float32 or None."""
    wide = None if sink is None else sink.float()
    apart = _apart(packing, mods, blocks)
    dq, dk, dv, dsink = _backward(q, k, v, wide, o, lse, do, dlse, left, right, scale, softcap, *apart)
    return dq, dk, dv, None if sink is None else dsink


def _apart(packing, mods, blocks):
    packed = [] if packing is None else [x for x in packing if x is not None]
    whole = [i for i, number in enumerate(mods.numbers) if not isinstance(number, float)]
    texts = mods.mask, mods.score, mods.slope, list(mods.tables), [float(number) for number in mods.numbers], whole
    return packed, *texts, [] if blocks is None else [blocks.rows, blocks.keys], [] if blocks is None else [*blocks.lines, *blocks.columns]


def _together(packed, mask, score, slope, tables, numbers, whole, sizes, lists):
    packing = Packing(*packed) if packed else None
    mods = Mods(mask, score, slope, tuple(tables), tuple(int(x) if i in whole else x for i, x in enumerate(numbers)))
    return packing, mods, Blocks(*sizes, tuple(lists[:4]), tuple(lists[4:])) if sizes else None


@torch.library.custom_op("twofold::tiled_attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, left: int | None, right: int | None, scale: float, softcap: float | None,
    packed: Sequence[Tensor], mask: str | None, score: str | None, slope: str | None, tables: Sequence[Tensor], numbers: Sequence[float],
    whole: Sequence[int], sizes: Sequence[int], lists: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    run = tiled_attention.forward_triton if backend.triton(q) else tiled_attention_torch.forward_torch
    together = _together(packed, mask, score, slope, tables, numbers, whole, sizes, lists)
    return run(q, k, v, sink, left, right, scale, softcap, *together)


@_forward.register_fake
def _(q, k, v, *options):
    b, t_q, heads, _ = q.shape
    return q.new_empty(b, t_q, heads, v.shape[3]), q.new_empty(b, heads, t_q, dtype=torch.float32)


@torch.library.custom_op("twofold::tiled_attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None,
    left: int | None, right: int | None, scale: float, softcap: float | None,
    packed: Sequence[Tensor], mask: str | None, score: str | None, slope: str | None, tables: Sequence[Tensor], numbers: Sequence[float],
    whole: Sequence[int], sizes: Sequence[int], lists: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    run = tiled_attention_backward.backward_triton if backend.triton(q) else tiled_attention_torch.backward_torch
    together = _together(packed, mask, score, slope, tables, numbers, whole, sizes, lists)
    dq, dk, dv, dsink = run(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap, *together)
    return dq, dk, dv, lse.new_empty(0) if dsink is None else dsink  # an operator returns tensors, not None


@_backward.register_fake
def _(q, k, v, sink, o, lse, *options):
    return *(x.new_empty(x.shape) for x in (q, k, v)), lse.new_empty(0 if sink is None else sink.shape[0])


def _save(ctx, inputs, output):
    q, k, v, sink, left, right, scale, softcap, packed, mask, score, slope, tables, numbers, whole, sizes, lists = inputs
    ctx.save_for_backward(q, k, v, sink, *output, *packed, *tables, *lists)
    ctx.counts = len(packed), len(tables), len(lists)
    ctx.options = (left, right, scale, softcap), (mask, score, slope), (numbers, whole, sizes)
    ctx.set_materialize_grads(False)


def _gradients(ctx, do, dlse):
    q, k, v, sink, o, lse, *more = ctx.saved_tensors
    packed, tables, lists = _split(more, ctx.counts)
    do = torch.zeros_like(o) if do is None else do
    window, texts, (numbers, whole, sizes) = ctx.options
    dq, dk, dv, dsink = _backward(q, k, v, sink, o, lse, do, dlse, *window, packed, *texts, tables, numbers, whole, sizes, lists)
    plain = [None if each else [] for each in (numbers, whole, sizes)]  # an empty list counts as one of tensors
    nothing = [None] * len(packed), None, None, None, [None] * len(tables), *plain, [None] * len(lists)
    return dq, dk, dv, None if sink is None else dsink, *[None] * 4, *nothing


def _split(tensors, counts):
    first, second = counts[0], counts[0] + counts[1]
    return tensors[:first], tensors[first:second], tensors[second:]


_forward.register_autograd(_gradients, setup_context=_save)
