"""What a row of logits is like: its greatest, the first id of it, the total weight and the entropy of its softmax, at any temperature.

Two launches, no atomics, the same bits on every run and in every batch:

1. `_block`, one program per row and block of 4096 logits: maximum, its first place, the sum of weights exp((l - max) / T) and of
   weight times exponent. This is the only time that the logits are read.
2. `_row`, one program per row: the blocks in order, rescaled to the row's maximum.

Where the greatest logit is not finite (a NaN anywhere, plus infinity, or no token allowed), the id is -1 and the numbers are NaN.

Rows of probabilities go to `likeliest`, which sums p log p as it stands, needs no maximum for it, and takes plus infinity for a number.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "bytes_read", "row_stats", "variants"]

BLOCK = 4096


def bytes_read(rows: int, V: int, dtype: torch.dtype) -> int:
    """Bytes of logits that `row_stats` reads: each once."""
    return rows * V * dtype.itemsize


@triton.jit
def _block(
    logits, T, sums, firsts, V, R, request, row, TEMPERED: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, block = tl.program_id(0).to(tl.int64) // BLOCKS, tl.program_id(0) % BLOCKS
    v = block * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = v < V
    x = tl.load(logits + n // R * request + n % R * row + v, mask=inside, other=float("-inf")).to(tl.float32)
    greatest = tl.max(x, axis=0)
    below = x - tl.where(greatest == float("-inf"), 0.0, greatest)  # a block may hold no token that is allowed
    if TEMPERED:
        below = below / _temperature(T, n)
    weights = tl.exp(below)  # a NaN anywhere, or an infinity, makes their sum NaN
    products = tl.where(weights == 0, 0.0, weights * below)
    first = tl.min(tl.where(x == greatest, v, V), axis=0)
    at = n * BLOCKS + block
    tl.store(firsts + at, first)
    tl.store(sums + 3 * n * BLOCKS + block, greatest)
    tl.store(sums + (3 * n + 1) * BLOCKS + block, tl.sum(weights, axis=0))
    tl.store(sums + (3 * n + 2) * BLOCKS + block, tl.sum(products, axis=0))


@triton.jit
def _temperature(T, n):
    """A greedy row has a temperature of 0; its weights are not asked for."""
    t = tl.load(T + n)
    return tl.where(t > 0, t, 1.0)


@triton.jit
def _row(
    T, sums, firsts, greatest_out, total_out, first_out, entropy_out, V, TEMPERED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)  # (BLOCKS,)
    maxima = tl.load(sums + 3 * n * BLOCKS + blocks)
    weights = tl.load(sums + (3 * n + 1) * BLOCKS + blocks)
    products = tl.load(sums + (3 * n + 2) * BLOCKS + blocks)
    greatest = tl.max(maxima, axis=0)
    first = tl.min(tl.where(maxima == greatest, tl.load(firsts + n * BLOCKS + blocks), V), axis=0)
    below = tl.where(maxima == float("-inf"), 0.0, maxima - greatest)  # a block without an allowed token weighs nothing as it is
    if TEMPERED:
        below = below / _temperature(T, n)
    scale = tl.exp(below)
    total = tl.sum(weights * scale, axis=0)
    products = tl.where(scale == 0, 0.0, (products + weights * below) * scale)
    entropy = tl.log(total) - tl.sum(products, axis=0) / total
    finite = (total > 0) & (total < float("inf"))  # false for a NaN
    tl.store(greatest_out + n, tl.where(finite, greatest, float("nan")))
    tl.store(total_out + n, tl.where(finite, total, float("nan")))
    tl.store(first_out + n, tl.where(finite, first, -1).to(tl.int64))
    tl.store(entropy_out + n, tl.where(finite, entropy, float("nan")))


@torch.library.custom_op("twofold::row_stats", mutates_args=())
def row_stats(logits: torch.Tensor, T: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of logits (B, R, V), innermost contiguous, at temperature T (B, R) float32 or 1: the greatest, the total weight relative to it,
    its first id in int64, and the entropy; all (B, R)."""
    if backend.triton(logits):
        return _stats_triton(logits, None if T is None else T.contiguous())
    return _stats_torch(logits, T)


@row_stats.register_fake
def _(logits, T):
    number = lambda dtype: logits.new_empty(logits.shape[:2], dtype=dtype)
    return number(torch.float32), number(torch.float32), number(torch.int64), number(torch.float32)


def _stats_triton(logits, T):
    B, R, V = logits.shape
    device = logits.device
    greatest, total, entropy = (torch.empty(B, R, device=device) for _ in range(3))
    first = torch.empty(B, R, dtype=torch.int64, device=device)
    if B * R:
        count = triton.cdiv(V, BLOCK)
        blocks = triton.next_power_of_2(count)
        sums, firsts = torch.empty(B * R, 3, blocks, device=device), torch.empty(B * R, blocks, dtype=torch.int32, device=device)
        flags = {"TEMPERED": T is not None, "BLOCKS": blocks}
        _block[(B * R * blocks,)](logits, T, sums, firsts, V, R, logits.stride(0), logits.stride(1), **flags, BLOCK=BLOCK, num_warps=8)
        _row[(B * R,)](T, sums, firsts, greatest, total, first, entropy, V, **flags, num_warps=1)
    return greatest, total, first, entropy


def _stats_torch(logits, T):
    x = logits.float()
    greatest = x.amax(-1, keepdim=True)  # (B, R, 1); a NaN stays one
    below = x - greatest
    below = below if T is None else below / torch.where(T > 0, T, 1.0)[:, :, None]
    weights = below.exp()
    total = weights.sum(-1)
    entropy = total.log() - torch.where(weights == 0, 0.0, weights * below).sum(-1) / total
    finite = (total > 0) & (total < float("inf"))
    greatest, total, entropy = (torch.where(finite, number, torch.nan) for number in (greatest[:, :, 0], total, entropy))
    return greatest, total, torch.where(finite, x.argmax(-1), -1), entropy


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    sizes = {"V": "i32", "R": "i32", "request": "i32", "row": "i32"}
    numbers = {"greatest_out": "*fp32", "total_out": "*fp32", "first_out": "*i64", "entropy_out": "*fp32"}
    for dtype, tempered in (("fp32", True), ("bf16", True), ("bf16", False), ("fp16", True)):
        T, fixed = ("*fp32", {}) if tempered else ("constexpr", {"T": None})
        partials = {"T": T, "sums": "*fp32", "firsts": "*i32"}
        flags = {"TEMPERED": "constexpr", "BLOCKS": "constexpr"}
        pointers = ("T", "sums", "firsts") if tempered else ("sums", "firsts")
        for blocks in (1, 64):  # the extremes: a vocabulary of one block, and of 262,144
            name, chosen = f"{dtype}_{'tempered' if tempered else 'plain'}_{blocks}", {**fixed, "TEMPERED": tempered, "BLOCKS": blocks}
            signature = {"logits": f"*{dtype}", **partials, **sizes, **flags, "BLOCK": "constexpr"}
            aligned = ("logits", *pointers, "V", "request", "row")
            yield Variant(f"block_{name}", _block, signature, {**chosen, "BLOCK": BLOCK}, {"num_warps": 8}, aligned)
            if dtype == "fp32" or not tempered:
                signature = {**partials, **numbers, "V": "i32", **flags}
                yield Variant(f"row_{name}", _row, signature, chosen, {"num_warps": 1}, (*pointers, *numbers, "V"))
