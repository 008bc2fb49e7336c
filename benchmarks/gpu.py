"""`python -m benchmarks.gpu [--output DIR]`: all that a machine with a GPU can tell, in one go of at most 20 minutes.

Nothing is installed: the Python that runs this needs torch, triton, numpy, hypothesis, pytest, scipy, ml_dtypes, transformers, typer and
rich, and `PYTHONPATH=src`. Stages, each in a process of its own with a limit of its own: determinism, CUDA graphs and far rows
(`conformance/suite/test_gpu.py`); the benchmarks, family by family; the suite with profile `gpu`, family by family. DIR/<device> gets
`summary.json`, rewritten after every stage, one `<family>.json` each, `check.json` (what `twofold check --json` prints, merged),
and `log.txt`. A stage that fails, hangs or runs out of time leaves the others alone, and what it had written; time that it does not need is
the next one's. Charts are drawn later, by `benchmarks.plots`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import harness

__all__ = ["Stage", "main", "run", "stages"]

TESTS = harness.ROOT / "src" / "twofold" / "conformance"  # through the link: one name for every module


@dataclass(frozen=True)
class Stage:
    """One command, and the seconds that it may take. With `check`, its output is a report of `twofold check --json`."""

    name: str
    command: tuple[str, ...]
    seconds: float
    check: bool = False


def stages(device: str, quick: bool, results: Path) -> list[Stage]:
    """What only a device shows, the benchmarks, the suite; the limits add up to less than 20 minutes."""
    python, profile = sys.executable, "quick" if quick else "gpu"
    suites = [path.name for path in sorted(TESTS.iterdir()) if path.name != "suite" and any(path.glob("test_*.py"))]
    families = harness.families()
    seconds = 480 / len(families)  # each
    check = (python, "-m", "twofold.cli", "check", "--profile", profile, "--device", device, "--json")
    bench = (python, "-m", "benchmarks", "--device", device, "--output", str(results), "--no-plots", *(["--quick"] if quick else []))
    test = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "suite" / "test_gpu.py"))
    return [
        Stage("device", test, 150),
        *(Stage(f"benchmarks {family}", (*bench, "--seconds", f"{0.75 * seconds:.0f}", family), seconds) for family in families),
        *(Stage(f"check {family}", (*check, family), 510 / len(suites), check=True) for family in suites),
    ]


def run(todo: Sequence[Stage], output: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Run the stages one after the other; the summary is on disk after each."""
    output.mkdir(parents=True, exist_ok=True)
    summary["stages"] = {stage.name: {"outcome": "not started"} for stage in todo}
    deadline = time.monotonic() + sum(stage.seconds for stage in todo)
    for place, stage in enumerate(todo):
        _write(output / "summary.json", summary)
        print(f"{stage.name} …", flush=True)
        begin = time.monotonic()
        limit = deadline - begin - sum(later.seconds for later in todo[place + 1 :])
        outcome, printed = _process(stage, limit, output / "log.txt")
        summary["stages"][stage.name] |= {"outcome": outcome, "seconds": round(time.monotonic() - begin, 1)}
        if stage.check:
            summary["check"] = _merged(output / "check.json", printed, summary.get("check"))
        print(f"{stage.name}: {outcome}, {summary['stages'][stage.name]['seconds']} s", flush=True)
    _write(output / "summary.json", summary)
    return summary


