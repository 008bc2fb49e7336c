"""mkdocs hooks: navigation from the folders, source and evidence by directive, formulas as MathML, pictures in the page.

A mistake in a page is a warning that names the page, so that a build lists them all and `mkdocs build --strict` fails.
"""

import logging
import posixpath
import re
from functools import cache, partial
from pathlib import Path

import site_evidence
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_math import Formulas, left_over
from site_pictures import inline
from site_source import ROOT, excerpt, figure, source_page

from twofold import discovery

__all__ = ["on_config", "on_files", "on_page_content", "on_page_markdown"]

log = logging.getLogger("mkdocs.hooks.twofold")

GUIDE = ["reading.md", "law.md", "tolerance.md", "your_kernel.md", "transformers.md", "notation.md", "contributing.md"]
EVIDENCE = ["coverage.md", "museum.md", "kill_matrix.md", "errata.md"]
DIRECTIVE = re.compile(r"::: (\w+) ?(.*)")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
TEST = re.compile(r"`(test_\w+)`")

current: list[str] = ["mkdocs.yml"]  # the page being rendered: the Markdown extension is not told


def problem(message: str, page: str | None = None) -> str:
    """Warn, and show the reader of an unfinished build what is missing."""
    log.warning("%s: %s", page or current[0], message)
    return f'!!! failure "Missing"\n    {message}\n'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(Formulas(problem))  # type: ignore[arg-type]  # an instance is as good as a name
    config.nav = navigation(Path(config.docs_dir))
    return config


def navigation(docs: Path) -> list:
    """The guide, then the families in reading order with the pages that their folders hold, then the evidence."""
    families = [folder.name for folder in docs.iterdir() if folder.is_dir() and any(folder.glob("*.md"))]
    chapters = [
        {site_evidence.titled(family): [f"{family}/{page.name}" for page in sorted((docs / family).glob("*.md"), key=index_first)]}
        for family in sorted(families, key=site_evidence.by_reading)
    ]
    return ["index.md", {"Guide": GUIDE}, *chapters, {"Evidence": EVIDENCE}]


def index_first(page: Path) -> tuple[bool, str]:
    return page.stem != "index", page.name


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page for every source file that a caption can point at, and the repository's own page on adding a chapter."""
    files.append(File.generated(config, "contributing.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    for path in sorted(site_evidence.EXPERIMENTS.glob("*.svg")):
        files.append(File.generated(config, f"evidence/experiments/{path.name}", abs_src_path=str(path)))
    for folder in ("spec", "fast", "conformance", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                uri = f"source/{path.relative_to(ROOT).with_suffix('.md').as_posix()}"
                files.append(File.generated(config, uri, content=source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    current[0] = page.file.src_uri
    lines, fence = [], None
    for line in markdown.split("\n"):
        opened = FENCE.match(line)
        if opened and (fence is None or (opened[1].startswith(fence) and not line.strip().strip(fence[0]))):
            fence = opened[1] if fence is None else None
        directive = DIRECTIVE.fullmatch(line.rstrip()) if fence is None else None
        lines.append(replaced(directive[1], directive[2].strip(), page, config) if directive else line)
        if fence is None and (unknown := set(TEST.findall(line)) - tests()):
            lines.append("\n" + problem(f"no test is named {', '.join(sorted(unknown))}"))
    demand_every_form(markdown, page)
    return "\n".join(lines)


@cache
def tests() -> set[str]:
    """The names of all tests."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "conformance").rglob("*.py"))
    return {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}


def replaced(kind: str, name: str, page: Page, config: MkDocsConfig) -> str:
    """The Markdown that a directive stands for."""
    family = page.file.src_uri.rpartition("/")[0]
    if kind in ("pair", "spec", "fast", "kernel", "conformance", "example"):
        try:
            parts = [figure(side, excerpt(side, name, family), page.url) for side in (("spec", "fast") if kind == "pair" else (kind,))]
        except LookupError as error:
            return problem(f"::: {kind} {name}: {error.args[0]}")
        return f'<div class="{kind}" markdown>\n' + "\n".join(parts) + "</div>\n" if kind == "pair" else parts[0]
    if kind == "coverage":
        return site_evidence.coverage()
    if kind == "museum":
        return site_evidence.museum(problem)
    if kind == "experiment":
        picture = posixpath.relpath(f"evidence/experiments/{name}.svg", family)
        return site_evidence.experiment(name, picture) or problem(f"no committed experiment is named {name!r}")
    if kind in ("evidence", "kills", "proofs"):
        text = site_evidence.measured(name) if kind == "evidence" else getattr(site_evidence, kind)()
        run = {"evidence": "check --json", "kills": "bugs --json", "proofs": "bugs --prove --json"}[kind]
        return text or unmeasured(f"{name or 'The collection'} is not in the committed run of `twofold {run}`.", config)
    return problem(f"unknown directive '::: {kind}'")


def unmeasured(message: str, config: MkDocsConfig) -> str:
    """One flag decides whether a missing measurement is a fault of the build or a sentence on the page."""
    if config.extra.get("require_evidence"):
        return problem(message)
    return f'!!! note "Not yet measured"\n    {message}\n'


def demand_every_form(markdown: str, page: Page) -> None:
    """A chapter's page shows every public form of its spec, one that it has from another chapter under that one's name."""
    family, _, file = page.file.src_uri.partition("/")
    for chapter in discovery.chapters():
        if (chapter.family, f"{chapter.algorithm}.md") == (family, file) and chapter.spec:
            shown = {line.split()[2] for line in markdown.split("\n") if re.match(r"::: (pair|spec) \S", line)}
            missing = [form for form in chapter.forms if form not in {name.rpartition(".")[2] for name in shown}]
            if missing:
                problem(f"the page shows {', '.join(missing)} of spec/{family}/{chapter.algorithm}.py nowhere (::: pair or ::: spec)")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    current[0] = page.file.src_uri
    if not page.file.src_uri.startswith("source/"):
        where = left_over(html)
        if where:
            problem(f"a dollar sign that opens no formula (write \\$ for the sign itself): …{where}…")
    return inline(html, page, files, partial(problem, page=page.file.src_uri))
