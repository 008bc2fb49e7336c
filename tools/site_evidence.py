"""What the site says about itself, from the tree and from committed runs: coverage, measured error, bug museum, kill matrix."""

import difflib
import json
import re
import tomllib
from fractions import Fraction
from pathlib import Path

from twofold import discovery

__all__ = ["EXPERIMENTS", "FAMILIES", "coverage", "experiment", "kills", "measured", "museum", "proofs", "titled"]

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "docs" / "evidence"
EXPERIMENTS = ROOT / "benchmarks" / "results" / "experiments"
FAMILIES = [  # the order of reading; a folder that is not named here follows by name
    "attention", "sparse_attention", "linear_attention", "state_space", "test_time_training", "mixture_of_experts", "linearization",
    "number_formats", "quantization", "speculative", "diffusion", "hybrid", "serving", "vision",
]  # fmt: skip
ISSUE = re.compile(r"([\w.-]+/[\w.-]+)#(\d+)")


def by_reading(family: str) -> tuple[int, str]:
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), family)


def titled(name: str) -> str:
    """`linear_attention` as a heading says it."""
    return name.replace("_", " ").capitalize()


def chapters() -> list[discovery.Chapter]:
    return sorted(discovery.chapters(), key=lambda chapter: (by_reading(chapter.family), chapter.algorithm))


def run(name: str):
    """A committed run, `docs/evidence/<name>.json`, or None where none is committed."""
    path = EVIDENCE / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(header: list[str], rows: list[list[str]], name: str) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return f'<div class="{name}" markdown>\n\n' + "\n".join(lines) + "\n\n</div>\n"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def link(chapter: discovery.Chapter) -> str:
    return f"[`{chapter.name}`]({chapter.family}/{chapter.algorithm}.md)" if chapter.docs else f"`{chapter.name}`"


def coverage() -> str:
    """Every chapter, its paper, and which of its four parts stand in the tree."""
    rows = []
    for chapter in chapters():
        parts = [chapter.spec, chapter.fast, chapter.conformance, chapter.docs]
        forms = ", ".join(f"`{form}`" for form in chapter.forms)
        rows.append([link(chapter), cell(chapter.paper), forms, *("●" if part else "–" for part in parts)])
    whole = sum(all(row[3:][i] == "●" for i in range(4)) for row in rows)
    count = f"{len(rows)} chapters, {whole} of them with all four parts.\n\n"
    return count + table(["Chapter", "Paper", "Forms", "spec", "fast", "conformance", "docs"], rows, "coverage")


def measured(name: str) -> str | None:
    """The committed run's verdict on one chapter, or None where it holds none."""
    result = (run("check") or {"chapters": {}})["chapters"].get(name)
    if result is None:
        return None
    counts = ", ".join(f"{result[kind]} {kind}" for kind in ("passed", "failed", "skipped") if result[kind] or kind == "passed")
    if not result["worst"]:
        return f"In the committed run: {counts}. Every law of this chapter is exact; there is no rounding error to measure.\n"
    rows = []
    for key, ratio in sorted(result["worst"].items()):
        backend, _, dtype = key.partition("/")
        bar = f'<meter min="0" max="1" value="{min(ratio, 1):.4f}" title="{ratio:.3g} of the bound"></meter>'
        rows.append([backend, f"`{dtype}`", f"{ratio:.3g}", bar])
    return f"In the committed run: {counts}.\n\n" + table(["Backend", "dtype", "worst error ÷ bound", ""], rows, "measured")


def experiment(name: str, picture: str) -> str | None:
    """A committed experiment: its chart (`picture`, seen from the page) and its rows; None where none is committed."""
    path = EXPERIMENTS / f"{name}.json"
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    columns = list(dict.fromkeys(key for row in report["rows"] for key in row))
    rows = [["–" if row.get(key) is None else cell(str(row[key])) for key in columns] for row in report["rows"]]
    said = lambda row: ", ".join(f"{key.replace('_', ' ')} {row[key]}" for key in columns if row.get(key) is not None)
    text = f"{cell(report['what'])}. {'; '.join(map(said, report['rows']))}"
    chart = f"![{text}]({picture})\n\n" if path.with_suffix(".svg").is_file() else ""
    return chart + table([key.replace("_", " ") for key in columns], rows, "measured")


def bugs() -> list[dict]:
    found = []
    for path in sorted((ROOT / "conformance" / "bugs").glob("*/*.toml"), key=lambda path: (by_reading(path.parent.name), path.stem)):
        chapter = {"chapter": f"{path.parent.name}.{path.stem}"}
        found += [chapter | bug for bug in tomllib.loads(path.read_text(encoding="utf-8"))["bug"]]
    return found