def _process(stage: Stage, limit: float, log: Path) -> tuple[str, str]:
    """How a stage ended, and what it printed where that is a report; everything else goes to the log as it comes."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(harness.ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    with log.open("a") as file:
        file.write(f"\n== {stage.name}: {' '.join(stage.command)}\n")
        file.flush()
        process = subprocess.Popen(
            stage.command, cwd=harness.ROOT, env=environment, stdout=subprocess.PIPE if stage.check else file, stderr=file,
            text=True, process_group=0,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            printed = ""
            outcome = f"stopped after {limit:.0f} s"
        else:
            outcome = "passed" if process.returncode == 0 else f"failed ({process.returncode})"
        finally:
            _end(process)
    return outcome, printed or ""


def _end(process: subprocess.Popen) -> None:
    """End the stage with all it started: a test run has workers of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _merged(path: Path, printed: str, totals: dict[str, int] | None) -> dict[str, int]:
    """Add one family's report to the file, and return how many tests passed, failed and were skipped in all."""
    empty = {"passed": 0, "failed": 0, "skipped": 0, "chapters": {}, "failures": []}
    merged: dict[str, Any] = json.loads(path.read_text()) if totals else empty
    try:
        report = json.loads(printed)
    except json.JSONDecodeError:  # the stage crashed or was stopped; its outcome says so
        report = {}
    counts = {count: merged[count] + report.get(count, 0) for count in ("passed", "failed", "skipped")}
    chapters = merged["chapters"] | report.get("chapters", {})
    _write(path, counts | {"chapters": chapters, "failures": merged["failures"] + report.get("failures", [])})
    return counts


def _write(path: Path, content: Any) -> None:
    path.with_suffix(".part").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".part").replace(path)


def headlines(output: Path) -> list[str]:
    """One line per sweep: twofold at the largest size, against the floor and the best peer that computes the same."""
    lines = []
    for path in sorted(output.glob("*.json")):
        report = json.loads(path.read_text())
        sweeps: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in report.get("results", []):
            sweeps.setdefault((row["chapter"], row["name"]), []).append(row)
        for (chapter, name), rows in sweeps.items():
            last = [row for row in rows if row["at"] == max(each["at"] for each in rows)]
            lines.append(f"{chapter} {name}, {last[0]['axis']} {last[0]['at']}: {_standing(last)}")
    return lines


def _standing(rows: list[dict[str, Any]]) -> str:
    ours: dict[str, Any] = next((row for row in rows if row["who"] == "twofold"), {"error": "not measured"})
    if "error" in ours:
        return f"twofold: {ours['error']}"
    peers = [row for row in rows if "seconds" in row and row["same"] and not row["who"].startswith(("twofold", "spec"))]
    best = min(peers, key=lambda row: row["seconds"], default=None)
    against = f", {ours['seconds'] / best['seconds']:.2f} times {best['who']}" if best else ""
    return f"{ours['seconds'] * 1e3:.4g} ms, {ours['of_floor']:.0%} of the floor ({ours['bound']}){against}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if every stage passed, else 1."""
    import torch

    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="The suite, determinism, CUDA graphs and benchmarks on a GPU.")
    results = harness.ROOT / "benchmarks" / "results"
    parser.add_argument("--output", type=Path, default=results, metavar="DIR", help="write to DIR/<device> (default: benchmarks/results)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu only to try the machinery")
    parser.add_argument("--quick", action="store_true", help="few examples, two sizes of each sweep")
    parser.add_argument("--only", nargs="+", metavar="STAGE", default=["*"], help="globs of stage names: 'check *', device, 'benchmarks *'")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu --quick tries the machinery")
    device = torch.device(options.device)
    results = options.output.resolve()  # stages run elsewhere
    output = results / harness.slug(device)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`: no stage outlives this process
    todo = [each for each in stages(options.device, options.quick, results) if any(fnmatch(each.name, only) for only in options.only)]
    if not todo:
        parser.error(f"no stage is named {' '.join(options.only)}")
    summary = run(todo, output, {"machine": harness.machine(device), "quick": options.quick})
    print("\n".join(["", summary["machine"]["device"], *headlines(output), ""]))
    for name, stage in summary["stages"].items():
        print(f"{stage['outcome']:>20}  {name}")
    tests = summary.get("check")
    print(f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped" if tests else "the suite was not run")
    return int(any(stage["outcome"] != "passed" for stage in summary["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
