"""Source on the site: `::: pair flash.forward` and its kin, replaced by the functions' text, found by name with `ast`."""

import ast
import posixpath
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Excerpt", "excerpt", "figure", "source_page"]

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"spec": "spec", "fast": "fast", "kernel": "fast/kernels", "conformance": "conformance", "example": "examples"}
FENCE = "`" * 8  # longer than any fence inside a docstring


@dataclass(frozen=True)
class Excerpt:
    path: str  # from the repository's root
    line: int
    text: str


def excerpt(side: str, name: str, family: str = "") -> Excerpt:
    """The definition `module.name` of a side; the family is the page's own, or written out: `attention/dense.weights`.

    LookupError says which of file and name is missing.
    """
    folder, _, dotted = name.rpartition("/")
    module, _, wanted = dotted.partition(".")
    if not wanted:
        raise LookupError(f"{name!r} must name a module and a function, like 'flash.forward'")
    path = ROOT / FOLDERS[side] / (folder or (family if side in ("spec", "fast") else "")) / f"{module}.py"
    shown = path.relative_to(ROOT).as_posix()
    if not path.is_file():
        raise LookupError(f"{shown} does not exist (wanted for its {wanted!r})")
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in wanted.split("."):
        found = [each for each in getattr(node, "body", []) if part in _names(each)]
        if not found:
            raise LookupError(f"{shown} defines no {wanted!r}")
        node = found[0]
    assert isinstance(node, ast.stmt)
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return Excerpt(shown, first, "\n".join(line[indent:] for line in lines))


def _names(node: ast.stmt) -> set[str]:
    """What a statement at the top of a module defines; `__doc__` is the module's docstring."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return {"__doc__"}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def figure(side: str, part: Excerpt, page_url: str) -> str:
    """Markdown of one excerpt, captioned with a link to its line in the whole file."""
    target = posixpath.relpath(f"source/{part.path.removesuffix('.py')}", page_url or ".") + f"/#__codelineno-0-{part.line}"
    kind = {"spec": "spec", "fast": "fast", "kernel": "fast"}.get(side, "other")
    return (
        f'<figure class="form {kind}" markdown>\n'
        f'<figcaption><a href="{target}">{part.path}<span>:{part.line}</span></a></figcaption>\n\n'
        f"{FENCE}python\n{part.text}\n{FENCE}\n\n</figure>\n"
    )


def source_page(path: Path) -> str:
    """A page that shows one whole file, numbered so that captions can point at its lines; out of the search, which finds the chapters."""
    shown = path.relative_to(ROOT).as_posix()
    return (
        f"---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# `{shown}`\n\n"
        f'{FENCE}{{ .python linenums="1" }}\n{path.read_text(encoding="utf-8")}{FENCE}\n'
    )
