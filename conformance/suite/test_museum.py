"""The museum's runner: it must see a bug that is there, and must not see one that is not."""

import ast
from pathlib import Path

import pytest

from twofold.conformance import museum
from twofold.conformance.museum import Bug


@pytest.mark.parametrize("bug", museum.bugs(), ids=lambda bug: bug.id)
def test_entry_is_whole(bug):
    assert museum.replaced(bug) != (museum.PACKAGE / bug.file).read_text()
    compile(museum.replaced(bug), bug.file, "exec")
    family, _, name = bug.chapter.partition(".")
    files = (museum.PACKAGE / "conformance" / family).glob(f"test_{name}*.py")
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    tests = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    tests |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}  # laws that chapters share
    assert bug.test in tests, f"{bug.chapter} has no {bug.test}"
    assert bug.story and bug.source and bug.backend in ("", "triton", "torch")


def test_ids_are_distinct():
    ids = [bug.id for bug in museum.bugs()]
    assert len(ids) == len(set(ids))


def planted(new: str, test: str = "test_joint_law_is_the_targets") -> Bug:
    old = "return position, rng.categorical(residual(p[position], q[position]))"
    return Bug("planted", "planted", "speculative.chain", "spec/speculative/chain.py", old, new, test, "planted")


def test_runner_tells_a_bug_from_a_comment_and_from_a_broken_copy():
    harmless = planted("return position, rng.categorical(residual(p[position], q[position]))  # a comment")
    harmful = planted("return position, rng.categorical(p[position])")
    broken = planted("return position, undefined_name")
    verdicts = [verdict["killed"] for verdict in museum.judge([harmless, harmful, broken])]
    assert verdicts == [False, True, False]


def test_text_that_is_gone_is_an_error(tmp_path: Path):
    with pytest.raises(LookupError, match="stands 0 times"):
        museum.replaced(Bug("gone", "", "speculative.chain", "spec/speculative/chain.py", "no such line", "", "", ""))


def test_the_prover_refutes_a_bug_certifies_a_comment_and_takes_no_crash_for_a_proof():
    harmless = planted("return position, rng.categorical(residual(p[position], q[position]))  # a comment")
    harmful = planted("return position, rng.categorical(p[position])")
    broken, dying = planted("return position, undefined_name"), planted("__import__('os')._exit(1)")
    verdicts = list(museum.refuted([harmless, harmful, broken, dying]))
    assert verdicts[0]["refuted"] == [] and len(verdicts[0]["claims"]) == 6 and verdicts[0]["bias"] == ""
    assert verdicts[1]["refuted"] == ["verify, 2 drafted", "verify, 1 drafted", "verify, 3 drafted"] and verdicts[1]["bias"] == "1/6"
    assert [verdict["refuted"] for verdict in verdicts[2:]] == [[], []] and len(verdicts[2]["claims"]) == 6


def test_only_samplers_with_an_enumerable_law_are_asked_for_a_proof():
    asked = {bug.chapter for bug in museum.provable(museum.bugs())}
    assert {"speculative.chain", "speculative.coupled", "speculative.jacobi"} <= asked
    assert not any(bug.file.startswith("fast/") for bug in museum.provable(museum.bugs())) and "speculative.cost" not in asked
