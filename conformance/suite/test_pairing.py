"""The four trees are held to each other, and each to what it may import. Every rule is shown a planted offender first."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from twofold import discovery

STANDARD = sys.stdlib_module_names
MAY_IMPORT = {"spec": {"numpy", "twofold.spec"} | STANDARD, "fast": {"torch", "triton", "twofold.fast"} | STANDARD}
MOST_LINES = {"spec": 120, "fast": 400, "conformance": 250}
SOURCES = {tree: sorted(discovery.tree(tree).rglob("*.py")) for tree in ("spec", "fast", "conformance")}
SPECS = sorted(discovery.tree("spec").rglob("[!_]*.py"))
TWINS = [chapter for chapter in discovery.chapters() if chapter.spec and chapter.fast]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(discovery.tree("spec").parent.parent).with_suffix("").parts)


# Four parts


def test_every_fast_module_has_its_spec_its_test_and_its_page():
    parts = ("spec", "conformance", "docs") if discovery.checkout() else ("spec", "conformance")  # pages are not installed
    modules = [chapter for chapter in discovery.chapters() if chapter.fast]
    assert not [f"{chapter.name} lacks {part}" for chapter in modules for part in parts if not getattr(chapter, part)]


def test_every_test_and_every_page_belongs_to_a_chapter():
    owned = {path for chapter in discovery.chapters() for path in [*discovery.tests(chapter), chapter.docs]}
    families = {chapter.family for chapter in discovery.chapters()}
    written = [path for family in families for path in (discovery.tree("conformance") / family).glob("test_*.py")]
    if root := discovery.checkout():
        written += [path for family in families for path in (root / "docs" / family).glob("*.md") if path.stem != "index"]
    assert not [name_of(path) for path in written if path not in owned]


# Names


def signature_problems(spec, fast):
    """How the parameters of a twin break the contract with those of its spec."""
    theirs, ours = inspect.signature(spec).parameters, inspect.signature(fast).parameters
    leading = [name for name, parameter in ours.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    problems = [f"{name} is not where the spec has it" for name, expected in zip(leading, theirs) if name != expected]
    only_fast = [parameter for name, parameter in ours.items() if name not in theirs]
    problems += [f"{each.name} is not keyword-only" for each in only_fast if each.kind is not each.KEYWORD_ONLY]
    return problems + [f"{each.name} has no default" for each in only_fast if each.default is each.empty]


def test_signature_offenders_are_told():
    def spec(q, k, causal=False): ...
    def good(q, k, *, causal=False, split=None): ...
    def swapped(k, q): ...
    def positional(q, k, causal, split=None): ...
    def required(q, k, *, split): ...

    assert signature_problems(spec, good) == []
    assert signature_problems(spec, swapped) == ["k is not where the spec has it", "q is not where the spec has it"]
    assert signature_problems(spec, positional) == ["split is not keyword-only"]
    assert signature_problems(spec, required) == ["split has no default"]


@pytest.mark.parametrize("chapter", TWINS, ids=lambda chapter: chapter.name)
def test_twins_agree_in_names_and_parameters(chapter):
    spec, fast = (importlib.import_module(f"twofold.{tree}.{chapter.name}") for tree in ("spec", "fast"))
    assert not set(fast.__all__) - set(spec.__all__), "public in fast, not in spec"
    functions = [name for name in fast.__all__ if inspect.isfunction(getattr(spec, name))]
    assert {name: problems for name in functions if (problems := signature_problems(getattr(spec, name), getattr(fast, name)))} == {}


@pytest.mark.parametrize("chapter", discovery.chapters(), ids=lambda chapter: chapter.name)
def test_spec_says_what_it_is(chapter):
    docstring = ast.get_docstring(ast.parse(chapter.spec.read_text()))
    assert chapter.title.endswith("."), "the docstring's first line is one sentence"
    assert chapter.paper, "the docstring has a paragraph that starts with 'Paper:'"
    assert "Deviations:" in docstring
    assert chapter.forms, "__all__ lists the forms"
    assert chapter.algorithm not in chapter.forms, "no function bears its module's name"


# Imports


def imported(source):
    """The modules that a source imports, each as far as its name goes; `from . import x` comes out with its dots."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def foreign(source, allowed):
    inside = lambda name: any(name == each or name.startswith(each + ".") for each in allowed)
    return sorted(name for name in imported(source) if not inside(name))


@pytest.mark.parametrize(
    "source, tree, expected",
    [
        ("import numpy as np\nfrom twofold.spec.attention import dense", "spec", []),
        ("def f():\n    import torch", "spec", ["torch"]),
        ("from twofold.spec.attention import dense", "fast", ["twofold.spec.attention.dense"]),
        ("from twofold import spec", "fast", ["twofold.spec"]),
        ("from twofold.conformance import law", "spec", ["twofold.conformance.law"]),
        ("from . import dense", "spec", ["..dense"]),
    ],
)
def test_import_offenders_are_told(source, tree, expected):
    assert foreign(source, MAY_IMPORT[tree]) == expected


@pytest.mark.parametrize("tree", MAY_IMPORT)
def test_spec_and_fast_import_only_what_they_may(tree):
    assert {name_of(path): names for path in SOURCES[tree] if (names := foreign(path.read_text(), MAY_IMPORT[tree]))} == {}


def test_no_family_re_exports_anything():
    packages = [path for tree in ("spec", "fast") for path in SOURCES[tree] if path.name == "__init__.py"]
    assert not [name_of(path) for path in packages if len(ast.parse(path.read_text()).body) > 1]


def test_specs_run_without_torch():
    modules = [module_of(path) for path in SPECS]
    program = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded and "twofold.spec.rng" in loaded
    assert not {"torch", "triton", "scipy", "twofold.fast", "twofold.conformance"} & set(loaded)


# Measure


@pytest.mark.parametrize("tree", MOST_LINES)
def test_files_keep_the_measure(tree):
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES[tree] if tree != "conformance" or "test_" in path.name}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES[tree]} == {}


@pytest.mark.parametrize("path", SPECS, ids=name_of)
def test_doctests_of_the_specs_hold(path):
    failed, _ = doctest.testmod(importlib.import_module(module_of(path)))
    assert failed == 0
