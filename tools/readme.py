"""Write the part of README.md that says how things stand: read off the tree and the committed records, never typed."""

import json
from pathlib import Path

from twofold import discovery

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- state: written by `make readme` -->", "<!-- end of state -->"
ON_CPU = ROOT / "docs" / "evidence" / "check.json"  # what `make evidence` wrote
RESULTS = ROOT / "benchmarks" / "results"  # a folder per device: what `make gpu` and `make bench` wrote


def renewed(text: str) -> str:
    """The README with its generated part made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{state()}\n\n{END}{after}"


def state() -> str:
    """A table of the chapters, and a sentence about GPUs."""
    devices = gpus()
    cpu, gpu = passed([ON_CPU] if ON_CPU.exists() else []), passed([device / "check.json" for device in devices])
    rows = ["| chapter | forms | spec | fast | tests | page | checks on a CPU | on a GPU |", "|---|---|:-:|:-:|:-:|:-:|---|---|"]
    for chapter in discovery.chapters():
        forms = " ".join(f"`{form}`" for form in chapter.forms)
        parts = " | ".join(link(part) for part in (chapter.spec, chapter.fast, chapter.conformance, chapter.docs))
        rows.append(f"| {chapter.name} | {forms} | {parts} | {cpu.get(chapter.name, 'not yet')} | {gpu.get(chapter.name, 'not yet')} |")
    names = ", ".join(device.name for device in devices)
    where = f"The GPUs: {names}." if names else "**No kernel here has run on a GPU yet**, and no speed of one is claimed."
    return "\n".join([*rows, "", where])


def gpus() -> list[Path]:
    """The folders of results whose checks ran on a GPU, and not on a CPU to try the machinery."""
    found = []
    for summary in sorted(RESULTS.glob("*/summary.json")):
        commands = [stage["command"] for stage in json.loads(summary.read_text(encoding="utf-8"))["stages"].values()]
        if any("check --profile gpu --device cuda" in command for command in commands):
            found.append(summary.parent)
    return found


def passed(records: list[Path]) -> dict[str, str]:
    """Per chapter, how many checks passed and, if any, failed, in all these records."""
    counts: dict[str, list[int]] = {}
    for record in records:
        for name, chapter in json.loads(record.read_text(encoding="utf-8"))["chapters"].items():
            sums = counts.setdefault(name, [0, 0])
            counts[name] = [sums[0] + chapter["passed"], sums[1] + chapter["failed"]]
    return {name: f"{good} passed" + (f", **{bad} failed**" if bad else "") for name, (good, bad) in counts.items() if good or bad}


def link(part: Path | None) -> str:
    return f"[✓]({part.resolve().relative_to(ROOT)})" if part else "–"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8")), encoding="utf-8")
