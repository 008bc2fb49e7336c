"""`twofold check`: run the suite in a process of its own, follow it live, and say how close each chapter comes to its bounds."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from twofold import discovery
from twofold.cli.console import console, table

__all__ = ["Unavailable", "run", "show"]

RECORD = "TWOFOLD_RECORD"  # the variable that tells the reporter which file to write
MOST_WORKERS = 8
SECONDS_BETWEEN_LINES = 20  # of progress, where it goes to a log


class Unavailable(RuntimeError):
    """What was asked for cannot run here."""


def run(
    patterns: Iterable[str] = (), target: str | None = None, device: str | None = None, profile: str = "dev", progress: bool = True
) -> dict[str, Any]:
    """Run the tests of the chapters that match, and return what they found.

    The result holds `passed`, `failed`, `skipped`; under `chapters` the same for each, with `worst`, the largest error over bound per
    "backend/dtype", and `skips`, how often each reason was given; under `implementation` how many of the tests that passed had an
    implementation under test, rather than the spec alone; and under `failures` each failed test with its message. No pattern runs
    everything, the tests of the suite itself too (chapter "suite"), unless the target is somebody else's.
    """
    files = _files(list(patterns), target)
    environment = _environment(target, device, profile)
    result: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "implementation": 0, "chapters": {}, "failures": []}
    with tempfile.TemporaryDirectory() as folder, _progress(progress) as tell:
        record, log = Path(folder, "record"), Path(folder, "log")
        environment[RECORD] = str(record)
        command = [sys.executable, "-m", "pytest", "-p", "twofold.cli.reporter", "-p", "no:cacheprovider", "-q", "-o", "addopts="]
        with log.open("wb") as output:
            process = subprocess.Popen([*command, *_workers(files), *files], env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            total = 0
            for event in _follow(record, process):
                total = event.get("collected", total)
                if "test" in event:
                    _count(result, event)
                tell(result, total)
        finally:
            process.terminate()
            code = process.wait()
        if code not in (0, 1, 5) and not result["failed"]:  # 0 passed, 1 failed, 5 found no test
            raise Unavailable(f"the suite did not run (pytest ended with {code}):\n{log.read_text(errors='replace')[-4000:]}")
    result["chapters"] = dict(sorted(result["chapters"].items()))
    return result


def show(result: dict[str, Any]) -> None:
    """A table of chapters, then why tests were skipped, then what failed."""
    for failure in result["failures"]:
        console().rule(f"FAILED {failure['test']}", align="left", style="red")
        console().print(failure["message"], markup=False)
    chapters = table("chapter", "passed", "failed", "skipped", "worst error / bound")
    for name, counts in result["chapters"].items():
        worst = [f"{where} {'∞' if ratio is None else format(ratio, '.2f')}" for where, ratio in sorted(counts["worst"].items())]
        chapters.add_row(name, *(str(counts[outcome]) for outcome in ("passed", "failed", "skipped")), " · ".join(worst))
    console().print(chapters)
    for reason, count in _reasons(result).items():
        console().print(f"skipped {count}: {reason}", markup=False)
    verdict = f"{result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped"
    console().print(verdict, markup=False)
    if not result["implementation"]:
        console().print("no implementation was checked", markup=False)


def _reasons(result: dict[str, Any]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for counts in result["chapters"].values():
        for reason, count in counts["skips"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    return reasons


def _files(patterns: list[str], target: str | None) -> list[str]:
    """The test files of the chapters that match; the folder of all tests where nothing was singled out."""
    if not patterns and not target:
        return [str(discovery.tree("conformance"))]
    names = [pattern for pattern in patterns if pattern != "suite"]
    chapters = discovery.select(names) if names or not patterns else []
    files = [file for chapter in chapters for file in discovery.tests(chapter)]
    if "suite" in patterns:
        files.append(discovery.tree("conformance") / "suite")
    if not files:
        raise Unavailable(f"no tests yet for {', '.join(chapter.name for chapter in chapters)}")
    return [str(file) for file in files]


def _workers(files: list[str]) -> list[str]:
    """One pytest worker per core where that pays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    several = len(files) > 1 or Path(files[0]).is_dir()
    if cores == 1 or not several or not importlib.util.find_spec("xdist"):
        return []
    return ["-n", str(min(cores, MOST_WORKERS)), "--dist", "worksteal"]