def museum(report) -> str:
    """Public bugs as exhibits, each with its difference; then the lines that we deleted ourselves."""
    public = [bug for bug in bugs() if ISSUE.match(bug["source"])]
    own = [bug for bug in bugs() if not ISSUE.match(bug["source"])]
    if not public and not own:
        return '!!! note "Nothing here yet"\n    No bug is in the collection so far.\n'
    parts = [f"Bugs that users met: {len(public)}. Lines of our own, deleted or bent on purpose: {len(own)}.\n"]
    parts += ["## Bugs in the wild\n"] * bool(public)
    parts += [_exhibit(bug, report) for bug in public]
    parts += ["## Deleted lines\n"] * bool(own)
    parts += [_exhibit(bug, report) for bug in own]
    return "\n".join(parts)


def _exhibit(bug: dict, report) -> str:
    source = ISSUE.sub(r"[\g<0>](https://github.com/\1/issues/\2)", bug["source"])
    family, _, algorithm = bug["chapter"].partition(".")
    known = (ROOT / "docs" / family / f"{algorithm}.md").is_file()
    chapter = f"[`{bug['chapter']}`]({family}/{algorithm}.md)" if known else f"`{bug['chapter']}`"
    facts = [source, f"chapter {chapter}", f"breaks `{bug['test']}`"]
    facts += [f"on the {bug['backend']} side"] if bug.get("backend") else []
    facts += [f"moves the law by exactly **{bug['bias']}** (total variation)"] if bug.get("bias") else []
    return (
        f"### {bug['id']} {{ #{bug['id']} }}\n\n{bug['story'].strip()}\n\n"
        f"{' · '.join(facts)}\n{{ .facts }}\n\n"
        f'{"`" * 8}{{ .diff title="{bug["file"]}" }}\n{_difference(bug, report)}\n{"`" * 8}\n'
    )


def _difference(bug: dict, report) -> str:
    """The change as whole lines of the file, one line of surroundings; of the snippet alone where the file has moved on."""
    path = ROOT / "src" / "twofold" / bug["file"]
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, after = bug["old"], bug["new"]
    if text.count(before) == 1:
        before, after = text, text.replace(before, after)
    else:
        report(f"bug {bug['id']}: its old text occurs {text.count(before)} times in {bug['file']}, not once")
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1))[2:]
    code = [line for line in lines if not line.startswith("@@")]
    indent = min((len(line[1:]) - len(line[1:].lstrip()) for line in code if line[1:].strip()), default=0)
    return "\n".join("  ⋮" if line.startswith("@@") else line[:1] + " " + line[1 + indent :] for line in lines[1:])


def proofs() -> str | None:
    """Samplers with a bug in their text, by chapter: how many the prover refutes, and what else catches the rest."""
    results = run("proofs")
    if results is None:
        return None
    order = {chapter.name: number for number, chapter in enumerate(chapters())}
    known = {chapter.name: chapter for chapter in chapters()}
    rows = []
    for name in sorted({bug["chapter"] for bug in results}, key=lambda name: order.get(name, len(order))):
        of_chapter = [bug for bug in results if bug["chapter"] == name]
        refuted = [bug for bug in of_chapter if bug["refuted"]]
        biases = [Fraction(bug["bias"]) for bug in refuted if bug["bias"]]
        rest = "<br>".join(f"[{bug['id']}](museum.md#{bug['id']}) `{bug['law']}`" for bug in of_chapter if not bug["refuted"])
        claims = max(len(bug["claims"]) for bug in of_chapter)
        span = f"{min(biases)} to {max(biases)}" if len(set(biases)) > 1 else str(biases[0]) if biases else "–"
        rows.append([link(known[name]), str(claims), f"{len(refuted)} of {len(of_chapter)}", span, rest or "–"])
    refuted = sum(bool(bug["refuted"]) for bug in results)
    count = f"{refuted} of {len(results)} bugs in the text of a sampler are refuted in the committed run.\n\n"
    return count + table(["Chapter", "claims", "bugs refuted", "bias", "keeps the law, and is caught by"], rows, "kills")


def killers(tests: list[str]) -> str:
    """Tests that failed, each once, with the sides on which it did."""
    sides: dict[str, list[str]] = {}
    for test in tests:
        name, _, side = test.rpartition("::")[2].partition("[")
        sides.setdefault(name, []).append(side.rstrip("]"))
    return "<br>".join(f"`{name}` {', '.join(filter(None, each))}" for name, each in sides.items()) or "–"


def kills() -> str | None:
    """Mutants against the tests that catch them, from the committed run; None where none is committed."""
    results = run("bugs")
    if results is None:
        return None
    caught = sum(bool(bug["killed"]) for bug in results)
    parts = [f"{caught} of {len(results)} mutants are caught in the committed run.\n"]
    order = {chapter.name: number for number, chapter in enumerate(chapters())}
    for name in sorted({bug["chapter"] for bug in results}, key=lambda name: order.get(name, len(order))):
        rows = []
        for bug in (bug for bug in results if bug["chapter"] == name):
            rows.append([f"[{bug['id']}](museum.md#{bug['id']})", "●" if bug["killed"] else "**survives**", killers(bug["killed_by"])])
        parts.append(f"## `{name}`\n\n" + table(["Mutant", "caught", "by"], rows, "kills"))
    return "\n".join(parts)
