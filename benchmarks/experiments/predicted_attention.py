"""What attention kernels would do on an H100, from counting: a prediction, never a measurement.

Operations and bytes are counted over the tiles that a kernel visits, those that a causal mask cuts in two included. Registers, shared
memory and the number of programs that fit on a multiprocessor are what the compiler says of the kernel, ahead of time. Times are a model's:

- *matrix*: operations over the data sheet's rate;
- *exponentials*: 16 a clock and multiprocessor;
- *other float32 work*: 128 a clock and multiprocessor; 4.5 a score forward (scale and subtract, maximum, sum, conversion), 5 in a gradient
  (scale and subtract, times dP - D, two conversions, a half for the mask's edges);
- *memory*: bytes over the data sheet's rate, or over 64 bytes a clock for each multiprocessor that has a program, if that is slower.

In a kernel that overlaps nothing the times add up, in one that overlaps all of them the longest remains; the truth lies between, unless a
launch is too small to fill the device or the second-level cache is too slow, which this model does not know.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

from benchmarks.plots import COLORS, GRAY, OURS

MATRIX, MEMORY, UNITS = 989.4e12, 3.35e12, 132  # NVIDIA's data sheet of the H100 SXM: dense bfloat16 operations, bytes, processors
CLOCK = 1.83e9  # under load
EXPONENTIALS, OTHER, PORT = 16, 128, 64  # a clock and multiprocessor: results, results, bytes
D = 128


@dataclass(frozen=True)
class Launch:
    """One kernel, as `kernel/variant` of the compile report: its programs, and what all of them do together."""

    kernel: str
    programs: int
    scores: int  # in all tiles that are visited
    products: int  # matrix products of 2 D operations per score
    other: float  # float32 operations per score
    bytes: int  # at least


def tiles(t_q: int, t_k: int, rows: int, keys: int, causal: bool) -> int:
    """How many tiles a walk visits, by rows or by keys alike: those with a pair that the mask allows."""
    if not causal:
        return ceil(t_q / rows) * ceil(t_k / keys)
    ends = (min(start + rows, t_q) + t_k - t_q for start in range(0, t_q, rows))  # keys that the last row of each block sees
    return sum(ceil(max(end, 0) / keys) for end in ends)


def forward(batch: int, heads: int, t: int, causal: bool) -> list[Launch]:
    scores = batch * heads * tiles(t, t, 128, 64, causal) * 128 * 64
    size = batch * heads * t * (4 * D * 2 + 4)
    return [Launch("tiled_attention/forward-window-bf16-d128-128x64-w8-s3", batch * heads * ceil(t / 128), scores, 2, 4.5, size)]


def backward(batch: int, heads: int, t: int) -> list[Launch]:
    """Two kernels: each computes scores and their gradients anew; one adds up dQ, the other dK and dV."""
    size = batch * heads * t * (4 * D * 2 + 8)  # q, k, v, do and two numbers per row
    launches = []
    for of, rows, keys, products in (("query", 64, 64, 3), ("key", 32, 64, 4)):
        kernel = f"tiled_attention_backward/{of}-window-bf16-d128-{rows}x{keys}-w8-s2"
        scores = batch * heads * tiles(t, t, rows, keys, causal=True) * rows * keys
        programs = batch * heads * ceil(t / (rows if of == "query" else keys))
        written = 2 * D * batch * heads * t * (1 if of == "query" else 2)
        launches.append(Launch(kernel, programs, scores, products, 5, size + written))
    return launches


def decode(batch: int, heads: int, kv_heads: int, t: int, page: int, size: int) -> list[Launch]:
    """One row per head; a group's rows fill a tile of 16. `size` is the length of a chunk."""
    kind = f"page{page}-16x64-w4-s{5 if page else 3}"
    cache, table = 2 * batch * kv_heads * t * D * 2, 4 * batch * t // page if page else 0
    chunks = ceil(t / size)
    scores = batch * kv_heads * t * 16
    return [
        Launch(f"split_attention/d128-bf16-{kind}", batch * kv_heads * chunks, scores, 2, 4.5, cache + table * kv_heads),
        Launch("combine_splits/combine-bf16-d128", batch * heads, 0, 0, 0, batch * heads * (chunks * (D + 1) * 4 + D * 2)),
    ]


