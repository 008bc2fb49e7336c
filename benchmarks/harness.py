"""Measure functions side by side on the same inputs, and say how near the hardware's own limit each comes.

A `Case` is one point: functions that compute the same thing (`contenders`), functions that compute something else at the same size
and are worth knowing (`yardsticks`), the inputs, and the fewest bytes and operations that any implementation needs. From these and
the ceilings that `ceilings` measures in the same run comes the floor, max(bytes / copy rate, flops / matmul rate): nothing runs
faster. What is reported is the median over many samples and their spread, the interquartile range over the median.

What keeps the numbers honest: random data; everything runs once before the clock starts (compilation, allocation); several copies of
the inputs, together larger than three times the cache, are used in turn; functions are sampled in turn, so that a machine that slows down
slows all of them down; on a CPU, one thread and the processor time of this process, which other processes cannot stretch much; on a GPU,
device events, and a replayed CUDA graph where one call is so short that launching it would be what is timed; a contender whose output is
not finite, or far from the first contender's, gets an error instead of a time.
"""

import itertools
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Case", "Timing", "ceilings", "families", "machine", "measure", "nbytes", "normal", "run", "side_by_side", "slopes"]

ROOT = Path(__file__).resolve().parent.parent
Thunk = Callable[..., Any]


def families() -> list[str]:
    """The families that are measured: `benchmarks/<family>.py` beside `spec/<family>/`."""
    return sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if (ROOT / "spec" / path.stem).is_dir())


@dataclass(frozen=True)
class Case:
    """One point of a sweep: `name` at `axis` = `at`, for instance "forward, causal" at T = 4096."""

    chapter: str  # "attention.flash"
    name: str
    axis: str
    at: int
    shape: str  # for people: "B 1, H 16, T 4096, D 128"
    dtype: torch.dtype  # of the matrix products, or of the data where there are none
    bytes: float
    flops: float
    inputs: Callable[[torch.Generator], tuple]  # one fresh set of arguments on the generator's device
    contenders: dict[str, Thunk]  # the first is what the others' outputs are compared with
    yardsticks: dict[str, Thunk] = field(default_factory=dict)
    prediction: Callable[[dict[str, float]], dict[str, float]] | None = None  # of a model, from the ceilings; never a measurement


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of `n` samples, how they spread, and the fastest."""

    seconds: float
    spread: float
    best: float
    n: int
    how: str  # processor, events or graph


def measure(function: Thunk, inputs: list[tuple], budget: float = 0.5) -> Timing:
    """Time one function over rotating inputs, for about `budget` seconds."""
    return side_by_side({"it": function}, inputs, budget)["it"]


def side_by_side(functions: dict[str, Thunk], inputs: list[tuple], budget: float = 0.5) -> dict[str, Timing]:
    """Time several functions in turn, about `budget` seconds each: at least 5 samples, at most 200."""
    clocks = {name: _stopwatch(function, inputs) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    spent = dict.fromkeys(functions, 0.0)
    for _ in range(200):
        for name, (sample, _) in clocks.items():
            if len(samples[name]) < 5 or spent[name] < budget:
                begin = time.perf_counter()
                samples[name].append(sample())
                spent[name] += time.perf_counter() - begin
    return {name: _timing(samples[name], how) for name, (_, how) in clocks.items()}


def _timing(samples: list[float], how: str) -> Timing:
    low, median, high = np.percentile(samples, [25, 50, 75])
    return Timing(float(median), float((high - low) / median), min(samples), len(samples), how)


def _stopwatch(function: Thunk, inputs: list[tuple]) -> tuple[Callable[[], float], str]:
    """A function that returns the seconds of one call, averaged over a pass, and the name of the clock it uses."""
    if any(isinstance(x, torch.Tensor) and x.is_cuda for x in inputs[0]):
        return _device_stopwatch(function, inputs)
    once = _warm(function, inputs, lambda: None)
    calls, turn = max(1, math.ceil(1e-3 / once)), itertools.cycle(inputs)  # a sample lasts a millisecond or longer

    def sample() -> float:
        begin = time.process_time()
        for _ in range(calls):
            function(*next(turn))
        return (time.process_time() - begin) / calls

    return sample, "processor"


def _warm(function: Thunk, inputs: list[tuple], wait: Callable[[], None]) -> float:
    """Call until compilation and allocation are over, and return the seconds of a warm call."""
    seconds = []
    for arguments in itertools.islice(itertools.cycle(inputs), 3):
        wait()
        begin = time.perf_counter()
        function(*arguments)
        wait()
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] > 2:  # slow enough for what start-up costs not to matter
            break
    return max(min(seconds), 1e-7)


def _device_stopwatch(function: Thunk, inputs: list[tuple]) -> tuple[Callable[[], float], str]:
    once = _warm(function, inputs, torch.cuda.synchronize)
    short = once < 3e-4  # launching from Python costs up to this much
    calls = max(math.ceil(1e-3 / once), len(inputs) if short else 1)
    turn = itertools.cycle(inputs)

    def calls_in_turn() -> None:
        for arguments in itertools.islice(turn, calls):
            function(*arguments)

    body, how = _captured(calls_in_turn) if short else (calls_in_turn, "events")
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample() -> float:
        function(*inputs[-1])  # keeps the device busy while the calls are being queued
        begin.record()
        body()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / calls

    return sample, how


def _captured(calls: Callable[[], None]) -> tuple[Callable[[], None], str]:
    """The calls as a CUDA graph; where they cannot be captured, the calls themselves, and the record says so."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            calls()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls()
        return graph.replay, "graph"
    except Exception as error:  # whatever a peer does that capture forbids
        torch.cuda.synchronize()
        return calls, f"events, launches included (no graph: {_first_line(error)})"


