"""Token trees from their parents: depths, ancestors as bits, first children and next siblings of a batch, in one launch.

A program owns 64 nodes of one request and one word of their ancestor bits. Each lane walks from its node to the root, which reads parents
and nothing that another program writes; so nothing waits and the order of programs does not matter. The walk is as long as the tree is
deep. Links are found by comparing the nodes' parents with all later ones, a block at a time. The PyTorch twin doubles pointers instead:
after s steps each node knows its next 2^s ancestors, and log2(N) steps are enough.

Every program reads all parents of its request first. Where one is out of order (not smaller than its node, or negative, or the first one
not -1) the request comes back empty: depth and links -1, no bits. On the CPU, where waiting costs nothing, that is an error.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["build_tree", "variants"]

BLOCK, OTHERS = 64, 32  # nodes of a program; nodes that it compares them with at once
BITS = 64  # of a word


@triton.jit
def _build(
    parents, lengths, depth, words, child, sibling, N, parents_request, parents_node, BLOCKS, WORDS,
    RAGGED: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    word, block = tl.program_id(0) % WORDS, tl.program_id(0) // WORDS % BLOCKS
    b = (tl.program_id(0) // WORDS // BLOCKS).to(tl.int64)
    start = parents + b * parents_request
    length = tl.cast(N, tl.int64)
    if RAGGED:
        length = tl.minimum(tl.maximum(tl.load(lengths + b).to(tl.int64), 0), length)
    each = tl.arange(0, BLOCK).to(tl.int64)  # (BLOCK,)
    faults = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, N, BLOCK):
        above = tl.load(start + (begin + each) * parents_node, mask=begin + each < length, other=-1).to(tl.int64)
        right = tl.where(begin + each == 0, above == -1, (above >= 0) & (above < begin + each)) | (begin + each >= length)
        faults += (right == 0).to(tl.int32)
    length = tl.where(tl.sum(faults, axis=0) > 0, 0, length)  # of a tree out of order no node exists

    node = block.to(tl.int64) * BLOCK + each
    place = b * N + node
    at = tl.where(node < length, node, -1)
    steps = tl.full((BLOCK,), -1, tl.int32)
    bits = tl.zeros((BLOCK,), tl.int64)
    while tl.max(at, axis=0) >= 0:
        steps += (at >= 0).to(tl.int32)
        bits |= tl.where((at >= 0) & (at // 64 == word), tl.full((BLOCK,), 1, tl.int64) << (at & 63), 0)
        at = tl.load(start + at * parents_node, mask=at >= 0, other=-1).to(tl.int64)
    tl.store(words + place * WORDS + word, bits, mask=node < N)

    if word == 0:
        tl.store(depth + place, steps.to(depth.dtype.element_ty), mask=node < N)
        up = tl.load(start + node * parents_node, mask=node < length, other=-1).to(tl.int32)
        own = node.to(tl.int32)
        first_child = tl.full((BLOCK,), N, tl.int32)
        next_sibling = tl.full((BLOCK,), N, tl.int32)
        for begin in range(1, N, OTHERS):  # the root is nobody's child
            other = begin + tl.arange(0, OTHERS)  # (OTHERS,)
            above = tl.load(start + other.to(tl.int64) * parents_node, mask=other < length, other=-2).to(tl.int32)
            is_child = above[None, :] == own[:, None]  # (BLOCK, OTHERS)
            is_sibling = (above[None, :] == up[:, None]) & (other[None, :] > own[:, None])
            first_child = tl.minimum(first_child, tl.min(tl.where(is_child, other[None, :], N), axis=1))
            next_sibling = tl.minimum(next_sibling, tl.min(tl.where(is_sibling, other[None, :], N), axis=1))
        tl.store(child + place, tl.where(first_child < N, first_child, -1).to(child.dtype.element_ty), mask=node < N)
        tl.store(sibling + place, tl.where(next_sibling < N, next_sibling, -1).to(sibling.dtype.element_ty), mask=node < N)


@torch.library.custom_op("twofold::build_tree", mutates_args=())
def build_tree(parents: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth `(B, N)`, ancestor words `(B, N, ceil(N / 64))`, first child and next sibling `(B, N)` of `parents (B, N)`.

    Bit j % 64 of word j // 64 of node i says that i sees j: an ancestor, or i itself. What does not exist is -1, and has no bits.
    """
    side = build_triton if backend.triton(parents) else build_torch
    built = side(parents, lengths)
    if not parents.is_cuda:
        _demand_order(parents, lengths, built[0])
    return built


