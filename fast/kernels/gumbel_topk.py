"""k tokens without replacement per row, in one pass over the row: a race in which token v runs for the time noise / q(v).

With independent exponential noise the first k to arrive are k draws without replacement, in order (Gumbel-top-k: minus the logarithm of a
time is log q plus Gumbel noise). A time and its token are one 64-bit key, the time's bits above the id: positive floats are ordered as
their bits are, and ties go to the lower id. Two launches:

1. `_arrivals`, one program per row and block of 2048 tokens: the k least keys of the block, one minimum after another.
2. `_first`, one program per row: the k least of those.

Noise is given, or made where it is used from Philox: key (seed), counter (position, request, role DRAFT and node * V + v), as
`fast/kernels/philox.py` has it, but from all 32 bits of the word. The winners among 128k tokens have noise of about 2^-17, where a
multiple of 2^-24 would be too coarse.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.philox import DRAFT, philox
from twofold.fast.kernels.variant import Variant

__all__ = ["gumbel_topk", "gumbel_topk_seeded", "variants"]

BLOCK = 2048
NEVER = (1 << 63) - 1  # the key of a token that does not run
LATEST = 3.4028234663852886e38  # the greatest float32: a token of tiny probability arrives last, but arrives
_DRAFT, _NEVER, _LATEST = tl.constexpr(DRAFT), tl.constexpr(NEVER), tl.constexpr(LATEST)


@triton.jit
def _exponential(seed, position, request, node, v, V):
    """Exponential noise of mean 1, float32 and never 0: -log(1 - u), and u itself where 1 - u would lose its digits."""
    low, high = (request & 0xFFFFFFFF).to(tl.uint32), ((request >> 32) & 0xFFFFFFFF).to(tl.uint32)
    what = _DRAFT + ((node * V + v) << 8)
    word, _, _, _ = tl.philox(seed, (position & 0xFFFFFFFF).to(tl.uint32), low, high, what.to(tl.uint32))
    u = tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)  # 2^-32, and at most 1 - 2^-24
    rest = 1 - u
    return tl.where(rest == 1, u, -tl.log(rest) * (u / tl.where(rest == 1, 1.0, 1 - rest)))


@triton.jit(do_not_specialize=["seed"])
def _arrivals(
    q, noise, request, position, node, keys, seed, k, V, q_row, noise_row,
    SEEDED: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, block = tl.program_id(0).to(tl.int64) // BLOCKS, tl.program_id(0) % BLOCKS
    v = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rate = tl.load(q + b * q_row + v, mask=v < V, other=0.0).to(tl.float32)
    runs = rate > 0
    if SEEDED:
        run = _exponential(seed, tl.load(position + b), tl.load(request + b), tl.load(node + b), v, V)
    else:
        run = tl.load(noise + b * noise_row + v, mask=runs, other=0.0)
    time = tl.div_rn(run, tl.where(runs, rate, 1.0))
    broken = (rate != rate) | (rate == float("inf")) | (runs & (time != time))
    time = tl.where(time > _LATEST, _LATEST, tl.abs(time))
    key = tl.where(runs, (time.to(tl.int32, bitcast=True).to(tl.int64) << 32) | v, _NEVER)
    key = tl.where(broken, -1, key)
    for place in range(k):
        first = tl.min(key, axis=0)
        tl.store(keys + (b * BLOCKS + block) * k + place, first)
        key = tl.where((key == first) & (first >= 0), _NEVER, key)  # a broken row stays broken


@triton.jit
def _first(keys, out, k, count, SIZE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)
    key = tl.load(keys + b * count + i, mask=i < count, other=_NEVER)
    for place in range(k):
        first = tl.min(key, axis=0)
        tl.store(out + b * k + place, tl.where((first < 0) | (first == _NEVER), -1, first & 0xFFFFFFFF))
        key = tl.where((key == first) & (first >= 0), _NEVER, key)


@torch.library.custom_op("twofold::gumbel_topk", mutates_args=())
def gumbel_topk(q: torch.Tensor, k: int, noise: torch.Tensor) -> torch.Tensor:
    """The first k of the times noise / q (B, V), as ids (B, k) in order, -1 where no token is left."""
    if backend.triton(q):
        return _triton(q, k, noise, None, 0)
    return _first_torch(q, k, noise)


@torch.library.custom_op("twofold::gumbel_topk_seeded", mutates_args=())
def gumbel_topk_seeded(
    q: torch.Tensor, k: int, seed: int, request: torch.Tensor, position: torch.Tensor, node: torch.Tensor
) -> torch.Tensor:
    """The same with noise of its own for every seed, request, position (B,) and number node * V + v."""
    if backend.triton(q):
        return _triton(q, k, None, (request.contiguous(), position.contiguous(), node.contiguous()), seed)
    who, where = request[:, None].expand(q.shape), position[:, None].expand(q.shape)
    what = DRAFT + ((node[:, None] * q.shape[1] + torch.arange(q.shape[1], device=q.device)) << 8)
    word = philox(seed, where, who, who >> 32, what)[0]
    u = ((word.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return _first_torch(q, k, -torch.log1p(-u))


@gumbel_topk.register_fake
def _(q, k, noise):
    return q.new_empty(q.shape[0], k, dtype=torch.int64)


@gumbel_topk_seeded.register_fake
def _(q, k, seed, request, position, node):
    return q.new_empty(q.shape[0], k, dtype=torch.int64)


def _triton(q, k, noise, counters, seed):
    B, V = q.shape
    out = torch.empty(B, k, dtype=torch.int64, device=q.device)
    if not out.numel():
        return out
    blocks = triton.cdiv(V, BLOCK)
    keys = torch.empty(B, blocks * k, dtype=torch.int64, device=q.device)
    request, position, node = counters or (None, None, None)
    sizes = seed, k, V, q.stride(0), 0 if noise is None else noise.stride(0)
    flags = {"SEEDED": counters is not None, "BLOCKS": blocks, "BLOCK": BLOCK}
    _arrivals[(B * blocks,)](q, noise, request, position, node, keys, *sizes, **flags, num_warps=8)
    _first[(B,)](keys, out, k, blocks * k, SIZE=triton.next_power_of_2(blocks * k), num_warps=4)
    return out


def _first_torch(q, k, noise):
    rate, V = q.float(), q.shape[1]
    runs = rate > 0
    time = noise / torch.where(runs, rate, 1)
    broken = ((rate != rate) | (rate == float("inf")) | (runs & (time != time))).any(1, keepdim=True)
    bits = time.abs().clamp(max=LATEST).nan_to_num().view(torch.int32).long()
    keys = torch.where(runs, (bits << 32) | torch.arange(V, device=q.device), NEVER)
    first = keys.topk(min(k, V), dim=1, largest=False).values
    ids = torch.where(broken | (first == NEVER), -1, first & 0xFFFFFFFF)
    return torch.nn.functional.pad(ids, (0, k - ids.shape[1]), value=-1)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    for name, probability, seeded in (("bf16", "bf16", True), ("fp32", "fp32", True), ("given_noise", "fp32", False)):
        given, counters = ("constexpr", "*i64") if seeded else ("*fp32", "constexpr")
        signature = {"q": f"*{probability}", "noise": given, "request": counters, "position": counters, "node": counters, "keys": "*i64"}
        signature |= {"seed": "i64", "k": "i32", "V": "i32", "q_row": "i32", "noise_row": "i32"}
        constants = {"SEEDED": seeded, "BLOCKS": 64, "BLOCK": BLOCK}
        constants |= dict.fromkeys(("noise",) if seeded else ("request", "position", "node"))
        aligned = tuple(each for each in ("q", "noise", "request", "position", "node", "keys", "V", "q_row") if each not in constants)
        signature |= dict.fromkeys(constants, "constexpr")
        yield Variant(f"arrivals_{name}", _arrivals, signature, constants, {"num_warps": 8}, aligned)
    signature = {"keys": "*i64", "out": "*i64", "k": "i32", "count": "i32", "SIZE": "constexpr"}
    yield Variant("first", _first, signature, {"SIZE": 512}, {"num_warps": 4}, ("keys", "out", "count"))