def run(case: Case, device: torch.device, limits: dict[str, float], budget: float = 0.5) -> Iterator[dict[str, Any]]:
    """Measure every function of a case; yields one record each. An error is a record too."""
    generator = torch.Generator(device).manual_seed(0)
    functions = case.contenders | case.yardsticks
    bound, floor = floor_of(case, limits)
    prediction = case.prediction(limits) if case.prediction else {}
    common = {
        "chapter": case.chapter, "name": case.name, "axis": case.axis, "at": case.at, "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."), "bytes": case.bytes, "flops": case.flops, "floor": floor, "bound": bound,
        "prediction": prediction,
    }  # fmt: skip
    try:
        inputs = _copies(case, generator, device)
    except Exception as error:
        yield from (common | {"who": who, "error": _first_line(error)} for who in functions)
        return
    errors = dict(_refused(case, inputs[0]))
    times = side_by_side({who: f for who, f in functions.items() if who not in errors}, inputs, budget)
    for who in functions:
        record = common | {"who": who, "same": who in case.contenders, "copies": len(inputs)}
        if who in errors:
            yield record | {"error": errors[who]}
        else:
            yield record | asdict(times[who]) | {"of_floor": floor / times[who].seconds}


def floor_of(case: Case, limits: dict[str, float]) -> tuple[str, float]:
    """What limits a case on this machine, "bytes" or "flops", and the seconds it takes at least."""
    floors = {"bytes": case.bytes / limits["copy"]}
    rate = limits.get(str(case.dtype).removeprefix("torch."))
    if case.flops and rate:
        floors["flops"] = case.flops / rate
    bound = max(floors, key=floors.__getitem__)
    return bound, floors[bound]