@build_tree.register_fake
def _(parents, lengths):
    return _empty(parents)


def _empty(parents):
    B, N = parents.shape
    words = parents.new_empty((B, N, (N + BITS - 1) // BITS), dtype=torch.int64)
    return parents.new_empty((B, N)), words, parents.new_empty((B, N)), parents.new_empty((B, N))


def _demand_order(parents, lengths, depth):
    """Raise for the first node whose parent is out of order; only a request without a root can have one."""
    for b in (depth[:, 0] < 0).nonzero()[:, 0].tolist():
        count = parents.shape[1] if lengths is None else int(lengths[b])
        for node, parent in enumerate(parents[b, : max(count, 0)].tolist()):
            if not (0 <= parent < node or node == 0 and parent == -1):
                wanted = f"a node before {node}" if node else "-1, for the root"
                raise ValueError(f"parents[{b}, {node}] must be {wanted}, not {parent}")


def build_triton(parents, lengths):
    B, N = parents.shape
    depth, words, child, sibling = built = _empty(parents)
    if B:
        blocks, count = triton.cdiv(N, BLOCK), words.shape[2]
        lengths = lengths if lengths is None else lengths.contiguous()
        _build[(B * blocks * count,)](
            parents, lengths, depth, words, child, sibling, N, *parents.stride(), blocks, count,
            RAGGED=lengths is not None, BLOCK=BLOCK, OTHERS=OTHERS, num_warps=4,
        )  # fmt: skip
    return built


def build_torch(parents, lengths):
    B, N = parents.shape
    dtype, device = parents.dtype, parents.device
    node = torch.arange(N, device=device)
    length = torch.full((B, 1), N, device=device) if lengths is None else lengths.long()[:, None]
    up = torch.where(node < length, parents.long(), -1)  # (B, N)
    right = torch.where(node == 0, up == -1, (up >= 0) & (up < node)) | (node >= length)
    inside = (node < length) & right.all(1, keepdim=True)  # no node of a tree out of order exists
    up = torch.where(inside, up, -1)

    at = torch.where(up < 0, node, up)  # where nothing is above a node stays where it is
    depth = (up >= 0).long()
    bits = torch.where(node // BITS == torch.arange(-(-N // BITS), device=device)[:, None], 1 << node % BITS, 0).T.expand(B, N, -1)
    for _ in range((N - 1).bit_length()):
        depth = depth + depth.gather(1, at)
        bits = bits | bits.gather(1, at[:, :, None].expand_as(bits))
        at = at.gather(1, at)
    depth, bits = torch.where(inside, depth, -1), torch.where(inside[:, :, None], bits, 0)

    family, order = up.sort(dim=1, stable=True)  # siblings side by side, by id
    last = torch.full_like(family[:, :1], -2)
    next_one = torch.where((family == torch.cat([family[:, 1:], last], 1)) & (family >= 0), order.roll(-1, 1), -1)
    sibling = torch.empty_like(order).scatter_(1, order, next_one)
    eldest = (family >= 0) & (family != torch.cat([last, family[:, :-1]], 1))
    child = torch.full((B, N + 1), -1, device=device).scatter_(1, torch.where(eldest, family, N), order)[:, :N].contiguous()
    return depth.to(dtype), bits, child.to(dtype), sibling.to(dtype)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    for kind, small in (("i32", False), ("i64", False), ("i64", True)):
        counts = dict.fromkeys(("BLOCKS", "WORDS"), "constexpr" if small else "i32")  # Triton makes a count of 1 a constant
        pointers = dict.fromkeys(("parents", "lengths", "depth", "child", "sibling"), f"*{kind}") | {"words": "*i64"}
        sizes = {"N": "i32", "parents_request": "i32", "parents_node": "constexpr", **counts}
        flags = dict.fromkeys(("RAGGED", "BLOCK", "OTHERS"), "constexpr")
        ones = dict.fromkeys(("parents_node", *counts), 1) if small else {"parents_node": 1}
        constants = {**ones, "RAGGED": not small, "BLOCK": BLOCK, "OTHERS": OTHERS} | ({"lengths": None} if small else {})
        signature = {**pointers, **sizes, **flags} | ({"lengths": "constexpr"} if small else {})
        aligned = tuple(name for name in pointers if signature[name] != "constexpr")
        yield Variant(f"build_{kind}{'_small' * small}", _build, signature, constants, {"num_warps": 4}, aligned)
