"""The reader of intermediate code finds every planted 32-bit offset, where it stands, and nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from twofold.conformance.offsets import narrow_offsets
from twofold.conformance.suite import planted_kernels

SOURCE = Path(planted_kernels.__file__)


@pytest.fixture(scope="module")
def found():
    """Kernels compile only in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "twofold.conformance.suite.planted_kernels", "offsets"]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def planted():
    """The lines marked `# narrow`, by kernel."""
    lines, kernel = {}, ""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if match := re.match(r"def (\w+)\(x_ptr", line):
            kernel = match[1]
        elif line.endswith("# narrow"):
            lines[kernel] = f"{SOURCE.name}:{number}"
    return lines


def test_every_planted_offset_is_found_on_its_line(found):
    at = {kernel: {place.rpartition(":")[0] for place in places} for kernel, places in found.items() if places}
    assert at == {kernel: {place} for kernel, place in planted().items()}
    assert len(at) == 8 and found["right"] == []


def test_sibling_regions_may_use_a_name_twice():
    """`%1` is a wide product in the first loop and a narrow one in the second, `%5` a constant and then a counter."""
    text = """
      %0 = tt.get_program_id x : i32 loc(#loc1)
      scf.for %k = %c0 to %n step %c1 : i32 {
        %5 = arith.constant 4 : i32 loc(#loc1)
        %1 = arith.extsi %0 : i32 to i64 loc(#loc1)
        %2 = arith.muli %1, %wide : i64 loc(#loc1)
        %3 = tt.addptr %x, %2 : !tt.ptr<f32>, i64 loc(#loc1)
      } loc(#loc1)
      scf.for %5 = %c0 to %n step %c1 : i32 {
        %1 = arith.muli %5, %n : i32 loc(#loc2)
        %3 = tt.addptr %x, %1 : !tt.ptr<f32>, i32 loc(#loc1)
      } loc(#loc1)
#loc1 = loc("kernel.py":1:1)
#loc2 = loc("name"(#loc3))
#loc3 = loc("kernel.py":7:5)
"""
    assert narrow_offsets(text) == ["kernel.py:7:5"]


@pytest.mark.parametrize("factor", ["%c4 = arith.constant 4 : i32", "%c4 = arith.remsi %0, %c8 : i32", "%c4 = tt.load %p : !tt.ptr<i8>"])
def test_bounded_factors_are_fine(factor):
    text = f"""
      %0 = tt.get_program_id x : i32
      %c8 = arith.constant 8 : i32
      {factor}
      %r = tt.make_range {{end = 8 : i32, start = 0 : i32}} : tensor<8xi32>
      %1 = tt.splat %c4 : i32 -> tensor<8xi32>
      %2 = arith.muli %1, %r : tensor<8xi32>
      %3 = tt.addptr %x, %2 : tensor<8x!tt.ptr<f32>>, tensor<8xi32>
    """
    assert narrow_offsets(text) == []
    assert len(narrow_offsets(text.replace("arith.muli %1, %r", "arith.muli %0, %r"))) == 1
