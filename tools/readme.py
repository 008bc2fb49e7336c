"""Write the part of README.md that says how things stand: read off the tree and the committed records, never typed."""

import json
from pathlib import Path

from twofold import discovery

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- state: written by `make readme` -->", "<!-- end of state -->"
ON_CPU = "docs/evidence/check.json"  # what `make evidence` wrote
ON_GPU = "benchmarks/results/*/check.json"  # what `make gpu` wrote, on each GPU it ran on


def renewed(text: str) -> str:
    """The README with its generated part made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{state()}\n\n{END}{after}"


def state() -> str:
    """A table of the chapters, and a sentence about GPUs."""
    cpu, gpu = passed(ON_CPU), passed(ON_GPU)
    rows = ["| chapter | forms | spec | fast | tests | page | checks on a CPU | on a GPU |", "|---|---|:-:|:-:|:-:|:-:|---|---|"]
    for chapter in discovery.chapters():
        forms = " ".join(f"`{form}`" for form in chapter.forms)
        parts = " | ".join(link(part) for part in (chapter.spec, chapter.fast, chapter.conformance, chapter.docs))
        rows.append(f"| {chapter.name} | {forms} | {parts} | {cpu.get(chapter.name, 'not yet')} | {gpu.get(chapter.name, 'not yet')} |")
    devices = sorted(path.parent.name for path in ROOT.glob(ON_GPU))
    where = f"Checked on {', '.join(devices)}." if devices else "**No kernel here has run on a GPU yet.**"
    return "\n".join([*rows, "", where])


def passed(records: str) -> dict[str, str]:
    """Per chapter, how many checks passed and, if any, failed, in all records that match."""
    counts: dict[str, list[int]] = {}
    for record in sorted(ROOT.glob(records)):
        for name, chapter in json.loads(record.read_text(encoding="utf-8"))["chapters"].items():
            sums = counts.setdefault(name, [0, 0])
            counts[name] = [sums[0] + chapter["passed"], sums[1] + chapter["failed"]]
    return {name: f"{good} passed" + (f", **{bad} failed**" if bad else "") for name, (good, bad) in counts.items() if good or bad}


def link(part: Path | None) -> str:
    return f"[✓]({part.resolve().relative_to(ROOT)})" if part else "–"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8")), encoding="utf-8")
