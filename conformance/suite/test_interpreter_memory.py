"""The interpreter's sanitizer catches every planted offender, and lets atomics, pointer tables and descriptors be."""

import pytest
import torch
import triton
import triton.language as tl

from twofold.conformance import interpreter
from twofold.conformance.compare import exactly
from twofold.conformance.interpreter import MemoryFault, Race

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@triton.jit
def shift(x_ptr, out_ptr, first, valid, SIZE: tl.constexpr, GUARDED: tl.constexpr):
    i = tl.arange(0, SIZE)
    if GUARDED:
        value = tl.load(x_ptr + first + i, mask=first + i < valid, other=0.0)
    else:
        value = tl.load(x_ptr + first + i, mask=first + i < valid)
    tl.store(out_ptr + i, value)


def test_a_masked_lane_without_other_is_poison():
    x, out = torch.ones(8), torch.empty(8)
    shift[(1,)](x, out, 0, 5, 8, True)
    assert out.tolist() == [1] * 5 + [0] * 3
    for dtype in (torch.float32, torch.float16, torch.bfloat16, *FP8):
        shift[(1,)](x.to(dtype), out := torch.zeros(8).to(dtype), 0, 5, 8, False)
        assert out.float()[5:].isnan().all() and (out.float()[:5] == 1).all(), dtype
    shift[(1,)](x.int(), out := torch.zeros(8, dtype=torch.int32), 0, 5, 8, False)
    assert (out[5:] == torch.iinfo(torch.int32).max).all()
    with interpreter.without("poison"):
        shift[(1,)](x, out := torch.ones(8), 0, 5, 8, False)
    assert (out[5:] == 0).all()


@pytest.mark.parametrize("first, valid", [(1, 9), (-1, 8), (8, 16)])
def test_a_read_outside_the_view_faults(first, valid):
    storage = torch.zeros(32)  # what lies around the view exists, but is not the kernel's to read
    with pytest.raises(MemoryFault, match="x_ptr"):
        shift[(1,)](storage[8:16], torch.empty(8), first, valid, 8, True)
    with interpreter.without("bounds", "races"):
        shift[(1,)](storage[8:16], torch.empty(8), first, valid, 8, True)


def test_a_write_outside_the_view_faults():
    with pytest.raises(MemoryFault, match="1 of 8 unmasked lanes write outside every argument.*out_ptr"):
        shift[(1,)](torch.zeros(8), torch.empty(8)[:7], 0, 8, 8, True)


@triton.jit
def overlap(out_ptr, step, value, SAME: tl.constexpr, ATOMIC: tl.constexpr):
    program, i = tl.program_id(0), tl.arange(0, 8)
    at = out_ptr + program * step + (i * 0 if SAME else i)
    if ATOMIC:
        tl.atomic_add(at, i + value)
    else:
        tl.store(at, i * (0 if value == 0 else 1))


def test_two_programs_that_write_one_element_race():
    overlap[(2,)](torch.zeros(16), 8, 1, False, False)
    with pytest.raises(Race, match="out_ptr"):
        overlap[(2,)](torch.zeros(16), 7, 1, False, False)
    overlap[(2,)](out := torch.zeros(16, dtype=torch.int32), 0, 1, False, True)  # atomics may
    assert out.tolist() == [2 * (i + 1) for i in range(8)] + [0] * 8


def test_two_lanes_that_write_different_values_race():
    overlap[(1,)](torch.zeros(16), 8, 0, True, False)  # the same value from all lanes is no race
    with pytest.raises(Race, match="two lanes"):
        overlap[(1,)](torch.zeros(16), 8, 1, True, False)


@triton.jit
def chain(x_ptr):
    program = tl.program_id(0)
    before = tl.load(x_ptr + program - 1, mask=program > 0, other=0)
    tl.store(x_ptr + program, before + 1)


def test_a_kernel_that_relies_on_program_order_is_caught_twice():
    with pytest.raises(Race, match="x_ptr"):  # reads what another program writes
        chain[(16,)](torch.zeros(16, dtype=torch.int32))
    with interpreter.without("races"):
        chain[(16,)](shuffled := torch.zeros(16, dtype=torch.int32))
        with interpreter.without("shuffle"):
            chain[(16,)](ordered := torch.zeros(16, dtype=torch.int32))
    assert ordered.tolist() == list(range(1, 17)) != shuffled.tolist()


@triton.jit
def read_beside(x_ptr, out_ptr, step):
    program = tl.program_id(0)
    tl.store(out_ptr + program, tl.load(x_ptr + 1 + program + step))
    tl.store(x_ptr + 1 + program, 0.0)


@pytest.mark.parametrize("step, words", [(1, "written by one program and read"), (-1, "read by one program and written")])
def test_a_read_races_with_a_write_before_and_after_it(step, words):
    with interpreter.without("shuffle"), pytest.raises(Race, match=words):
        read_beside[(2,)](torch.zeros(4), torch.empty(2), step)
    read_beside[(2,)](torch.zeros(4), torch.empty(2), 0)  # its own element


@triton.jit
def through_table(table_ptr, out_ptr):
    i = tl.arange(0, 8)
    row = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr + tl.program_id(0) * 8 + i, tl.load(row + i))


def test_pointer_tables_work():
    rows = [torch.full((8,), float(n)) for n in range(3)]
    table = torch.tensor([row.data_ptr() for row in rows])
    through_table[(3,)](table, out := torch.empty(3, 8))
    exactly(out.numpy(), torch.stack(rows).numpy(), "rows behind pointers")


@triton.jit
def through_descriptors(x_ptr, out_ptr, ROWS, COLUMNS, BLOCK: tl.constexpr):
    source = tl.make_tensor_descriptor(x_ptr, [ROWS, COLUMNS], [COLUMNS, 1], [BLOCK, BLOCK])
    target = tl.make_tensor_descriptor(out_ptr, [ROWS, COLUMNS], [COLUMNS, 1], [BLOCK, BLOCK])
    target.store([0, 0], source.load([0, 0]) * 2)


def test_descriptors_work():
    x = torch.arange(60.0).view(5, 12)
    through_descriptors[(1,)](x, out := torch.empty(5, 12), 5, 12, 16)
    exactly(out.numpy(), (2 * x).numpy(), "a tile beyond the edge")
