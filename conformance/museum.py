"""The bug museum: known bugs, and lines deleted on purpose, put back into a copy of this package; the suite must notice each.

An entry of `bugs/<family>/<algorithm>.toml` replaces a piece of one source file of `spec/` or `fast/` and names the test of its chapter
that states the law it breaks. To judge an entry the package is copied, the text replaced, and that test run on the copy in a process of
its own. It is killed if the test fails by an assertion, a memory fault or a clear error; a copy that cannot even be imported or
called proves nothing and counts as alive.
"""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Bug", "bugs", "judge", "provable", "refuted", "replaced"]

PACKAGE = Path(__file__).parent.parent  # …/twofold, through whatever links
PRELOADED = ["numpy", "torch", "triton", "triton.language", "hypothesis", "pytest"]  # imported once, inherited by every judging process
BROKEN = (  # what a copy raises that does not even run
    "NameError", "SyntaxError", "ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "CompilationError",
    "UnboundLocalError", "SystemExit",
)  # fmt: skip
SECONDS = 300  # a mutant that loops for ever is not killed, only stopped


@dataclass(frozen=True)
class Bug:
    """One entry: `old` in `file` becomes `new`, and `test` of `chapter` must fail (on `backend`, if only one side has the text)."""

    id: str
    source: str
    chapter: str
    file: str
    old: str
    new: str
    test: str
    story: str
    backend: str = ""
    bias: str = ""


def bugs(patterns: Iterable[str] = ()) -> list[Bug]:
    """The entries whose id, family or chapter matches one of the patterns (none: all)."""
    files = sorted((PACKAGE / "conformance" / "bugs").glob("*/*.toml"))
    found = [Bug(chapter=f"{file.parent.name}.{file.stem}", **entry) for file in files for entry in tomllib.loads(file.read_text())["bug"]]
    patterns = list(patterns)
    names = lambda bug: (bug.id, bug.chapter, bug.chapter.partition(".")[0])
    return [bug for bug in found if not patterns or any(fnmatch(name, p) for p in patterns for name in names(bug))]


def replaced(bug: Bug) -> str:
    """The source file with the bug in it; the text to replace must stand there exactly once."""
    text = (PACKAGE / bug.file).read_text()
    if text.count(bug.old) != 1:
        raise LookupError(f"{bug.id}: its text stands {text.count(bug.old)} times in {bug.file}, not once: {bug.old!r}")
    return text.replace(bug.old, bug.new)


def judge(entries: Iterable[Bug], every_test: bool = False, processes: int = 2) -> Iterator[dict]:
    """Judge entries as they are done, each as `{id, source, chapter, law, killed, killed_by, bias}`.

    `every_test` runs the whole chapter against each, for the kill matrix: `killed_by` then lists all tests that fail.
    """
    if "TRITON_INTERPRET" not in os.environ and not _gpu():
        os.environ["TRITON_INTERPRET"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(lambda bug: _judge_apart(context, bug, every_test), entries)


def provable(entries: Iterable[Bug]) -> list[Bug]:
    """Those in the spec of a chapter that claims a law which `prove` can enumerate."""
    from twofold.conformance import prove

    def claimed(chapter: str) -> bool:
        try:
            return bool(prove.claims(chapter))
        except prove.Unprovable:
            return False

    chapters = {bug.chapter for bug in entries if bug.file.startswith("spec/")}
    known = {chapter for chapter in chapters if claimed(chapter)}
    return [bug for bug in entries if bug.file.startswith("spec/") and bug.chapter in known]


def refuted(entries: Iterable[Bug], processes: int = 2) -> Iterator[dict]:
    """What `prove` says of each chapter with the bug in it, `{id, chapter, law, claims, refuted, bias}`; `refuted` are claims that fail.

    A copy that dies, or that cannot be called, refutes nothing, as it kills nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "hypothesis"])

    def one(bug: Bug) -> dict:
        said, bias = _apart(context, bug, _prove, ({}, ""))
        failed = [claim for claim, refuted in said.items() if refuted]
        return {"id": bug.id, "chapter": bug.chapter, "law": bug.test, "claims": list(said), "refuted": failed, "bias": bias}

    with ThreadPoolExecutor(processes) as pool:
        yield from pool.map(one, entries)


def _prove(bug: Bug, folder: str, send) -> None:
    """In a process of its own: the claims of the chapter on the copy, whether each is refuted, and the first bias that is not 0."""
    _enter(folder)
    prove = importlib.import_module("twofold.conformance.prove")
    verdicts = list(prove.prove(prove.claims(bug.chapter), examples=30))
    said = {v.claim.what: not v.certified and v.error.partition(":")[0] not in BROKEN for v in verdicts}
    send.send((said, next((str(v.bias) for v in verdicts if v.claim.reference and v.bias), "")))
    send.close()


def _judge_apart(context, bug: Bug, every_test: bool) -> dict:
    failures, bias = _apart(context, bug, partial(_run, every_test), ({"the process": "SystemExit"}, ""))  # it died without a verdict
    tests = sorted(test for test, error in failures.items() if error not in BROKEN)
    killed = bool(tests) and not (bug.bias and bug.bias != bias)
    return {
        "id": bug.id, "source": bug.source, "chapter": bug.chapter, "law": bug.test, "killed": killed, "killed_by": tests, "bias": bias,
        "errors": failures,
    }  # fmt: skip


def _apart(context, bug: Bug, work: Callable[[Bug, str, Any], None], died: tuple) -> tuple:
    """What `work` sends from a process that has a copy of the package with the bug in it; `died` if it ends without a word."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "twofold"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so", "docs"))
        (copy / bug.file).write_text(replaced(bug))
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(bug, folder, send))
        process.start()
        send.close()
        said: tuple = ({}, "")
        if receive.poll(SECONDS):
            try:
                said = receive.recv()
            except EOFError:
                said = died
        process.kill()
        process.join()
    return said


def _enter(folder: str) -> None:
    """Import twofold from the copy from now on, and print nothing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "twofold"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)


def _run(every_test: bool, bug: Bug, folder: str, send) -> None:
    """In a process of its own: run the tests on the copy, and send the errors of those that failed."""
    import pytest

    _enter(folder)
    os.environ |= {"TWOFOLD_PROFILE": "museum", "TWOFOLD_BACKEND": bug.backend}
    failures: dict[str, str] = {}

    class Watch:
        def pytest_collection_modifyitems(self, items):
            if not every_test:
                items[:] = [item for item in items if getattr(item, "originalname", item.name) == bug.test]

        def pytest_runtest_makereport(self, item, call):
            if call.excinfo and call.excinfo.type is not pytest.skip.Exception:
                failures[item.nodeid.rpartition("/")[2]] = call.excinfo.type.__name__

    discovery = importlib.import_module("twofold.discovery")
    files = [str(file) for each in discovery.chapters() if each.name == bug.chapter for file in discovery.tests(each)]
    Path("pytest.ini").write_text("[pytest]\n")
    pytest.main([*files, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *([] if every_test else ["-x"])], plugins=[Watch()])
    bias = ""
    if bug.bias:
        bias = str(importlib.import_module("twofold.conformance.prove").bias(bug.chapter))
    send.send((failures, bias))
    send.close()


def _gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or shutil.which("rocm-smi") is not None
