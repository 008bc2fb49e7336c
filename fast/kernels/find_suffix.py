"""Find where the end of a context occurred before, and copy what followed: prompt lookup over ragged contexts.

Two launches, no atomics:

1. `_match`, one program per request and block of the context: at every place, how many tokens before it equal the tokens at the end of
   the context, compared backwards until no place of the block matches any more (or n_max is reached). The best place leaves as one
   64-bit key, length of the match above, place below, so that the largest key is the longest match and, among equals, the first or last.
2. `_copy`, one program per request: the largest key of all blocks, then the tokens behind that place.

The context is read once; each further token of the match reads again only the places that still match, from the cache. The PyTorch twin
keeps the list of places that still match and filters it token by token. Time grows with the length of the longest match, memory never.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "find_suffix", "variants"]

BLOCK = 1024
SIZES = ["T", "n_max", "n_min", "gamma", "blocks"]  # contexts grow by the token: their sizes must not compile a kernel each


@triton.jit
def _length(lengths, b, T, RAGGED: tl.constexpr):
    length = T.to(tl.int64)
    if RAGGED:
        length = tl.minimum(tl.maximum(tl.load(lengths + b).to(tl.int64), 0), length)
    return length


@triton.jit(do_not_specialize=SIZES)
def _match(context, lengths, best, row, T, n_max, n_min, blocks, LAST: tl.constexpr, RAGGED: tl.constexpr, BLOCK: tl.constexpr):
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    length = _length(lengths, b, T, RAGGED)
    end = block * BLOCK + tl.arange(0, BLOCK) + 1  # where an occurrence ends: before the context does
    matching = end < length
    common = tl.zeros((BLOCK,), tl.int64)
    n = 0
    more = tl.max(matching.to(tl.int32), axis=0) > 0
    while more:
        wanted = tl.load(context + b * row + length - 1 - n)
        matching = matching & (end > n)
        matching = matching & (tl.load(context + b * row + end - 1 - n, mask=matching, other=0) == wanted)
        common += matching.to(tl.int64)
        n += 1
        more = (n < n_max) & (tl.max(matching.to(tl.int32), axis=0) > 0)
    key = (common << 32) + (end if LAST else 0xFFFFFFFF - end)
    tl.store(best + b * blocks + block, tl.max(tl.where(common >= n_min, key, 0), axis=0))


@triton.jit(do_not_specialize=SIZES)
def _copy(
    context, lengths, best, draft, count, row, T, gamma, blocks,
    LAST: tl.constexpr, RAGGED: tl.constexpr, BLOCKS: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    key = tl.max(tl.load(best + b * blocks + block, mask=block < blocks, other=0), axis=0)
    place = key & 0xFFFFFFFF
    end = place if LAST else 0xFFFFFFFF - place
    drafted = tl.minimum(_length(lengths, b, T, RAGGED) - end, gamma)
    drafted = tl.where(key > 0, drafted, 0)
    i = tl.arange(0, GAMMA)
    token = tl.load(context + b * row + end + i, mask=i < drafted, other=-1)
    tl.store(draft + b * gamma + i, token, mask=i < gamma)
    tl.store(count + b, drafted.to(count.dtype.element_ty))


@torch.library.custom_op("twofold::find_suffix", mutates_args=())
def find_suffix(
    context: torch.Tensor, lengths: torch.Tensor | None, n_max: int, n_min: int, gamma: int, last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """context (B, T), contiguous along T, lengths (B,) or None: drafted tokens (B, gamma) and their number (B,)."""
    if not context.numel():
        return context.new_full((len(context), gamma), -1), context.new_zeros(len(context))
    side = _find_triton if backend.triton(context) else _find_torch
    return side(context, lengths, n_max, n_min, gamma, last)


@find_suffix.register_fake
def _(context, lengths, n_max, n_min, gamma, last):
    return context.new_empty(context.shape[0], gamma), context.new_empty(context.shape[0])


def _find_triton(context, lengths, n_max, n_min, gamma, last):
    B, T = context.shape
    blocks = triton.cdiv(T, BLOCK)
    best = torch.empty(B, blocks, dtype=torch.int64, device=context.device)
    draft, count = context.new_empty(B, gamma), context.new_empty(B)
    lengths = lengths if lengths is None else lengths.contiguous()
    flags = {"LAST": last, "RAGGED": lengths is not None}
    _match[(B, blocks)](context, lengths, best, context.stride(0), T, n_max, n_min, blocks, **flags, BLOCK=BLOCK, num_warps=4)
    flags |= {"BLOCKS": triton.next_power_of_2(blocks), "GAMMA": triton.next_power_of_2(max(gamma, 1))}
    _copy[(B,)](context, lengths, best, draft, count, context.stride(0), T, gamma, blocks, **flags, num_warps=1)
    return draft, count


def _find_torch(context, lengths, n_max, n_min, gamma, last):
    B, T = context.shape
    length = torch.full((B,), T, device=context.device) if lengths is None else lengths.long().clamp(0, T)  # (B,)
    wanted = context.gather(1, (length - 1).clamp(min=0)[:, None])
    before = torch.arange(T, device=context.device) < length[:, None] - 1
    row, end = ((context == wanted) & before).nonzero(as_tuple=True)
    end = end + 1  # all places where a match of one token ends   (matches,)
    found, none = torch.zeros_like(length), 0 if last else T
    for n in range(1, n_max + 1):
        if n > 1:
            longer = end >= n
            longer &= context[row, (end - n).clamp(min=0)] == context[row, length[row] - n]
            row, end = row[longer], end[longer]
        if not len(row):
            break
        if n >= n_min:
            edge = torch.full_like(found, none).scatter_reduce(0, row, end, "amax" if last else "amin")
            found = torch.where(edge == none, found, edge)
    count = torch.where(found > 0, (length - found).clamp(max=gamma), 0)
    i = torch.arange(gamma, device=context.device)
    token = context.gather(1, (found[:, None] + i).clamp(max=T - 1))
    return torch.where(i < count[:, None], token, -1), count.to(context.dtype)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    for identifier, last in (("i64", False), ("i32", True)):
        ids = {"context": f"*{identifier}", "lengths": f"*{identifier}", "best": "*i64"}
        flags = {"LAST": "constexpr", "RAGGED": "constexpr"}
        sizes = {"row": "i32", "T": "i32", "n_max": "i32", "n_min": "i32", "blocks": "i32"}
        chosen = {"LAST": last, "RAGGED": True, "BLOCK": BLOCK}
        aligned = ("context", "lengths", "best", "row")
        name = f"{identifier}{'_last' * last}"
        yield Variant(f"match_{name}", _match, {**ids, **sizes, **flags, "BLOCK": "constexpr"}, chosen, {"num_warps": 4}, aligned)
        for blocks in (1, 1024):  # the extremes: contexts of one block, and of a million tokens
            sizes = {"draft": f"*{identifier}", "count": f"*{identifier}", "row": "i32", "T": "i32", "gamma": "i32", "blocks": "i32"}
            chosen = {"LAST": last, "RAGGED": True, "BLOCKS": blocks, "GAMMA": 16}
            signature = {**ids, **sizes, **flags, "BLOCKS": "constexpr", "GAMMA": "constexpr"}
            yield Variant(f"copy_{name}_{blocks}", _copy, signature, chosen, {"num_warps": 1}, (*aligned, "draft", "count"))
