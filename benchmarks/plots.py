"""Charts of committed results: `python -m benchmarks.plots DIR` draws `<family>.svg` beside every `<family>.json` of a folder.

One panel per sweep, seconds over size, both logarithmic; the dashed line is the floor of this machine. Grays and colors are chosen to be
readable on a light page and on a dark one.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

__all__ = ["draw"]

GRAY = "#7f8790"
OURS = "#e4572e"
COLORS = ["#2a9d8f", "#4f8fd6", "#c9a227", "#a06cd5", "#7d9d3c", "#d45d9e"]


def draw(path: Path) -> Path | None:
    """Draw one report; returns the chart's path, or None where no sweep has two points."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    report = json.loads(path.read_text())
    sweeps = _sweeps(report["results"])
    if not sweeps:
        return None
    columns = min(2, len(sweeps))
    rows = math.ceil(len(sweeps) / columns)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "twofold", "font.size": 9}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GRAY)
    with plt.rc_context(style):
        figure, panels = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False, layout="constrained")
        everyone = list(dict.fromkeys(row["who"] for results in sweeps.values() for row in results))
        colors = {who: COLORS[i % len(COLORS)] for i, who in enumerate(everyone)} | {"twofold": OURS}
        for panel, (title, results) in zip(panels.flat, sweeps.items(), strict=False):
            _panel(panel, title, results, colors)
        for panel in panels.flat[len(sweeps) :]:
            panel.set_axis_off()
        about = report["machine"]
        figure.suptitle(f"{about['device']}, torch {about['versions']['torch']}, {about['date'][:10]}, {about['commit']}", fontsize=9)
        chart = path.with_suffix(".svg")
        figure.savefig(chart, transparent=True, metadata={"Date": None})
        plt.close(figure)
    return chart


def _sweeps(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Measurements by sweep, those with at least two sizes."""
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        if "seconds" in row:
            sweeps.setdefault(f"{row['chapter']}: {row['name']}, {row['dtype']}", []).append(row)
    return {title: rows for title, rows in sweeps.items() if len({row["at"] for row in rows}) > 1}


def _panel(panel: Any, title: str, results: list[dict[str, Any]], colors: dict[str, str]) -> None:
    for who in dict.fromkeys(row["who"] for row in results):
        points = sorted((row["at"], row["seconds"] * 1e3) for row in results if row["who"] == who)
        label = who if next(row for row in results if row["who"] == who)["same"] else f"{who} (another function)"
        width = 2 if who == "twofold" else 1.2
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, color=colors[who], label=label)
    floor = sorted({(row["at"], row["floor"] * 1e3) for row in results})
    panel.plot(*zip(*floor, strict=True), linestyle="--", linewidth=1, color=GRAY, label="floor of this machine")
    for model in dict.fromkeys(model for row in results for model in row["prediction"]):
        points = sorted({(row["at"], row["prediction"][model] * 1e3) for row in results if model in row["prediction"]})
        panel.plot(*zip(*points, strict=True), linestyle=":", linewidth=1, color=GRAY, label=f"prediction: {model}")
    panel.set_title(title, fontsize=9)
    panel.set(xscale="log", yscale="log", xlabel=results[0]["axis"], ylabel="milliseconds")
    panel.set_xticks(sorted({row["at"] for row in results}), [str(at) for at in sorted({row["at"] for row in results})])
    panel.minorticks_off()
    panel.grid(visible=True, linewidth=0.3, color=GRAY, alpha=0.5)
    panel.legend(fontsize=7, frameon=False)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for report in sorted(Path(folder).glob("*.json")):
            if "results" in json.loads(report.read_text()):
                print(draw(report))
