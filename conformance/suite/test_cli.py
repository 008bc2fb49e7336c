"""The command line, as a user meets it: what it prints, what it returns, and what it says when asked for something that is not there."""

import json
import os
import subprocess
import sys

import pytest

from twofold import discovery
from twofold.cli import check

CHAPTER = "speculative.cost"  # plain arithmetic: its tests are quick

RIGHT = """
from twofold.fast.speculative import cost
CHAPTERS = {"speculative.cost": cost}
"""
WRONG = """
from types import SimpleNamespace
from twofold.fast.speculative import cost
forms = {name: getattr(cost, name) for name in cost.__all__}
forms["speedup"] = lambda alpha, gamma, c: cost.speedup(alpha, gamma + 1, c)  # drafts one token more than it says
CHAPTERS = {"speculative.cost": SimpleNamespace(**forms)}
"""
NOTHING = "CHAPTERS = {}"


def twofold(*arguments, folder=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWOFOLD_")}
    command = [sys.executable, "-m", "twofold.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def targets(tmp_path):
    for name, text in (("right", RIGHT), ("wrong", WRONG), ("nothing", NOTHING)):
        (tmp_path / f"target_{name}.py").write_text(text)
    return tmp_path


# What answers at once


def test_help_imports_nothing_heavy():
    program = "import sys\nfrom twofold.cli import main\nsys.argv[1:] = ['--help']\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in loaded and not {"numpy", "torch", "triton", "rich", "pytest", "hypothesis"} & set(loaded)


def test_list_keeps_its_contract():
    rows = json.loads(twofold("list", "--json").stdout)
    assert [f"{row['family']}.{row['algorithm']}" for row in rows] == [chapter.name for chapter in discovery.chapters()]
    for row in rows:
        assert list(row) == ["family", "algorithm", "title", "paper", "forms", "spec", "fast", "conformance", "docs"]
        assert all(isinstance(row[part], bool) for part in ("spec", "fast", "conformance", "docs"))
    (flash,) = [row for row in rows if row["algorithm"] == "flash"]
    assert "2307.08691" in flash["paper"] and flash["forms"][0] == "forward" and flash["spec"]


def test_list_for_people_names_every_chapter():
    printed = twofold("list").stdout
    assert all(chapter.name in printed for chapter in discovery.chapters())


def test_show_prints_the_spec_as_it_stands():
    assert twofold("show", CHAPTER).stdout == discovery.find(CHAPTER).spec.read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["show", "speculative.cots"], "did you mean speculative.cost"),
        (["check", "speculativ"], "did you mean speculative"),
        (["check", CHAPTER, "--target", "no_such_module"], "no such module"),
        (["bugs", "speculative.chian"], "did you mean speculative.chain"),
    ],
)
def test_unknown_names_are_usage_errors_with_the_nearest_name(arguments, message):
    done = twofold(*arguments)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
    assert "Traceback" not in done.stderr


# Patterns


def names(*patterns):
    return [chapter.name for chapter in discovery.select(patterns)]


def test_patterns_are_families_chapters_and_globs():
    everything = names()
    assert everything == sorted(everything) and CHAPTER in everything
    assert names(CHAPTER) == [CHAPTER]
    assert names("speculative") == names("speculative.*") == [name for name in everything if name.startswith("speculative.")]
    assert names("*.cost", CHAPTER) == [CHAPTER]
    with pytest.raises(discovery.Unknown, match="did you mean attention"):
        names("atention")


def test_a_chapters_tests_are_its_own():
    owners = {path: chapter.name for chapter in discovery.chapters() for path in discovery.tests(chapter)}
    listed = [path for chapter in discovery.chapters() for path in discovery.tests(chapter)]
    assert len(owners) == len(listed), "no file is counted twice"
    assert discovery.find(CHAPTER).conformance in owners


# check


def test_check_passes_a_right_implementation_and_keeps_its_contract(targets):
    done = twofold("check", CHAPTER, "--target", "target_right", "--profile", "quick", "--json", folder=targets)
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["passed"] > 0 and result["failed"] == 0
    assert list(result["chapters"]) == [CHAPTER]
    assert {"passed", "failed", "skipped", "worst"} <= set(result["chapters"][CHAPTER])


def test_check_fails_a_wrong_implementation_and_shows_where(targets):
    done = twofold("check", CHAPTER, "--target", "target_wrong", "--profile", "quick", folder=targets)
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "0 failed" not in done.stdout and "test_cost.py" in done.stdout


def test_check_tells_what_a_target_lacks(targets):
    done = twofold("check", CHAPTER, "--target", "target_nothing", "--profile", "quick", folder=targets)
    assert "target_nothing has no speculative.cost" in done.stdout
    assert done.returncode == 1 and "no implementation was checked" in done.stdout, "laws of the spec alone are no verdict on a target"


def event(outcome, ratio=None, **rest):
    ratios = [] if ratio is None else [["a.b", "torch/float32", "output", ratio]]
    return {"test": "test_it", "chapter": "a.b", "outcome": outcome, "message": "why", "ratios": ratios, **rest}


def test_check_counts_events_and_keeps_the_worst_ratio():
    result = {"passed": 0, "failed": 0, "skipped": 0, "implementation": 0, "chapters": {}, "failures": []}
    for each in (event("passed", 0.25), event("passed", 0.5, side="torch"), event("passed", 0.125), event("skipped"), event("failed")):
        check._count(result, each)
    assert (result["passed"], result["failed"], result["skipped"], result["implementation"]) == (3, 1, 1, 1)
    assert result["chapters"]["a.b"]["worst"] == {"torch/float32": 0.5}
    assert result["chapters"]["a.b"]["skips"] == {"why": 1}
    assert result["failures"] == [{"chapter": "a.b", "test": "test_it", "message": "why"}]
    check._count(result, event("passed", float("inf")))
    assert result["chapters"]["a.b"]["worst"] == {"torch/float32": None}, "JSON has no infinity"


# What is proved

BIASED = """
def verify(p, q, draft, rng):
    return len(draft), rng.categorical(p[len(draft)])
"""


def test_prove_certifies_a_chapter_and_keeps_its_contract():
    done = twofold("prove", "speculative.chain", "--examples", "5", "--json")
    results = json.loads(done.stdout)
    assert done.returncode == 0 and all(list(each) == ["claim", "certified", "examples", "bias", "counterexample"] for each in results)
    assert {(each["certified"], each["examples"], each["bias"], each["counterexample"]) for each in results} == {(True, 5, "0", None)}


def test_prove_refutes_anybodys_sampler_with_a_fraction_and_an_example(tmp_path):
    (tmp_path / "keeps_everything.py").write_text(BIASED)
    done = twofold("prove", "keeps_everything:verify", "--examples", "5", "--json", folder=tmp_path)
    results = json.loads(done.stdout)
    assert done.returncode == 1 and [each["bias"] for each in results] == ["17/36", "1/3", "11/18"]
    smallest = results[0]["counterexample"]
    assert smallest["emitted"] != smallest["claimed"] and "" in smallest["target"] and set(smallest["target"]) == set(smallest["drafter"])
    told = twofold("prove", "keeps_everything:verify", "--examples", "5", folder=tmp_path).stdout
    assert "REFUTED" in told and "17/36" in told and "the law of the text" in told


def test_prove_says_what_it_cannot_prove():
    done = twofold("prove", "speculative.cost")
    assert done.returncode == 2 and "claims no law" in done.stderr
    assert twofold("prove", "speculative.chian").returncode == 2