def _environment(target: str | None, device: str | None, profile: str) -> dict[str, str]:
    """What tells the suite where to run: Triton must know before its import whether its interpreter is wanted."""
    missing = [name for name in ("pytest", "hypothesis", "scipy", "ml_dtypes", "torch") if not importlib.util.find_spec(name)]
    if missing:
        raise Unavailable(f"the suite needs {', '.join(missing)}: install twofold with its extra 'conformance'")
    environment = {**os.environ, "TWOFOLD_PROFILE": profile}
    if device == "cuda" and not gpu():
        raise Unavailable("--device cuda: PyTorch sees no GPU here")
    if device:
        environment["TWOFOLD_DEVICE"] = device
    if device == "cuda":
        environment.pop("TRITON_INTERPRET", None)
    elif device == "cpu" or not gpu():
        environment["TRITON_INTERPRET"] = "1"
    if target:
        if not PathFinder.find_spec(target.partition(".")[0], [os.getcwd(), *sys.path]):
            raise Unavailable(f"--target {target}: no such module, neither in this folder nor installed")
        environment["TWOFOLD_TARGET"] = target
    return environment


def gpu() -> bool:
    """Whether PyTorch sees a GPU, asked of another process so that neither torch nor Triton is imported in this one."""
    if not any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg")):  # NVIDIA's driver, AMD's, Windows' under Linux
        return False
    return subprocess.run([sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]).returncode == 0


def _follow(record: Path, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The events of the record as they are written, until the process has ended."""
    record.touch()
    with record.open(encoding="utf-8") as lines:
        unfinished = ""
        while True:
            ended = process.poll() is not None
            while line := lines.readline():
                unfinished += line
                if unfinished.endswith("\n"):
                    yield json.loads(unfinished)
                    unfinished = ""
            if ended:
                return
            time.sleep(0.1)


def _count(result: dict[str, Any], event: dict[str, Any]) -> None:
    chapter = result["chapters"].setdefault(event["chapter"], {"passed": 0, "failed": 0, "skipped": 0, "worst": {}, "skips": {}})
    for counts in (result, chapter):
        counts[event["outcome"]] += 1
    result["implementation"] += event["outcome"] == "passed" and event.get("side") is not None
    if event["outcome"] == "failed":
        result["failures"].append({key: event[key] for key in ("chapter", "test", "message")})
    if event["outcome"] == "skipped":
        chapter["skips"][event["message"]] = chapter["skips"].get(event["message"], 0) + 1
    for _, where, _, ratio in event["ratios"]:
        chapter["worst"][where] = _larger(chapter["worst"].get(where, 0.0), ratio)


def _larger(one: float | None, other: float) -> float | None:
    """The larger ratio; None, which JSON can say, stands for one that is not finite."""
    return None if one is None or not math.isfinite(other) else max(one, other)


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[dict[str, Any], int], None]]:
    """Live on a terminal, a line now and then in a log, nothing if not wanted."""
    screen = console(stderr=True)
    if not wanted:
        yield lambda result, total: None
    elif screen.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=screen, transient=True) as bar:
            task = bar.add_task("collecting", total=None)

            def draw(result: dict[str, Any], total: int) -> None:
                failed = f"[red]{result['failed']} failed[/red]" if result["failed"] else "checking"
                bar.update(task, description=failed, total=total or None, completed=_done(result))

            yield draw
    else:
        last = time.monotonic()

        def line(result: dict[str, Any], total: int) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                screen.print(f"{_done(result)} of {total} tests, {result['failed']} failed")

        yield line


def _done(result: dict[str, Any]) -> int:
    return int(result["passed"] + result["failed"] + result["skipped"])
