"""The compile report reads machine code rightly, and a budget that is broken fails, each in its own words."""

import json
import os
import subprocess
import sys

import pytest

from twofold.conformance import compile_report
from twofold.conformance.compile_report import broken_budget, broken_limits, check, written

ROW = {"kernel": "attention", "variant": "64", "arch": "90", "registers": 100, "spills": 0, "stack": 0, "offsets": [], "occupancy": 0.5}
ROW |= {"tensor_cores": "wgmma", "load_bits": 128, "store_bits": 64, "shared": 1000, "shared_limit": 232448, "tensor_memory": 0, "warps": 4}


@pytest.fixture(scope="module")
def found():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "twofold.conformance.suite.planted_kernels", "resources"]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_tensor_core_instructions_are_recognized_on_every_architecture(found):
    seen = {arch: row["tensor_cores"] for arch, row in found.items() if arch != "spilling"}
    assert seen == {"80": "mma.sync", "90": "wgmma", "100": "tcgen05", "120": "mma.sync", "gfx942": "mfma"}


def test_widths_and_resources_are_read(found):
    for arch, row in found.items():
        assert row["load_bits"] == 128 and row["store_bits"] >= 64, arch  # 16-byte aligned float32 rows
        assert 16 < row["registers"] <= 512 and 0 < row["occupancy"] <= 1, arch
        assert 0 < row["shared"] <= row["shared_limit"] or arch == "spilling", arch


def test_a_kernel_that_spills_is_seen(found):
    assert found["spilling"]["stack"] > 0 and found["spilling"]["spills"] > 0
    assert all(row["stack"] == row["spills"] == 0 for arch, row in found.items() if arch != "spilling")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spills": 3, "stack": 24}, "spills: 3"),
        ({"shared": 232449}, "shared memory"),
        ({"tensor_memory": 513}, "tensor memory"),
        ({"offsets": ["a.py:3:1"]}, "32-bit product at a.py:3:1"),
        ({"error": "CompilationError"}, "does not compile"),
    ],
)
def test_hard_limits(change, words):
    assert broken_limits(ROW) == []
    assert [words in fault for fault in broken_limits(ROW | change)] == [True]


@pytest.mark.parametrize(
    "change, anywhere",
    [
        ({"registers": 109}, False),
        ({"shared": 1001}, False),
        ({"load_bits": 64}, False),
        ({"store_bits": 32}, False),
        ({"tensor_cores": "mma.sync"}, True),
        ({"tensor_cores": "none"}, True),
        ({"variant": "128"}, True),
    ],
)
def test_budgets(change, anywhere):
    """`anywhere`: also on a version of Triton that the budgets were not made with."""
    budgets = json.loads(written([ROW], {}))["kernels"]
    for same_version in (True, False):
        assert broken_budget(ROW, budgets, same_version) == []
        assert len(broken_budget(ROW | change, budgets, same_version)) == int(anywhere or same_version)
    better = {"registers": 60, "shared": 0, "load_bits": 256, "tensor_cores": "tcgen05"}
    assert broken_budget(ROW | better | {"registers": 108}, budgets, True) == []


def test_a_missing_entry_says_how_to_write_it():
    assert "--write attention" in check([ROW], {}, complete=False)[0]


def test_a_stale_entry_is_told_only_when_everything_was_compiled():
    budgets = json.loads(written([ROW, ROW | {"variant": "old"}], {}))
    assert check([ROW], budgets, complete=False) == []
    assert ["old" in fault for fault in check([ROW], budgets, complete=True)] == [True]


def test_writing_replaces_whole_kernels_and_refuses_what_breaks_a_limit():
    before = json.loads(written([ROW, ROW | {"variant": "old"}, ROW | {"kernel": "other"}], {}))
    after = json.loads(written([ROW | {"arch": "80"}, ROW | {"arch": "90", "stack": 8}], before))
    assert {kernel: {v: list(by) for v, by in some.items()} for kernel, some in after["kernels"].items()} == {
        "attention": {"64": ["80"]},
        "other": {"64": ["90"]},
    }


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        compile_report.main(["--check"])
