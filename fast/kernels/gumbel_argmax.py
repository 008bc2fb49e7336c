"""Draws with noise that everybody shares: the first token of a row to arrive in a race of exponentials, which is argmax(log p + g).

The noise is never stored. Token v of a request's position t has the counter (t, request id, role NOISE, ordinal v) of the contract in
`philox.py`, and so for whoever holds a race there, drafter or target. Its first two output words give one number in (0, 1),
u = (word0 + (word1 + 1/2) 2^-32) 2^-32, the arrival time is E = -log(1 - u), and the token with the least E / p wins, the lowest id of
equals. List k of several has the ordinals k V + v.

Why two words: in a large vocabulary the winner's E is often about as small as its p, so what counts is how finely *small* times are
resolved. With 24 bits, which are 0 every 2^24-th time, a token of p = 10^-9 would come 60 times too often; with these 64 the steps are
relative, as float32's own.

Two launches, no atomics, the same bits in every batch. `_race`, one program per row and block of 2048 tokens, computes the noise and the
earliest time; a block without mass computes none, so rows cut to their likeliest tokens cost little. `_finish` takes the blocks
together. A time has at most 32 roundings of 2^-24 (a logarithm of 3 units in the last place, divisions of 2, and the rest), so it is
within 2^-19, and everybody names the same token unless the two best times are within 2^-18 of each other, relatively. A row with a
NaN, an infinity or no mass gives -1.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels import philox
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "arrival", "gumbel_argmax", "variants"]

BLOCK = 2048
NOISE = tl.constexpr(philox.NOISE)


@triton.jit
def _arrival(high, low):
    """-log(1 - u) to a few roundings, however small u is: log(w) / (w - 1) hardly changes where w = 1 - u was rounded."""
    u = (high.to(tl.float32) + (low.to(tl.float32) + 0.5) * 2.3283064365386963e-10) * 2.3283064365386963e-10  # 2^-32
    u = tl.minimum(u, 0.99999994)  # 1 - 2^-24: no time is infinite
    w = 1.0 - u
    below = tl.where(w == 1.0, -1.0, w - 1.0)
    return tl.where(w == 1.0, u, u * (tl.log(w) / below))


@triton.jit(do_not_specialize=["seed", "first", "lists"])
def _race(
    p, request, position, counts, times, tokens, R, V, blocks, first, lists, p_request, p_row, seed,
    RAGGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks
    b, i = n // R, n % R
    v = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    width = tl.cast(V, tl.int64)
    if RAGGED:
        width = tl.where(i < tl.load(counts + b), width, 0)
    weight = tl.load(p + b * p_request + i * p_row + v, mask=v < width, other=0.0).to(tl.float32)
    broken = tl.max(((weight != weight) | (weight == float("inf"))).to(tl.int32), axis=0)
    earliest = tl.full((BLOCK,), float("inf"), tl.float32)
    if tl.max((weight > 0).to(tl.int32), axis=0) > 0:
        who, where = tl.load(request + b), tl.load(position + b) + i
        same = tl.zeros((BLOCK,), tl.int64)
        low, high = (same + (who & 0xFFFFFFFF)).to(tl.uint32), (same + ((who >> 32) & 0xFFFFFFFF)).to(tl.uint32)
        there = (same + (where & 0xFFFFFFFF)).to(tl.uint32)
        for k in range(first, first + lists):
            what = NOISE + ((k * width + v) << 8)
            word0, word1, _, _ = tl.philox(seed, there, low, high, what.to(tl.uint32))
            earliest = tl.minimum(earliest, _arrival(word0, word1))
    time = tl.where(weight > 0, earliest / tl.where(weight > 0, weight, 1.0), float("inf"))
    best = tl.min(time, axis=0)
    at = n * blocks + block
    tl.store(times + at, tl.where(broken > 0, -1.0, best))
    tl.store(tokens + at, tl.min(tl.where(time == best, v, V), axis=0).to(tl.int32))


@triton.jit
def _finish(times, tokens, out, V, blocks, BLOCKS: tl.constexpr):
    n = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    time = tl.load(times + n * blocks + block, mask=block < blocks, other=float("inf"))
    token = tl.load(tokens + n * blocks + block, mask=block < blocks, other=0)
    best = tl.min(time, axis=0)
    winner = tl.min(tl.where(time == best, token, V), axis=0)
    tl.store(out + n, tl.where((best >= 0) & (best < float("inf")), winner, -1).to(tl.int64))


def gumbel_argmax(p, seed, request, position, *, counts=None, first=0, lists=1):
    """The tokens `(B, R)`, int64, that win the races of rows p `(B, R, V)`; row i belongs to the place `position[b] + i` of the text.

    `request`, `position` and `counts` are int64 `(B,)`; rows from `counts[b]` on are not read and give -1. A token's time is the earliest
    of its times in the lists `first` … `first + lists - 1`.
    """
    return _gumbel_argmax(p, seed - (1 << 64) if seed >= 1 << 63 else seed, request, position, counts, first, lists)


@torch.library.custom_op("twofold::gumbel_argmax", mutates_args=())
def _gumbel_argmax(
    p: torch.Tensor, seed: int, request: torch.Tensor, position: torch.Tensor, counts: torch.Tensor | None, first: int, lists: int
) -> torch.Tensor:
    if backend.triton(p):
        return _race_triton(p, seed, request.contiguous(), position.contiguous(), counts, first, lists)
    return _race_torch(p, seed, request, position, counts, first, lists)


@_gumbel_argmax.register_fake
def _(p, seed, request, position, counts, first, lists):
    return p.new_empty(p.shape[:2], dtype=torch.int64)


def _race_triton(p, seed, request, position, counts, first, lists):
    B, R, V = p.shape
    out = torch.empty(B, R, dtype=torch.int64, device=p.device)
    if out.numel():
        blocks = triton.cdiv(V, BLOCK)
        times = torch.empty(B * R, blocks, device=p.device)
        tokens = torch.empty(B * R, blocks, dtype=torch.int32, device=p.device)
        counts = None if counts is None else counts.contiguous()
        _race[(B * R * blocks,)](
            p, request, position, counts, times, tokens, R, V, blocks, first, lists, p.stride(0), p.stride(1), seed,
            RAGGED=counts is not None, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
        _finish[(B * R,)](times, tokens, out, V, blocks, BLOCKS=triton.next_power_of_2(blocks), num_warps=1)
    return out


def _race_torch(p, seed, request, position, counts, first, lists):
    """The twin: noise for the tokens of positive probability only."""
    B, R, V = p.shape
    weight = p.float()
    if counts is not None:
        weight = weight.masked_fill((torch.arange(R, device=p.device) >= counts[:, None])[:, :, None], 0.0)
    b, i, v = (weight > 0).nonzero(as_tuple=True)  # (n,)
    who, where = request[b], position[b] + i
    earliest = torch.full(v.shape, torch.inf, device=p.device)
    for k in range(first, first + lists):
        words = philox.philox(seed, where, who, who >> 32, philox.NOISE + ((k * V + v) << 8))
        earliest = torch.minimum(earliest, arrival(words[0], words[1]))
    time = torch.full_like(weight, torch.inf)
    time[b, i, v] = earliest / weight[b, i, v]
    broken = (weight.isnan() | weight.isinf()).any(2)
    best, token = time.amin(2), time.argmin(2)  # the first of equals
    return torch.where((best < torch.inf) & ~broken, token, -1)


def arrival(high, low):
    """The arrival time of two words, int64 of 32 bits each, in float32: the kernel's own steps."""
    u = (high.float() + (low.float() + 0.5) * 2.0**-32) * 2.0**-32
    u = u.clamp(max=1 - 2.0**-24)
    w = 1 - u
    return torch.where(w == 1, u, u * (w.log() / torch.where(w == 1, -1.0, w - 1)))


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    sizes = dict.fromkeys(("R", "V", "blocks", "first", "lists", "p_request", "p_row"), "i32")
    partial = {"times": "*fp32", "tokens": "*i32"}
    for dtype, ragged in (("fp32", True), ("bf16", True), ("fp16", True), ("bf16", False)):
        counts = "*i64" if ragged else "constexpr"
        signature = {"p": f"*{dtype}", "request": "*i64", "position": "*i64", "counts": counts, **partial, **sizes, "seed": "i64"}
        constants = {"RAGGED": ragged, "BLOCK": BLOCK} | ({} if ragged else {"counts": None})
        aligned = ("p", "request", "position", *partial, "V", "p_request", "p_row") + (("counts",) if ragged else ())
        name = f"race_{dtype}{'' if ragged else '_full'}"
        yield Variant(name, _race, signature | dict.fromkeys(("RAGGED", "BLOCK"), "constexpr"), constants, {"num_warps": 8}, aligned)
    for blocks in (1, 128):  # the extremes: a vocabulary of one block, and of 262,144
        signature = {**partial, "out": "*i64", "V": "i32", "blocks": "i32", "BLOCKS": "constexpr"}
        yield Variant(f"finish_{blocks}", _finish, signature, {"BLOCKS": blocks}, {"num_warps": 1}, ("times", "tokens", "out", "V"))