def _copies(case: Case, generator: torch.Generator, device: torch.device) -> list[tuple]:
    """Sets of inputs that together exceed three caches, as far as 64 sets and 8 GiB (512 MiB on a CPU) allow."""
    first = case.inputs(generator)
    allowed = (8192 if device.type == "cuda" else 512) << 20
    wanted = math.ceil(3 * cache_bytes(device) / max(case.bytes, 1)) + 1
    count = max(1, min(wanted, 64, allowed // max(nbytes(*first), 1)))
    return [first, *(case.inputs(generator) for _ in range(count - 1))]


def _refused(case: Case, arguments: tuple) -> Iterator[tuple[str, str]]:
    """Functions that raise, and contenders whose output is not the first contender's: a wrong answer has no speed."""
    expected = None
    for who, function in (case.contenders | case.yardsticks).items():
        try:
            output = _flat(function(*arguments))
        except Exception as error:
            yield who, _first_line(error)
            continue
        if who in case.contenders and not torch.isfinite(output).all():
            yield who, "the output is not finite"
        elif who in case.contenders and expected is None:
            expected = output
        elif who in case.contenders and expected is not None:
            off = float((output - expected).norm() / expected.norm().clamp_min(1e-30)) if output.shape == expected.shape else math.inf
            if not off <= 0.05:  # a gross check, so that no broken contender gets a time; accuracy is the conformance suite's business
                yield who, f"the output is {off:.2g} away from that of {next(iter(case.contenders))}"


def _flat(output: Any) -> torch.Tensor:
    """The first result of a call, as one vector."""
    first = output[0] if isinstance(output, tuple | list) else output
    return torch.as_tensor(first).detach().flatten().double()


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """The best this machine does now: bytes per second of a large copy, read and written, and matmul operations per second."""
    generator = torch.Generator(device).manual_seed(0)
    large = device.type == "cuda"
    n, size, budget = (512, 1 << 24, 0.05) if quick else (8192, 1 << 30, 0.5) if large else (2048, 1 << 28, 0.5)
    source = normal(generator, size // 4)
    rates = {"copy": 2 * size / measure(lambda x, y: y.copy_(x), [(source, torch.empty_like(source))], budget).best}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pairs = [(normal(generator, n, n, dtype=dtype), normal(generator, n, n, dtype=dtype)) for _ in range(2)]
        rates[str(dtype).removeprefix("torch.")] = 2 * n**3 / measure(torch.matmul, pairs, budget).best
    codes = [torch.randint(-127, 128, (n, n), dtype=torch.int8, device=device, generator=generator) for _ in range(2)]
    with suppress(RuntimeError):  # not every device has an integer product
        rates["int8"] = 2 * n**3 / measure(torch._int_mm, [(codes[0], codes[1].t())], budget).best
    return rates


def machine(device: torch.device) -> dict[str, Any]:
    """Everything that a number depends on: the device, versions, commit, date, threads and load."""
    import triton

    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__, "numpy": np.__version__}
    return {
        "device": device_name(device),
        "slug": slug(device),
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    name = found.group(1) if found else platform.processor() or platform.machine()
    return f"{re.sub(r'[(](R|TM)[)]', '', name)}, {os.cpu_count()} cores"


def slug(device: torch.device) -> str:
    """The device's name as a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def cache_bytes(device: torch.device) -> int:
    """The largest cache that all cores share: a GPU's L2, a CPU's last level."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20))
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=32 << 20)


def _git(*arguments: str) -> str:
    """A git answer, or nothing where this is no checkout or git is missing."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal data on the generator's device."""
    return torch.randn(*shape, generator=generator, device=generator.device).to(dtype)


def nbytes(*tensors: Any) -> int:
    """Bytes of all tensors among the arguments."""
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))


def slopes(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """How cost grows: the least-squares slope of log seconds over log `at`, where there are three sizes or more.

    Over the larger half of the sizes, three at least: what a call costs at any size would hide the growth in the smaller ones.
    """
    curves: dict[tuple, list[tuple[float, float]]] = {}
    for record in records:
        if "seconds" in record and record["at"] > 0:
            key = (record["chapter"], record["name"], record["dtype"], record["axis"], record["who"])
            curves.setdefault(key, []).append((math.log(record["at"]), math.log(record["seconds"])))
    result = []
    for (chapter, name, dtype, axis, who), points in curves.items():
        if len(points) >= 3:
            x, y = zip(*sorted(points)[-max(3, (len(points) + 1) // 2) :], strict=True)
            slope = statistics.linear_regression(x, y).slope
            ends = {"start": round(math.exp(x[0])), "stop": round(math.exp(x[-1]))}
            result.append({"chapter": chapter, "name": name, "dtype": dtype, "axis": axis, "who": who, "slope": slope, **ends})
    return result


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
