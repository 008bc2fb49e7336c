"""`python -m benchmarks [PATTERN…]`: measure on this machine, print a table, write JSON and charts under `benchmarks/results/<device>/`.

PATTERN is a family (`attention`), a chapter (`attention.flash`) or a glob of either. A run of whole families writes `<family>.json` and
`<family>.svg`; a part of a family, or `--quick`, is only shown unless `--output` says where to write. The file is written after every
case, so that a run that is cut short has lost nothing.
"""

import argparse
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, plots
from benchmarks.harness import Case

RESULTS = harness.ROOT / "benchmarks" / "results"


def selected(cases: Iterable[Case], patterns: list[str], quick: bool) -> list[Case]:
    """The cases that the patterns name, all of them where there is none; for a quick look, the two smallest of each sweep."""
    chosen = [case for case in cases if not patterns or any(_names(pattern, case.chapter) for pattern in patterns)]
    if not quick:
        return chosen
    sweep = lambda case: (case.chapter, case.name, str(case.dtype))
    sweeps = itertools.groupby(sorted(chosen, key=lambda case: (sweep(case), case.at)), key=sweep)
    return [case for _, points in sweeps for case in itertools.islice(points, 2)]


def _names(pattern: str, chapter: str) -> bool:
    return fnmatch(chapter, pattern) or fnmatch(chapter.split(".")[0], pattern)


def measured(family: str, cases: list[Case], device: torch.device, quick: bool, deadline: float) -> Iterator[dict[str, Any]]:
    """The family's report after every case, each longer than the one before."""
    started, budget = time.monotonic(), 0.05 if quick else 0.2 if device.type == "cuda" else 0.5
    limits = harness.ceilings(device, quick)
    report: dict[str, Any] = {"family": family, "machine": harness.machine(device), "ceilings": limits, "quick": quick}
    report |= {"results": [], "slopes": [], "not_reached": len(cases)}
    yield report
    for case in cases:
        if time.monotonic() > deadline:
            break
        report["results"].extend(harness.run(case, device, limits, budget))
        report["slopes"] = harness.slopes(report["results"])
        report["not_reached"] -= 1
        report["load_after"], report["took"] = os.getloadavg()[0], round(time.monotonic() - started, 1)
        yield report


def write(report: dict[str, Any], folder: Path) -> Path:
    """Replace the family's file at once: whoever reads it never meets half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report['family']}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)
    return path


def show(report: dict[str, Any]) -> None:
    """The report as a table, one row per measurement."""
    from rich.console import Console
    from rich.table import Table

    about, limits = report["machine"], report["ceilings"]
    rates = ", ".join(f"{name} {rate / 1e12:.3g} T/s" for name, rate in limits.items() if name != "copy")
    caption = f"copy {limits['copy'] / 1e9:.0f} GB/s; {rates}; load {about['load']:.1f}"
    table = Table(title=f"{report['family']} on {about['device']}", caption=caption)
    for heading in ("case", "size", "who"):
        table.add_column(heading)
    for heading in ("median", "spread", "n", "of the floor"):
        table.add_column(heading, justify="right")
    for row in report["results"]:
        who = row["who"] if row.get("same", True) else f"{row['who']} *"
        start = (f"{row['chapter']} {row['name']}, {row['dtype']}", f"{row['axis']} {row['at']}", who)
        if "error" in row:
            table.add_row(*start, "–", "", "", row["error"], style="red")
        else:
            table.add_row(*start, duration(row["seconds"]), f"{row['spread']:.0%}", str(row["n"]), f"{row['of_floor']:.1%} {row['bound']}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if any(not row.get("same", True) for row in report["results"]):
        console.print("* another function at the same size, for scale")
    for slope in report["slopes"]:
        growth = f"grows as {slope['axis']}^{slope['slope']:.2f} ({slope['start']}–{slope['stop']})"
        console.print(f"{slope['chapter']} {slope['name']}, {slope['who']}: {growth}")
    if report["not_reached"]:
        console.print(f"{report['not_reached']} cases were not reached in the time given", style="yellow")


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, name = next(((u, n) for u, n in ((1, "s"), (1e-3, "ms")) if seconds >= u), (1e-6, "µs"))
    return f"{seconds / unit:.3g} {name}"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 where one of twofold's own functions failed or a family could not be loaded; 2 for a pattern that names nothing."""
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measure every chapter beside its peers and the hardware's limit.")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="family, family.algorithm, or a glob; everything if none is given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON and nothing else")
    parser.add_argument("--quick", action="store_true", help="two small points of each sweep, short samples: a look, not a result")
    where = "write DIR/<device>/<family>.json (default, for whole families: benchmarks/results)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=where)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no new case after this long")
    parser.add_argument("--no-plots", action="store_true", help="write no charts")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if options.device == "cpu" and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: that would time Triton's interpreter; unset it")
    device, deadline = torch.device(options.device), time.monotonic() + options.seconds
    torch.set_num_threads(1)
    whole = not options.quick and not any("." in pattern for pattern in options.patterns)
    output = options.output or (RESULTS if whole else None)
    folder = output / harness.slug(device) if output else None
    reports, failed, paths = [], False, []
    for family in harness.families():
        if options.patterns and not any(fnmatch(family, pattern.split(".")[0]) for pattern in options.patterns):
            continue
        try:
            cases = selected(importlib.import_module(f"benchmarks.{family}").cases(device), options.patterns, options.quick)
        except ImportError as error:
            print(f"{family}: {error}", file=sys.stderr)
            failed = True
            continue
        if not cases:
            continue
        for report in measured(family, cases, device, options.quick, deadline):
            path = write(report, folder) if folder else None
        reports.append(report)
        paths += [path] if path else []
        failed |= any("error" in row and row["who"].startswith("twofold") for row in report["results"])
        if not options.json:
            show(report)
    if options.json:
        print(json.dumps(reports))
    if not options.no_plots:
        for path in paths:
            plots.draw(path)
    if not reports and not failed:
        print(f"nothing is named {' '.join(options.patterns)}; families: {', '.join(harness.families())}", file=sys.stderr)
        return 2
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