CASES = {
    "forward, B 2, H 16, T 8192": (forward(2, 16, 8192, False), 4 * D * 2 * 16 * 8192**2),
    "forward, causal, B 2, H 16, T 8192": (forward(2, 16, 8192, True), 4 * D * 2 * 16 * 8192 * 8193 // 2),
    "backward, causal, B 2, H 16, T 8192": (backward(2, 16, 8192), 10 * D * 2 * 16 * 8192 * 8193 // 2),
    "decode, B 64, H 32/8, T 8192": (decode(64, 32, 8, 8192, 0, 512), 4 * D * 64 * 32 * 8192),
    "decode, pages of 16, B 64, H 32/8, T 8192": (decode(64, 32, 8, 8192, 16, 512), 4 * D * 64 * 32 * 8192),
    "decode, B 1, H 32/8, T 65536": (decode(1, 32, 8, 65536, 0, 512), 4 * D * 32 * 65536),
    "decode, one chunk, B 1, H 32/8, T 65536": (decode(1, 32, 8, 65536, 0, 65536), 4 * D * 32 * 65536),
}


def run() -> dict[str, Any]:
    from twofold.conformance import compile_report

    names = sorted({launch.kernel for launches, _ in CASES.values() for launch in launches})
    compiled = {f"{row['kernel']}/{row['variant']}": row for row in compile_report.report(names, workers=2) if row["arch"] == "90"}
    rows = [predicted(name, launches, wanted, compiled) for name, (launches, wanted) in CASES.items()]
    by_name = {row["case"]: row for row in rows}
    whole, split = by_name["decode, one chunk, B 1, H 32/8, T 65536"], by_name["decode, B 1, H 32/8, T 65536"]
    ratio = whole["ms, all overlaps"] / split["ms, all overlaps"]
    pages, plain = (by_name[f"decode, {kind}B 64, H 32/8, T 8192"]["GB"] for kind in ("pages of 16, ", ""))
    claims = {
        "pages of 16 move at most 1 % more than rows": pages <= 1.01 * plain,
        "one chunk leaves processors idle, and the rest cannot read at the memory's rate": ratio > 1,
    }
    what = "predicted for an H100 from counting, not measured"
    return {"what": what, "rows": rows, "split over one chunk": round(ratio, 2), "claims": claims}


def predicted(name: str, launches: list[Launch], wanted: int, compiled: dict[str, dict]) -> dict[str, Any]:
    """Everything about one case; `wanted` are the operations of the mathematics, without what a kernel does twice or masks away."""
    times = [seconds(launch) for launch in launches]
    apart, together = sum(sum(parts.values()) for parts in times), sum(max(parts.values()) for parts in times)
    main = launches[0]
    row = compiled[main.kernel]
    size = sum(launch.bytes for launch in launches)
    first = max(times[0], key=lambda what: times[0][what])
    rates = {"TF/s": [wanted / x / 1e12 for x in (apart, together)], "GB/s": [size / x / 1e9 for x in (apart, together)]}
    what = "GB/s" if first == "memory" else "TF/s"
    return {
        "case": name,
        "GB": round(size / 1e9, 3),
        "TFLOP, done": round(sum(2 * D * launch.products * launch.scores for launch in launches) / 1e12, 3),
        "TFLOP, needed": round(wanted / 1e12, 3),
        "programs": main.programs,
        "registers": row["registers"],
        "shared KiB": round(row["shared"] / 1024, 1),
        "programs per processor": round(row["occupancy"] * 64 / row["warps"]),
        "longest": first,
        "ms, nothing overlaps": round(apart * 1e3, 3),
        "ms, all overlaps": round(together * 1e3, 3),
        "rate": f"{rates[what][0]:.0f} to {rates[what][1]:.0f} {what}",
    }


def seconds(launch: Launch) -> dict[str, float]:
    """The times of the model."""
    busy = min(launch.programs, UNITS)
    return {
        "matrix": 2 * D * launch.products * launch.scores / (MATRIX * busy / UNITS),
        "exponentials": launch.scores / (EXPONENTIALS * busy * CLOCK),
        "other float32 work": launch.other * launch.scores / (OTHER * busy * CLOCK),
        "memory": launch.bytes / min(MEMORY, PORT * busy * CLOCK),
    }


def draw(panel: Any, report: dict[str, Any]) -> None:
    rows = report["rows"][::-1]
    for place, row in enumerate(rows):
        apart, together = row["ms, nothing overlaps"], row["ms, all overlaps"]
        color = OURS if "decode" in row["case"] else COLORS[1]
        panel.plot([together, apart], [place, place], color=color, linewidth=5, solid_capstyle="butt")
        panel.annotate(row["rate"], (apart, place), xytext=(6, -3), textcoords="offset points", fontsize=7, color=GRAY)
    panel.set(xscale="log", xlabel="predicted milliseconds: all overlaps … nothing overlaps", ylim=(-0.7, len(rows) - 0.3))
    left, right = panel.get_xlim()
    panel.set_xlim(left, right * 6)
    panel.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=7)
