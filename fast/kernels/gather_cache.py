"""Commit an accepted path: the cache rows of its nodes move side by side behind the root's row.

A program owns a block of columns of one request. It loads those columns of the whole path, waits at a barrier, and stores them; so the
rows may come from where they go, in whatever order, and nothing is lost. In place, only the rows that the path fills are written, and
the root's stays where it is. Fresh, the rows behind the path are zeros. Values are copied as bits, so any dtype of 1, 2, 4 or 8 bytes is
fine; no row off the path is read.

Columns may have any shape and strides: axes that lie in one piece are merged, up to three are walked by the kernel, and any beyond that
by the launcher, one launch for each index.

A path ends at its first negative id. One that is no node of this pass (0, or past the cache's end) ends it too, and where the root lies
outside the cache nothing is committed; on the CPU, where waiting costs nothing, both are errors.
"""

import math
from itertools import product

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["LONGEST", "gather_cache", "gather_cache_in_place", "variants"]

LONGEST = 255  # nodes of a path
TILE, WARPS = 4096, 4  # elements that a program holds at once, at most
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _gather(
    cache, path, start, out, rows, longest, middle, inner, blocks, cache_request, cache_row, outer_stride, middle_stride, inner_stride,
    path_request, path_node, out_request, out_row, pieces,
    STARTED: tl.constexpr, IN_PLACE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, piece = (tl.program_id(0) // pieces).to(tl.int64), (tl.program_id(0) % pieces).to(tl.int64)
    first = tl.cast(0, tl.int64)
    if STARTED:
        first = tl.load(start + b).to(tl.int64)
    i = tl.arange(0, ROWS).to(tl.int64)  # (ROWS,)
    node = tl.load(path + b * path_request + (i - 1) * path_node, mask=(i > 0) & (i <= longest), other=-1).to(tl.int64)
    source = first + tl.where(i == 0, 0, node)
    exists = ((i == 0) | (node > 0)) & (first >= 0) & (source < rows)
    kept = tl.min(tl.where(exists, ROWS, i), axis=0)  # rows before the first that does not exist

    column = piece % blocks * BLOCK + tl.arange(0, BLOCK)  # along the innermost axis                (BLOCK,)
    line = piece // blocks  # which index of the two axes before it
    inside = (column < inner)[None, :]
    columns = cache + b * cache_request + line // middle * outer_stride + line % middle * middle_stride + (column * inner_stride)[None, :]
    live = (i < kept)[:, None] & inside
    values = tl.load(columns + source[:, None] * cache_row, mask=live, other=0)  # (ROWS, BLOCK)
    if IN_PLACE:
        tl.debug_barrier()  # all is read before anything is written
        tl.store(columns + (first + i)[:, None] * cache_row, values, mask=live & (i > 0)[:, None])
    else:
        columns = out + b * out_request + line * inner + column[None, :]
        tl.store(columns + i[:, None] * out_row, values, mask=(i <= longest)[:, None] & inside)


@torch.library.custom_op("twofold::gather_cache", mutates_args=())
def gather_cache(cache: torch.Tensor, path: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """The rows start, start + path of `cache (B, S, ...)`, side by side `(B, 1 + D, ...)`; `path (B, D)`, `start (B,)` or None for 0."""
    _demand_nodes(cache, path, start)
    side = gather_triton if backend.triton(cache) else gather_torch
    return side(_as_bits(cache), path, start).view(cache.dtype)


@gather_cache.register_fake
def _(cache, path, start):
    return cache.new_empty((cache.shape[0], 1 + path.shape[1], *cache.shape[2:]))


@torch.library.custom_op("twofold::gather_cache_in_place", mutates_args=("cache",))
def gather_cache_in_place(cache: torch.Tensor, path: torch.Tensor, start: torch.Tensor | None) -> None:
    """The same into the rows start, start + 1, … of the cache itself; all its other rows stay as they are."""
    _demand_nodes(cache, path, start)
    if backend.triton(cache):
        _launch(_as_bits(cache), path, start, None)
    else:
        _move_torch(_as_bits(cache), path, start)


@gather_cache_in_place.register_fake
def _(cache, path, start):
    return None


def _as_bits(tensor):
    return tensor.view(BITS[tensor.element_size()])


def _demand_nodes(cache, path, start):
    """Raise, on the CPU, for the first root or node that the cache does not hold."""
    B, rows = cache.shape[:2]
    if cache.is_cuda or not B:
        return
    start = torch.zeros(B, dtype=torch.int64) if start is None else start
    if (outside := (start < 0) | (start >= rows)).any():
        b = int(outside.nonzero()[0, 0])
        raise ValueError(f"start[{b}] must be a row of the cache, 0 … {rows - 1}, not {int(start[b])}")
    within_path = (path >= 0).cumprod(1) > 0
    if (outside := within_path & ((path == 0) | (path >= (rows - start)[:, None]))).any():
        b, i = outside.nonzero()[0].tolist()
        raise ValueError(f"path[{b}, {i}] must be a node of this pass, 1 … {rows - int(start[b]) - 1}, not {int(path[b, i])}")


def gather_triton(cache, path, start):
    out = cache.new_empty((cache.shape[0], 1 + path.shape[1], *cache.shape[2:]))
    _launch(cache, path, start, out)
    return out


def _launch(cache, path, start, out):
    axes = _pieces(cache)
    if len(axes) > 3:
        for index in range(cache.shape[2]):
            _launch(cache.select(2, index), path, start, None if out is None else out.select(2, index))
        return
    (outer, outer_stride), (middle, middle_stride), (inner, inner_stride) = [(1, 0)] * (3 - len(axes)) + axes
    if not math.prod(cache.shape[2:]) or not cache.shape[0]:
        return
    ROWS, BLOCK = _tile(path.shape[1], inner)
    blocks = triton.cdiv(inner, BLOCK)
    pieces = outer * middle * blocks
    strides = (cache.stride(0), cache.stride(1), outer_stride, middle_stride, inner_stride, *path.stride())
    _gather[(cache.shape[0] * pieces,)](
        cache, path, None if start is None else start.contiguous(), out, cache.shape[1], path.shape[1], middle, inner, blocks,
        *strides, *((0, 0) if out is None else out.stride()[:2]), pieces,
        STARTED=start is not None, IN_PLACE=out is None, ROWS=ROWS, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip


def _tile(longest, inner):
    """Rows and columns that a program holds at once: the whole path, and as many columns as leave it in registers."""
    rows = triton.next_power_of_2(1 + longest)
    return rows, min(max(TILE // rows, 16), 1024, max(triton.next_power_of_2(inner), 16))


def _pieces(cache):
    """The trailing axes as (size, stride), those that lie in one piece merged."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(cache.shape[2:], cache.stride()[2:], strict=True):
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        elif size != 1:
            axes.append((size, stride))
    return axes


def gather_torch(cache, path, start):
    source, kept = _rows_torch(cache, path, start)
    bits = cache[torch.arange(len(cache), device=cache.device)[:, None], source]  # (B, 1 + D, ...)
    return torch.where(kept.reshape(*kept.shape, *[1] * (cache.ndim - 2)), bits, 0)


def _move_torch(cache, path, start):
    source, kept = _rows_torch(cache, path, start)
    b, i = kept.nonzero(as_tuple=True)
    cache[b, source[b, 0] + i] = cache[b, source[b, i]]  # the right side is a copy before the left side is written


def _rows_torch(cache, path, start):
    """Which row each place of the result comes from `(B, 1 + D)`, and which of them are kept."""
    first = torch.zeros(len(path), 1, dtype=torch.int64, device=path.device) if start is None else start.long()[:, None]
    node = torch.nn.functional.pad(path.long(), (1, 0))  # (B, 1 + D)
    source = first + node
    exists = ((node > 0) | (torch.arange(node.shape[1], device=path.device) == 0)) & (first >= 0) & (source < cache.shape[1])
    kept = exists.long().cumprod(1) > 0
    return torch.where(kept, source, 0), kept


def variants():
    """Every kind of configuration that the launcher can pick, for the ahead-of-time compile report."""
    numbers = "rows longest middle inner blocks cache_request cache_row outer_stride middle_stride path_request out_request out_row pieces"
    whole = dict.fromkeys(numbers.split(), "i32")
    for bits, longest, in_place in product(("i8", "i16", "i32", "i64"), (7, LONGEST), (False, True)):
        rows, block = _tile(longest, 1024)
        constants = {"inner_stride": 1, "path_node": 1, "STARTED": True, "IN_PLACE": in_place, "ROWS": rows, "BLOCK": block}
        constants |= {"out": None, "out_request": 0, "out_row": 0} if in_place else {}
        pointers = {"cache": f"*{bits}", "path": "*i64", "start": "*i32", "out": f"*{bits}"}
        signature = pointers | whole | dict.fromkeys(constants, "constexpr")
        strides = "cache_request cache_row outer_stride middle_stride out_request out_row"
        aligned = tuple(name for name in (*pointers, "inner", *strides.split()) if name not in constants)
        yield Variant(f"gather_{bits}_{longest}{'_in_place' * in_place}", _gather, signature, constants, {"num_warps": WARPS}, aligned)
