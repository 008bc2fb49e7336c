"""`python -m benchmarks.experiments [NAME…]`: run the named experiments, or all, and write what they find.

An experiment is a module of this package with two functions: `run()` returns a report, `{"what": …, "rows": […]}` and whatever else is
worth keeping, and `draw(panel, report)` draws it. `benchmarks/results/experiments/<name>.json` gets the report, `<name>.svg` the chart. A
report may state `claims`, sentences with a truth value; the exit code is 1 if one of them is false.
"""

import importlib
import json
import pkgutil
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import experiments
from benchmarks.harness import ROOT
from benchmarks.plots import GRAY

FOLDER = ROOT / "benchmarks" / "results" / "experiments"


def main(names: Sequence[str] = ()) -> int:
    known = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.name.startswith("_")]
    if unknown := set(names) - set(known):
        print(f"unknown: {', '.join(sorted(unknown))}; experiments: {', '.join(known)}", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sound = True
    for name in names or known:
        module = importlib.import_module(f"benchmarks.experiments.{name}")
        report = {"experiment": name, "python": platform.python_version(), **module.run()}
        (FOLDER / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        chart(module.draw, report, FOLDER / f"{name}.svg")
        print(f"{name}: {len(report['rows'])} rows")
        for what, holds in report.get("claims", {}).items():
            print(f"  {'yes' if holds else 'NO '}  {what}")
            sound &= holds
    return int(not sound)


def chart(draw: Callable[[Any, dict[str, Any]], None], report: dict[str, Any], path: Path) -> None:
    """Colors and lettering that can be read on a light page and on a dark one."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "twofold", "font.size": 9}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GRAY)
    with plt.rc_context(style):
        figure, panel = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        draw(panel, report)
        panel.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
