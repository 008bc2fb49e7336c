"""Top-k, top-p and min-p of a row of logits as one threshold: the logit and the id of the last token kept, and what the kept ones weigh.

No sort, and no probability is stored. A float32 is an integer in disguise: its bits, with those below the sign flipped where it is
negative, are ordered as the numbers are. So the greatest threshold t at which the tokens of image >= t still number k, or weigh the
wanted mass, is found digit by digit, two bits at a time: one pass over the row adds up what lies at or above three candidates. That is 16
passes for float32, 10 for float16 and 8 for bfloat16, whose images have no more bits than that, whatever the data. (One bit at a time would
double the passes, eight at a time would need a histogram of weights, which no two runs add up alike without a fixed order.) Sums run
over a fixed order, in which adding a weight never makes a sum smaller: the search is monotone in floating point too.

One program per row. `row_stats` has read the row before; after it come, as far as a row's settings ask for them: the search by count and
one pass for the mass that it leaves, the search by mass and one pass for what lies above, one pass for min-p, and one last pass that finds
the id of the last tie kept and adds up the total. A row of temperature 0, or without a cut, is not read again.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.row_stats import row_stats
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "bytes_read", "passes", "row_cutoff", "variants"]

BLOCK = 4096
BITS = {torch.float32: 32, torch.float16: 20, torch.bfloat16: 16}  # of the image that tell two numbers of this format apart, made even


def passes(dtype: torch.dtype, k: bool, mass: bool, ratio: bool) -> int:
    """How often the kernel reads a sampled row, after `row_stats`, with these settings on."""
    search = BITS[dtype] // 2 + 1
    return k * search + mass * search + ratio + (k or mass or ratio)


def bytes_read(rows: int, V: int, dtype: torch.dtype, k: bool = False, mass: bool = False, ratio: bool = False) -> int:
    """Bytes of logits that `row_cutoff` reads in all; all but the first reading of a row can come from the cache."""
    return rows * V * dtype.itemsize * (1 + passes(dtype, k, mass, ratio))


@triton.jit
def _load(x, v, V, BITS: tl.constexpr):
    """A block of logits in float32 and their images, BITS wide and signed. Outside the row lies minus infinity: it weighs nothing, and by
    id it comes after every tie."""
    logits = tl.load(x + v, mask=v < V, other=float("-inf")).to(tl.float32)
    logits = tl.where(logits == 0, 0.0, logits)  # minus zero is zero
    bits = logits.to(tl.int32, bitcast=True)
    image = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return logits, image >> (32 - BITS)


@triton.jit
def _number(image, BITS: tl.constexpr):
    """The float32 of an image: `_load` backwards."""
    bits = image << (32 - BITS)
    flipped: tl.constexpr = 0x7FFFFFFF - ((1 << (32 - BITS)) - 1)
    return tl.where(bits < 0, bits ^ flipped, bits).to(tl.float32, bitcast=True)


@triton.jit
def _search(x, V, greatest, t, goal, WEIGHED: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The greatest image at or above which the row still counts, or weighs, the goal; the least of all where it never does."""
    found = tl.full((), -(1 << (BITS - 1)), tl.int32)
    for digit in range(BITS // 2):
        one = tl.full((), 1, tl.int32) << (BITS - 2 - 2 * digit)
        low, middle = found + one, found + one + one
        high = middle + one
        above_low = tl.zeros((BLOCK,), tl.float32)
        above_middle = tl.zeros((BLOCK,), tl.float32)
        above_high = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            logits, image = _load(x, v, V, BITS)
            if WEIGHED:
                weights = tl.exp((logits - greatest) / t)
            else:
                weights = tl.full((BLOCK,), 1.0, tl.float32)  # counts are exact up to 2^24
            above_low += tl.where(image >= low, weights, 0.0)
            above_middle += tl.where(image >= middle, weights, 0.0)
            above_high += tl.where(image >= high, weights, 0.0)
        found = tl.where(tl.sum(above_low, axis=0) >= goal, low, found)
        found = tl.where(tl.sum(above_middle, axis=0) >= goal, middle, found)
        found = tl.where(tl.sum(above_high, axis=0) >= goal, high, found)
    return found


@triton.jit
def _beyond(x, V, greatest, t, image, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Number and weight of the tokens strictly above this image."""
    count, weight = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        logits, images = _load(x, v, V, BITS)
        above = images > image
        count += above.to(tl.float32)
        weight += tl.where(above, tl.exp((logits - greatest) / t), 0.0)
    return tl.sum(count, axis=0), tl.sum(weight, axis=0)


@triton.jit
def _near(x, V, greatest, t, ratio, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The least image of a token that is at least `ratio` times as likely as the likeliest."""
    least = tl.full((BLOCK,), (1 << (BITS - 1)) - 1, tl.int32)
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        logits, images = _load(x, v, V, BITS)
        near = tl.exp((logits - greatest) / t) >= ratio
        least = tl.where(near, tl.minimum(least, images), least)
    return tl.min(least, axis=0)


@triton.jit
def _keep(x, V, greatest, t, image, ties, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """Of all above this image and the first `ties` at it: the number, the weight, and the id of the last tie."""
    seen, last = 0, tl.full((BLOCK,), -1, tl.int32)
    count, weight = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        logits, images = _load(x, v, V, BITS)
        tie = (images == image).to(tl.int32)
        place = seen + tl.cumsum(tie, axis=0)  # of a tie, from 1, by id
        last = tl.where((tie > 0) & (place <= ties), v, last)
        kept = (images > image) | (last == v)
        count += kept.to(tl.float32)
        weight += tl.where(kept, tl.exp((logits - greatest) / t), 0.0)
        seen = tl.max(place, axis=0)
    return tl.sum(count, axis=0), tl.sum(weight, axis=0), tl.max(last, axis=0)


@triton.jit
def _cutoff(
    logits, T, k, mass, ratio, greatest, total, first, t_out, cut_out, last_out, total_out, V, R, request, row,
    TEMPERED: tl.constexpr, COUNTED: tl.constexpr, WEIGHED: tl.constexpr, MEASURED: tl.constexpr,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    x = logits + n // R * request + n % R * row
    m, weight, t = tl.load(greatest + n), tl.load(total + n), tl.full((), 1.0, tl.float32)
    lawful = m == m
    sampled = lawful
    if TEMPERED:
        temperature = tl.load(T + n)
        sampled = lawful & (temperature > 0)
        t = tl.where(sampled, temperature, 1.0)
    cut, last = tl.full((), float("-inf"), tl.float32), tl.cast(V - 1, tl.int32)
    image, ties = tl.full((), -(1 << (BITS - 1)), tl.int32), tl.cast(V, tl.int32)  # nothing is cut
    if sampled:
        whole = weight
        if COUNTED:
            wanted = tl.load(k + n)
            if (wanted > 0) & (wanted < V):
                image = _search(x, V, m, t, wanted.to(tl.float32), False, BITS, BLOCK)
                above, whole = _beyond(x, V, m, t, image, BITS, BLOCK)
                ties = (wanted.to(tl.float32) - above).to(tl.int32)
                whole += ties * tl.exp((_number(image, BITS) - m) / t)
        if WEIGHED:
            share = tl.load(mass + n)
            if share < 1:
                goal = tl.maximum(share * whole, 1e-30)  # one token at least: the likeliest weighs 1
                reached = _search(x, V, m, t, goal, True, BITS, BLOCK)
                _, above = _beyond(x, V, m, t, reached, BITS, BLOCK)
                needed = (goal - above) / tl.exp((_number(reached, BITS) - m) / t)
                needed = tl.ceil(tl.minimum(tl.maximum(needed, 1.0), V)).to(tl.int32)
                ties = tl.where(reached > image, needed, tl.where(reached == image, tl.minimum(ties, needed), ties))
                image = tl.maximum(image, reached)
        if MEASURED:
            measure = tl.load(ratio + n)
            if measure > 0:
                near = _near(x, V, m, t, tl.minimum(measure, 1.0), BITS, BLOCK)
                ties = tl.where(near > image, V, ties)
                image = tl.maximum(image, near)
        if image > -(1 << (BITS - 1)):
            count, kept, at = _keep(x, V, m, t, image, ties, BITS, BLOCK)
            if count < V:
                cut, last, weight = _number(image, BITS), at, kept
    if TEMPERED:
        greedy = lawful & ~sampled
        cut, weight = tl.where(greedy, m, cut), tl.where(greedy, 1.0, weight)
        last = tl.where(greedy, tl.load(first + n).to(tl.int32), last)
    tl.store(t_out + n, t)
    tl.store(cut_out + n, tl.where(lawful, cut, float("nan")))
    tl.store(last_out + n, tl.where(lawful, last, -1).to(tl.int64))
    tl.store(total_out + n, tl.where(lawful, weight, float("nan")))


@torch.library.custom_op("twofold::row_cutoff", mutates_args=())
def row_cutoff(
    logits: torch.Tensor, T: torch.Tensor | None, k: torch.Tensor | None, mass: torch.Tensor | None, ratio: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The law of logits (B, R, V), innermost contiguous, under settings (B, R), float32 and k int64; None is off (and T = 1).

    Returns T, the greatest logit, cut, last (int64) and total, all (B, R). A row without a law has last -1 and NaN for the rest.
    """
    T, k, mass, ratio = (setting if setting is None else setting.contiguous() for setting in (T, k, mass, ratio))
    greatest, total, first, _ = row_stats(logits, T)
    side = _cutoff_triton if backend.triton(logits) else _cutoff_torch
    t, cut, last, total = side(logits, T, k, mass, ratio, greatest, total, first)
    return t, greatest, cut, last, total


@row_cutoff.register_fake
def _(logits, T, k, mass, ratio):
    number = lambda dtype: logits.new_empty(logits.shape[:2], dtype=dtype)
    return number(torch.float32), number(torch.float32), number(torch.float32), number(torch.int64), number(torch.float32)


def _cutoff_triton(logits, T, k, mass, ratio, greatest, total, first):
    B, R, V = logits.shape
    t, cut, weight, last = torch.empty_like(total), torch.empty_like(total), torch.empty_like(total), torch.empty_like(first)
    if B * R:
        flags = {"TEMPERED": T is not None, "COUNTED": k is not None, "WEIGHED": mass is not None, "MEASURED": ratio is not None}
        _cutoff[(B * R,)](
            logits, T, k, mass, ratio, greatest, total, first, t, cut, last, weight, V, R, logits.stride(0), logits.stride(1),
            **flags, BITS=BITS[logits.dtype], BLOCK=BLOCK, num_warps=16,
        )  # fmt: skip
    return t, cut, last, weight


def _cutoff_torch(logits, T, k, mass, ratio, greatest, total, first):
    """Takes the greatest values, as a library without kernels would: only of rows that are cut, and as deep as their cuts need."""
    V = logits.shape[2]
    lawful = greatest == greatest
    greedy = torch.zeros_like(lawful) if T is None else lawful & ~(T > 0)
    t = torch.ones_like(total) if T is None else torch.where(lawful & ~greedy, T, 1.0)
    cut, last = torch.where(greedy, greatest, -torch.inf), torch.where(greedy, first, V - 1)
    weight = torch.where(greedy, 1.0, total)
    count = torch.full_like(first, V) if k is None else torch.where((k > 0) & (k < V), k, V)
    share = torch.ones_like(total) if mass is None else mass
    measure = torch.zeros_like(total) if ratio is None else ratio
    rows = (lawful & ~greedy & ((count < V) | (share < 1) | (measure > 0))).nonzero(as_tuple=True)
    if len(rows[0]):
        cut[rows], last[rows], weight[rows] = _cut_rows(
            logits[rows].float(), *(number[rows][:, None] for number in (t, greatest, count, share, measure))
        )
    cut, weight = (torch.where(lawful, number, torch.nan) for number in (cut, weight))
    return t, cut, torch.where(lawful, last, -1), weight


def _cut_rows(x, t, greatest, count, share, measure):
    """Of rows (N, V) with one setting each (N, 1): logit and id of the last token kept, and the total weight; (N,)."""
    N, V = x.shape
    weights = ((x - greatest) / t).exp()
    cut = torch.where(weights >= measure.clamp(max=1), x, torch.inf).amin(1, keepdim=True)  # (N, 1); measure 0 keeps all
    ordered, kept = _beginning(x, weights, t, greatest, count, share)
    lowest = ordered.gather(1, kept.clamp(max=ordered.shape[1]) - 1)
    stricter = (kept < V) & (lowest >= cut)
    cut = torch.where(stricter, lowest, cut)
    ties = (ordered == cut) & (torch.arange(ordered.shape[1], device=x.device) < kept)  # equal ones are equal: their order is no matter
    ties = torch.where(stricter, ties.sum(1, keepdim=True), V)
    tie = x == cut
    last_tie = tie & (tie.cumsum(1) <= ties)
    keep = (x > cut) | last_tie
    last = torch.where(last_tie, torch.arange(V, device=x.device), -1).amax(1)
    some = keep.sum(1) < V
    total = torch.where(keep, weights, 0).sum(1)
    return torch.where(some, cut[:, 0], -torch.inf), torch.where(some, last, V - 1), total


def _beginning(x, weights, t, greatest, count, share):
    """The greatest logits in falling order, as deep as the cuts by count and by mass need, and how many they keep (N, 1)."""
    V, by_mass = x.shape[1], share < 1
    depth = int(torch.where(count < V, count, torch.where(by_mass, min(V, 1024), 1)).max())
    while True:
        ordered = x.topk(depth).values  # (N, depth)
        inside = torch.arange(depth, device=x.device) < count
        cumulative = torch.where(inside, ((ordered - greatest) / t).exp(), 0).cumsum(1)
        whole = torch.where(count < V, cumulative[:, -1:], weights.sum(1, keepdim=True))
        short = cumulative < share * whole  # beyond the count the sum stands still: nothing more is short
        kept = torch.where(by_mass, (1 + short.sum(1, keepdim=True)).clamp(max=count), count)
        if not (by_mass & (kept > depth)).any():
            return ordered, kept
        depth = min(V, 8 * depth)  # some row's mass lies deeper


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    settings = {"T": "*fp32", "k": "*i64", "mass": "*fp32", "ratio": "*fp32"}
    rest = {"greatest": "*fp32", "total": "*fp32", "first": "*i64", "t_out": "*fp32", "cut_out": "*fp32", "last_out": "*i64"}
    sizes = {"V": "i32", "R": "i32", "request": "i32", "row": "i32"}
    flags = {"T": "TEMPERED", "k": "COUNTED", "mass": "WEIGHED", "ratio": "MEASURED"}
    for dtype, bits in (("fp32", 32), ("bf16", 16), ("fp16", 20)):
        for name, on in (("all", tuple(flags)), ("k", ("k",)), ("mass", ("T", "mass")), ("ratio", ("T", "ratio")), ("plain", ())):
            given = {setting: settings[setting] if setting in on else "constexpr" for setting in settings}
            constants = {setting: None for setting in settings if setting not in on}
            signature = {"logits": f"*{dtype}", **given, **rest, "total_out": "*fp32", **sizes}
            signature |= dict.fromkeys((*flags.values(), "BITS", "BLOCK"), "constexpr")
            chosen = constants | {flag: setting in on for setting, flag in flags.items()} | {"BITS": bits, "BLOCK": BLOCK}
            aligned = ("logits", *on, *rest, "total_out", "V", "request", "row")
            yield Variant(f"{dtype}_{name}", _cutoff, signature, chosen, {"num_warps": 16}, aligned)
