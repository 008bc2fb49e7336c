"""The likeliest token of each row, and on request the entropy of rows that are probabilities: every number read once.

Two launches, no atomics, the same bits on every run and in every batch:

1. `_block`, one program per row and block of 2048 tokens: the greatest number and its first place, and the sum of p log p.
2. `_row`, one program per row: the blocks in order.

A row with a NaN, or with nothing above minus infinity, has the token -1. Rows that a request does not have are not read and have it too.

`row_stats` finds the greatest number too, of logits: its sums are a softmax's, measured from each block's maximum and at a temperature,
where these rows are summed as they are. The two share the search for a place, and no sum.
"""

from itertools import product

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "likeliest", "variants"]

BLOCK = 2048


@triton.jit
def _block(
    p, counts, greatest, first, products, R, V, blocks, p_request, p_row,
    RAGGED: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks
    b, i = n // R, n % R
    v = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    end = tl.cast(V, tl.int64)
    if RAGGED:
        end = tl.where(i < tl.load(counts + b).to(tl.int64), end, 0)
    x = tl.load(p + b * p_request + i * p_row + v, mask=v < end, other=float("-inf")).to(tl.float32)
    best = tl.max(tl.where(x == x, x, float("-inf")), axis=0)  # a maximum may pass over a NaN: it is looked for by itself
    broken = tl.max((x != x).to(tl.int32), axis=0)
    at = n * blocks + block
    tl.store(first + at, tl.min(tl.where(x == best, v, V), axis=0).to(tl.int32))
    tl.store(greatest + at, tl.where(broken > 0, float("nan"), best))
    if ENTROPY:
        term = x * tl.log(tl.where(x > 0, x, 1.0))
        tl.store(products + at, tl.sum(tl.where(x <= 0, 0.0, term), axis=0))  # 0 log 0 is 0, a NaN stays one


@triton.jit
def _row(greatest, first, products, token, entropy, V, blocks, ENTROPY: tl.constexpr, BLOCKS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    inside = block < blocks
    at = n * blocks + block
    values = tl.load(greatest + at, mask=inside, other=float("-inf"))
    best = tl.max(tl.where(values == values, values, float("-inf")), axis=0)
    broken = tl.max((values != values).to(tl.int32), axis=0)
    place = tl.min(tl.where(values == best, tl.load(first + at, mask=inside, other=0), V), axis=0)
    tl.store(token + n, tl.where((broken == 0) & (best > float("-inf")), place, -1).to(tl.int64))
    if ENTROPY:
        tl.store(entropy + n, 0.0 - tl.sum(tl.load(products + at, mask=inside, other=0.0), axis=0))


@torch.library.custom_op("twofold::likeliest", mutates_args=())
def likeliest(p: torch.Tensor, counts: torch.Tensor | None, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows p (B, R, V), innermost contiguous: the first greatest's id (B, R), int64, and -sum p log p (B, R), float32, if asked for,
    else nothing (0,). Rows from `counts` (B,) on do not exist."""
    return (_likeliest_triton if backend.triton(p) else _likeliest_torch)(p, counts, entropy)


@likeliest.register_fake
def _(p, counts, entropy):
    return p.new_empty(p.shape[:2], dtype=torch.int64), p.new_empty(p.shape[:2] if entropy else (0,), dtype=torch.float32)


def _likeliest_triton(p, counts, entropy):
    B, R, V = p.shape
    token = torch.empty(B, R, dtype=torch.int64, device=p.device)
    H = torch.empty((B, R) if entropy else 0, device=p.device)
    if not token.numel():
        return token, H
    blocks = triton.cdiv(V, BLOCK)
    greatest, first = torch.empty(B * R, blocks, device=p.device), torch.empty(B * R, blocks, dtype=torch.int32, device=p.device)
    products = torch.empty(B * R, blocks, device=p.device) if entropy else None
    counts = None if counts is None else counts.contiguous()
    sizes = R, V, blocks, p.stride(0), p.stride(1)
    flags = {"RAGGED": counts is not None, "ENTROPY": entropy, "BLOCK": BLOCK}
    _block[(B * R * blocks,)](p, counts, greatest, first, products, *sizes, **flags, num_warps=4)
    whole = {"ENTROPY": entropy, "BLOCKS": triton.next_power_of_2(blocks)}
    _row[(B * R,)](greatest, first, products, token, H if entropy else None, V, blocks, **whole, num_warps=1)
    return token, H


def _likeliest_torch(p, counts, entropy):
    token = p.argmax(2)  # the first of equals; a NaN counts as the greatest
    there = p.gather(2, token[:, :, None])[:, :, 0] > -torch.inf
    if counts is not None:
        there &= torch.arange(p.shape[1], device=p.device) < counts[:, None]
    return torch.where(there, token, -1), _entropy_torch(p.float()) if entropy else p.new_empty(0, dtype=torch.float32)


def _entropy_torch(p):
    return -p.clamp_min(torch.finfo(p.dtype).tiny).log_().mul_(p).sum(2)  # 0 ln 0 is 0, and a vectorized logarithm


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    sizes, flags = dict.fromkeys(("R", "V", "blocks", "p_request", "p_row"), "i32"), dict.fromkeys(("RAGGED", "ENTROPY"), "constexpr")
    partials = {"greatest": "*fp32", "first": "*i32", "products": "*fp32"}
    for dtype, ragged, entropy in product(("fp32", "bf16", "fp16"), (True, False), (True, False)):
        absent = (() if ragged else ("counts",)) + (() if entropy else ("products",))
        signature = {"p": f"*{dtype}", "counts": "*i64", **partials, **sizes, **flags, "BLOCK": "constexpr"}
        constants = {"RAGGED": ragged, "ENTROPY": entropy, "BLOCK": BLOCK, **dict.fromkeys(absent)}
        aligned = tuple(x for x in ("p", "counts", *partials, "V", "p_request", "p_row") if x not in absent)
        name = f"block_{dtype}{'_ragged' * ragged}{'_entropy' * entropy}"
        yield Variant(name, _block, signature | dict.fromkeys(absent, "constexpr"), constants, {"num_warps": 4}, aligned)
    for blocks, entropy in product((1, 128), (True, False)):  # a vocabulary of one block, and of 262,144
        absent = () if entropy else ("products", "entropy")
        out = {"token": "*i64", "entropy": "*fp32", "V": "i32", "blocks": "i32", "ENTROPY": "constexpr", "BLOCKS": "constexpr"}
        constants = {"ENTROPY": entropy, "BLOCKS": blocks, **dict.fromkeys(absent)}
        aligned = tuple(x for x in (*partials, "token", "entropy", "V") if x not in absent)
        name = f"row_{blocks}{'_entropy' * entropy}"
        yield Variant(name, _row, {**partials, **out} | dict.fromkeys(absent, "constexpr"), constants, {"num_warps": 1}, aligned)
