"""The kernels of short causal convolutions, one filter per channel: forward, and all gradients in one pass backward.

A sequence is a line of rows, its tail of W - 1 earlier inputs and then its T tokens: output t is the sum of w[j] * row[t + j], and the last
W - 1 rows are the new tail. A program takes 64 consecutive rows and a tile of channels, whatever the rows are, so that an empty
sequence, one shorter than its tail, and many packed along T are no special cases: a table made on the device says whose rows they are.

Sums are float32. No atomics: every program writes its share of the gradients of w and b apart, and the shares are summed in a fixed
order. A share belongs to one program and counts each output once, however many sequences are packed.
"""

from itertools import product

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.chunk_table import tables
from twofold.fast.kernels.variant import Variant

__all__ = ["WIDEST", "backward", "forward", "variants"]

WIDEST = 8
ROWS = 64  # of a sequence per program


@triton.jit
def _rows(x, tail, rows, last, x_t, column, D, BEFORE: tl.constexpr, TAILED: tl.constexpr):
    """Rows of a sequence in float32: the first BEFORE are its tail, then come its tokens up to row `last`; 0 outside."""
    inside = (column < D)[None, :]
    mask = ((rows >= BEFORE) & (rows < last))[:, None] & inside
    value = tl.load(x + (rows - BEFORE)[:, None] * x_t + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if TAILED:
        mask = (rows < BEFORE)[:, None] & inside
        value += tl.load(tail + rows[:, None] * D + column[None, :], mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def forward_kernel(
    x, w, b, tail, y, new_tail, table, x_b, x_t, w_t, y_b, y_t, D,
    W: tl.constexpr, TAILED: tl.constexpr, BIASED: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    tile, block = program % tl.cdiv(D, BD), program // tl.cdiv(D, BD)
    sequence, batch = tl.load(table + 5 * block), tl.load(table + 5 * block + 1)
    begin, length, first = tl.load(table + 5 * block + 2), tl.load(table + 5 * block + 3), tl.load(table + 5 * block + 4)
    x += batch * x_b + begin * x_t
    y += batch * y_b + begin * y_t
    tail += sequence * (W - 1) * D
    new_tail += sequence * (W - 1) * D
    rows, column, last = first + tl.arange(0, ROWS), tile * BD + tl.arange(0, BD), length + (W - 1)
    inside = column < D
    total = tl.zeros([ROWS, BD], tl.float32)
    if BIASED:
        total += tl.load(b + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    w += column
    for j in tl.static_range(W):
        weight = tl.load(w, mask=inside, other=0.0).to(tl.float32)
        total += weight[None, :] * _rows(x, tail, rows + j, last, x_t, column, D, W - 1, TAILED)
        w += w_t  # one row after the other: j * w_t would be a product of 32 bits
    mask = (rows < length)[:, None] & inside[None, :]
    tl.store(y + rows[:, None] * y_t + column[None, :], total.to(y.dtype.element_ty), mask=mask)
    if W > 1:
        kept = _rows(x, tail, tl.where(rows < length, last, rows), last, x_t, column, D, W - 1, TAILED)
        mask = ((rows >= length) & (rows < last))[:, None] & inside[None, :]
        tl.store(new_tail + (rows - length)[:, None] * D + column[None, :], kept.to(new_tail.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    x, w, tail, dy, dnew_tail, dx, dtail, shares, table, x_b, x_t, w_t, dy_b, dy_t, dx_b, dx_t, D,
    W: tl.constexpr, TAILED: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Of its rows, the gradients; of the outputs with the same numbers, the share of the gradients of w, and below them of b."""
    program = tl.program_id(0).to(tl.int64)
    tile, block = program % tl.cdiv(D, BD), program // tl.cdiv(D, BD)
    sequence, batch = tl.load(table + 5 * block), tl.load(table + 5 * block + 1)
    begin, length, first = tl.load(table + 5 * block + 2), tl.load(table + 5 * block + 3), tl.load(table + 5 * block + 4)
    x += batch * x_b + begin * x_t
    dx += batch * dx_b + begin * dx_t
    dy += batch * dy_b + begin * dy_t
    tail += sequence * (W - 1) * D
    dtail += sequence * (W - 1) * D
    dnew_tail += sequence * (W - 1) * D
    rows, column, last = first + tl.arange(0, ROWS), tile * BD + tl.arange(0, BD), length + (W - 1)
    inside = column < D
    w += column
    shares += block * (W + 1) * D + column
    own = _rows(dy, tail, rows, length, dy_t, column, D, 0, False)
    total = tl.zeros([ROWS, BD], tl.float32)
    if W > 1:  # a row that went into the new tail
        kept = tl.where(rows < length, last, rows) - length
        total = _rows(dnew_tail, tail, kept, W - 1, D, column, D, 0, False)
    for j in tl.static_range(W):
        weight = tl.load(w, mask=inside, other=0.0).to(tl.float32)
        total += weight[None, :] * _rows(dy, tail, rows - j, length, dy_t, column, D, 0, False)
        tl.store(shares, tl.sum(own * _rows(x, tail, rows + j, last, x_t, column, D, W - 1, TAILED), 0), mask=inside)
        w += w_t  # one row after the other: j * w_t would be a product of 32 bits
        shares += D
    tl.store(shares, tl.sum(own, 0), mask=inside)
    mask = ((rows >= W - 1) & (rows < last))[:, None] & inside[None, :]
    tl.store(dx + (rows - (W - 1))[:, None] * dx_t + column[None, :], total.to(dx.dtype.element_ty), mask=mask)
    if W > 1:
        mask = (rows < W - 1)[:, None] & inside[None, :]
        tl.store(dtail + rows[:, None] * D + column[None, :], total.to(dtail.dtype.element_ty), mask=mask)


def table(batch: int, length: int, before: int, cu_seqlens: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """(sequence, batch row, first token, tokens, first row of the block) of every block of rows; spare blocks begin past the last row."""
    if cu_seqlens is None:
        sequences, blocks, _ = tables(batch, length + before, None, ROWS, device)
    else:
        count = len(cu_seqlens) - 1
        edges = cu_seqlens + before * torch.arange(count + 1, device=device)
        sequences, blocks, _ = tables(1, length + before * count, edges, ROWS, device)
    owner = torch.searchsorted(sequences[:, 3].contiguous(), blocks[:, 3].contiguous(), right=True) - 1
    row, begin, end, _ = sequences[owner].unbind(1)
    first_token = begin if cu_seqlens is None else begin - before * owner
    return torch.stack([owner, row, first_token, end - begin - before, blocks[:, 1] - begin], 1)


def tile(D: int, itemsize: int) -> tuple[int, int]:
    """Channels per program, 128 bytes at most, and warps, for 8 numbers per thread: a pure function of the shape."""
    BD = min(128 // itemsize, max(16, triton.next_power_of_2(D)))
    return BD, ROWS * BD // 256


def forward(x, w, b, tail, cu_seqlens, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, D)` and new tails `(sequences, W - 1, D)`; innermost axes, and all of tail, contiguous."""
    with torch.cuda.device_of(x):
        (B, T, D), W = x.shape, len(w)
        y, new_tail = torch.empty((B, T, D), dtype=x.dtype, device=x.device), x.new_empty((sequences, W - 1, D))
        blocks = table(B, T, W - 1, cu_seqlens, x.device)
        given = x, w, x if b is None else b, x if tail is None else tail
        args = *given, y, new_tail, blocks, *x.stride()[:2], w.stride(0), *y.stride()[:2], D
        BD, warps = tile(D, x.element_size())
        constants = {"W": W, "TAILED": tail is not None, "BIASED": b is not None, "ROWS": ROWS, "BD": BD}
        if len(blocks) * D:
            forward_kernel[len(blocks) * triton.cdiv(D, BD),](*args, **constants, num_warps=warps)
        return y, new_tail


def backward(x, w, tail, dy, dnew_tail, cu_seqlens):
    """dx, dw `(W, D)` and db `(D,)` in float32, and d tail."""
    with torch.cuda.device_of(x):
        (B, T, D), W = x.shape, len(w)
        dx, dtail = torch.empty((B, T, D), dtype=x.dtype, device=x.device), torch.empty_like(dnew_tail)
        blocks = table(B, T, W - 1, cu_seqlens, x.device)
        shares = torch.empty((len(blocks), W + 1, D), dtype=torch.float32, device=x.device)
        strides = *x.stride()[:2], w.stride(0), *dy.stride()[:2], *dx.stride()[:2]
        args = x, w, x if tail is None else tail, dy, dnew_tail, dx, dtail, shares, blocks, *strides, D
        BD, warps = tile(D, x.element_size())
        constants = {"W": W, "TAILED": tail is not None, "ROWS": ROWS, "BD": BD}
        if len(blocks) * D:
            backward_kernel[len(blocks) * triton.cdiv(D, BD),](*args, **constants, num_warps=warps)
        return dx, shares[:, :W].sum(0), shares[:, W].sum(0), dtail


def variants():
    """Both kernels, without a tail, with one and at their widest, for the ahead-of-time compile report; float16 is as bfloat16."""
    kernels = forward_kernel, backward_kernel
    for kernel, (element, W, tailed) in product(kernels, (("bf16", 4, False), ("bf16", 4, True), ("fp32", WIDEST, True))):
        BD, warps = tile(4096, 2 if element == "bf16" else 4)
        constants = {"W": W, "TAILED": tailed, "BIASED": True, "ROWS": ROWS, "BD": BD}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        tensors = dict.fromkeys(("x", "tail", "y", "new_tail", "dy", "dnew_tail", "dx", "dtail"), f"*{element}")
        tensors |= {"w": f"*{element}", "b": f"*{element}", "shares": "*fp32", "table": "*i64"}
        yield Variant(
            name=f"{kernel.__name__.removesuffix('_kernel')}-{element}-{W}{'-tailed' if tailed else ''}",
            kernel=kernel,
            signature={name: "constexpr" if name in constants else tensors.get(name, "i32") for name in kernel.arg_names},
            constexprs=constants,
            options={"num_warps": warps},
            divisible=tuple(name for name in kernel.arg_names if name not in constants),
        )
