"""Which chapters there are: found by walking the trees and reading the sources, without importing any of them.

A chapter is a path, `<family>/<algorithm>`, under which up to four files stand: spec, fast, conformance, docs. There is no
list to keep. The pages of `docs/` are not part of an installed wheel, so `docs` is found in a checkout only.
"""

import ast
import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Chapter", "Unknown", "chapters", "checkout", "find", "matches", "modules", "public_names", "select", "tests", "tree"]

PACKAGE = Path(__file__).parent
NOT_FAMILIES = {"kernels", "suite", "bugs"}  # folders of fast/ and conformance/ that hold no chapters


class Unknown(LookupError):
    """A name that is no chapter, with the nearest names that are."""


@dataclass(frozen=True)
class Chapter:
    """One algorithm: what its spec says about itself, and where its four parts stand (None where one is missing)."""

    family: str
    algorithm: str
    title: str
    paper: str
    forms: tuple[str, ...]
    spec: Path | None
    fast: Path | None
    conformance: Path | None
    docs: Path | None

    @property
    def name(self) -> str:
        return f"{self.family}.{self.algorithm}"


def tree(name: str) -> Path:
    """The folder of `spec`, `fast` or `conformance` as it is imported; in a checkout it is a symbolic link."""
    folder = PACKAGE / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: twofold was checked out or built without symbolic links. "
            "Use a file system that has them (git config core.symlinks true) and check out again, or install the wheel."
        )
    return folder


def checkout() -> Path | None:
    """The root of the repository that this package is imported from, or None for an installed wheel."""
    return (PACKAGE / "spec").resolve().parent if (PACKAGE / "spec").is_symlink() else None


@cache
def chapters() -> tuple[Chapter, ...]:
    """Every algorithm that has a spec or a fast module, by family and name."""
    paths = {path.relative_to(tree("spec")).with_suffix("") for path in modules(tree("spec"))}
    paths |= {path.relative_to(tree("fast")).with_suffix("") for path in modules(tree("fast"))}
    return tuple(_read(path.parts[0], path.parts[1]) for path in sorted(paths))


def modules(folder: Path) -> list[Path]:
    """The public modules of a tree's families: `<family>/<algorithm>.py`."""
    found = folder.glob("*/*.py")
    return sorted(path for path in found if path.parent.name not in NOT_FAMILIES and not path.name.startswith("_"))


def find(name: str) -> Chapter:
    """The chapter of exactly this name, `family.algorithm`."""
    for chapter in chapters():
        if chapter.name == name:
            return chapter
    raise Unknown(_nearest(name))


def select(patterns: Iterable[str]) -> list[Chapter]:
    """The chapters that match any pattern: a family, a `family.algorithm`, or a glob of these. No patterns: all of them."""
    patterns = list(patterns)
    for pattern in patterns:
        if not any(matches(chapter, pattern) for chapter in chapters()):
            raise Unknown(_nearest(pattern))
    return [chapter for chapter in chapters() if not patterns or any(matches(chapter, pattern) for pattern in patterns)]


def matches(chapter: Chapter, pattern: str) -> bool:
    return fnmatch.fnmatchcase(chapter.family, pattern) or fnmatch.fnmatchcase(chapter.name, pattern)


def tests(chapter: Chapter) -> list[Path]:
    """A chapter's test files: `test_<algorithm>.py`, and `test_<algorithm>_<part>.py` where one file would be too long."""
    family = [each.algorithm for each in chapters() if each.family == chapter.family]

    def owner(path: Path) -> str:
        stem = path.stem.removeprefix("test_")
        return max((name for name in family if stem == name or stem.startswith(name + "_")), key=len, default="")

    return sorted(path for path in (tree("conformance") / chapter.family).glob("test_*.py") if owner(path) == chapter.algorithm)


def _nearest(name: str) -> str:
    by_word = {chapter.algorithm: chapter.name for chapter in chapters()}
    by_word |= {chapter.name: chapter.name for chapter in chapters()} | {chapter.family: chapter.family for chapter in chapters()}
    near = dict.fromkeys(by_word[word] for word in difflib.get_close_matches(name, by_word, n=3))
    return f"no chapter matches {name!r}: " + (f"did you mean {' or '.join(near)}?" if near else "`twofold list` shows them all")


def _read(family: str, algorithm: str) -> Chapter:
    def part(folder: Path | None, file: str) -> Path | None:
        path = folder / family / file if folder else None
        return path if path and path.is_file() else None

    spec = part(tree("spec"), f"{algorithm}.py")
    fast = part(tree("fast"), f"{algorithm}.py")
    module = ast.parse((spec or fast or PACKAGE).read_text(encoding="utf-8"))
    docstring = ast.get_docstring(module) or ""
    root = checkout()
    return Chapter(
        family=family,
        algorithm=algorithm,
        title=docstring.partition("\n")[0],
        paper=_paper(docstring),
        forms=public_names(module),
        spec=spec,
        fast=fast,
        conformance=part(tree("conformance"), f"test_{algorithm}.py"),
        docs=part(root and root / "docs", f"{algorithm}.md"),
    )


def _paper(docstring: str) -> str:
    """The paragraph that starts with `Paper:`, on one line."""
    for paragraph in docstring.split("\n\n"):
        if paragraph.lstrip().startswith("Paper:"):
            return " ".join(paragraph.split()).removeprefix("Paper:").strip()
    return ""


def public_names(module: ast.Module) -> tuple[str, ...]:
    """The strings of `__all__`, in order."""
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return tuple(ast.literal_eval(node.value))
    return ()
