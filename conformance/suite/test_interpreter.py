"""The mended interpreter computes as PyTorch does, bit for bit, and the sanitizer catches every planted offender."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import interpreter, interpreter_numbers
from twofold.conformance.compare import exactly
from twofold.conformance.interpreter import MemoryFault, Race

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
scales = st.sampled_from([2.0**-130, 2.0**-14, 1.0, 2.0**10, 2.0**100])
seeds = st.integers(0, 2**32 - 1)


def bfloat16s(seed, scale, rows=1):
    """Random bfloat16 of both signs, with the special values among them."""
    x = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal((rows, 256))).bfloat16()
    x[:, :6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0])
    return x


def bits(tensor):
    """The bit patterns, all NaNs made one."""
    return torch.where(tensor.isnan(), torch.tensor(float("nan")), tensor.float()).numpy()


@triton.jit
def elementwise(x_ptr, y_ptr, out_ptr, flag_ptr):
    i = tl.arange(0, 256)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x + y)
    tl.store(out_ptr + 256 + i, x - y)
    tl.store(out_ptr + 512 + i, x * y)
    tl.store(out_ptr + 768 + i, -x)
    tl.store(out_ptr + 1024 + i, tl.abs(x))
    tl.store(out_ptr + 1280 + i, tl.where(x < y, x, y))
    tl.store(out_ptr + 1536 + i, (x / y).to(tl.bfloat16))
    tl.store(flag_ptr + i, (x < y).to(tl.float32) + (x >= y).to(tl.float32) + (x != x).to(tl.float32))


@given(seeds, scales, scales)
def test_bfloat16_arithmetic_is_pytorchs(seed, scale, other):
    x, y = bfloat16s(seed, scale)[0], bfloat16s(seed + 1, other)[0].flip(0)
    out, flags = torch.empty(7, 256, dtype=torch.bfloat16), torch.empty(256)
    elementwise[(1,)](x, y, out, flags)
    for row, expected in enumerate((x + y, x - y, x * y, -x, x.abs(), torch.where(x < y, x, y), x / y)):
        exactly(bits(out[row]), bits(expected), f"row {row}")
    exactly(flags.numpy(), (x < y).float().numpy() + (x >= y).float().numpy() + (x != x).float().numpy(), "comparisons, as numbers")


@triton.jit
def casts(x_ptr, bf16_ptr, fp16_ptr, e4m3_ptr, e5m2_ptr, back_ptr, whole_ptr):
    i = tl.arange(0, 256)
    x = tl.load(x_ptr + i)
    tl.store(bf16_ptr + i, x.to(tl.bfloat16))
    tl.store(fp16_ptr + i, x.to(tl.bfloat16).to(tl.float16))
    tl.store(e4m3_ptr + i, x.to(tl.float8e4nv))
    tl.store(e5m2_ptr + i, x.to(tl.float8e5))
    tl.store(back_ptr + i, x.to(tl.float8e4nv).to(tl.float32))
    tl.store(back_ptr + 256 + i, x.to(tl.bfloat16).to(tl.float8e5).to(tl.float32))
    tl.store(whole_ptr + i, (i * 257).to(tl.bfloat16).to(tl.int32))


@given(seeds, st.sampled_from([2.0**-140, 2.0**-17, 2.0**-9, 1.0, 300.0, 1e5]))
def test_casts_are_pytorchs(seed, scale):
    x = torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(256)).float()
    x[:8] = torch.tensor([0.0, -0.0, float("nan"), 448.0, -57344.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-9])
    new = lambda dtype, *shape: torch.empty(*(shape or (256,)), dtype=dtype)
    bf16, fp16, e4m3, e5m2 = new(torch.bfloat16), new(torch.float16), new(FP8[0]), new(FP8[1])
    back, whole = new(torch.float32, 2, 256), new(torch.int32)
    casts[(1,)](x, bf16, fp16, e4m3, e5m2, back, whole)
    saturated = [x.clamp(-torch.finfo(kind).max, torch.finfo(kind).max) for kind in FP8]  # PyTorch itself overflows
    exactly(bits(bf16), bits(x.bfloat16()), "bfloat16")
    exactly(bits(fp16), bits(x.bfloat16().half()), "bfloat16 to float16")
    exactly(bits(e4m3), bits(saturated[0].to(FP8[0])), "e4m3")
    exactly(bits(e5m2), bits(saturated[1].to(FP8[1])), "e5m2")
    exactly(bits(back[0]), bits(saturated[0].to(FP8[0]).float()), "e4m3 and back")
    exactly(bits(back[1]), bits(saturated[1].bfloat16().clamp(-57344, 57344).to(FP8[1]).float()), "bfloat16 to e5m2")
    exactly(whole.numpy(), (torch.arange(256) * 257).float().bfloat16().int().numpy(), "integers")


@triton.jit
def reductions(x_ptr, total_ptr, top_ptr, running_ptr, largest_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + row[:, None] * COLUMNS + column[None, :])
    tl.store(total_ptr + row, tl.sum(x, axis=1))
    tl.store(top_ptr + row, tl.argmax(x, axis=1))
    tl.store(running_ptr + row[:, None] * COLUMNS + column[None, :], tl.cumsum(x, axis=1))
    tl.store(largest_ptr + row, tl.max(x, axis=1))


@given(seeds)
def test_reductions_and_scans_are_pytorchs(seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(-8, 9, (8, 16))).bfloat16()  # every partial sum is a bfloat16
    total, largest = torch.empty(8, dtype=torch.bfloat16), torch.empty(8, dtype=torch.bfloat16)
    top, running = torch.empty(8, dtype=torch.int32), torch.empty(8, 16)
    reductions[(1,)](x, total, top, running, largest, 8, 16)
    exactly(bits(total), bits(x.sum(1)), "sum")
    exactly(bits(largest), bits(x.amax(1)), "max")
    exactly(top.numpy(), x.argmax(1).int().numpy(), "argmax, ties to the lowest index")
    exactly(running.numpy(), x.float().cumsum(1).numpy(), "cumsum")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_that_was_not_widened_loses_what_the_format_loses(dtype):
    x = torch.ones(8, 16, dtype=dtype)
    x[:, 0] = 2 / torch.finfo(dtype).eps  # the first integer whose successor the format lacks
    total, running = torch.empty(8, dtype=dtype), torch.empty(8, 16)
    reductions[(1,)](x, total, torch.empty(8, dtype=torch.int32), running, torch.empty(8, dtype=dtype), 8, 16)
    assert (total.float() < x.float().sum(1)).all()


@triton.jit
def product(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    tile = i[:, None] * 16 + i[None, :]
    tl.store(out_ptr + tile, tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile), input_precision=PRECISION))


@given(seeds, st.sampled_from([torch.bfloat16, torch.float16, *FP8]))
def test_matrix_products_of_exact_inputs(seed, dtype):
    a, b = (torch.from_numpy(x).to(dtype) for x in np.random.default_rng(seed).integers(-4, 5, (2, 16, 16)).astype(np.float32))
    product[(1,)](a, b, out := torch.empty(16, 16), "ieee")
    exactly(out.numpy(), (a.float() @ b.float()).numpy(), "dot")


def test_tf32_rounds_the_operands_where_it_is_asked_for():
    a, b = torch.full((16, 16), 1 + 2.0**-11), torch.eye(16)
    try:
        for tf32, precision, kept in ((True, "tf32", 1 + 2.0**-10), (True, "ieee", 1 + 2.0**-11), (False, "tf32", 1 + 2.0**-11)):
            interpreter.install(tf32=tf32)
            product[(1,)](a, b, out := torch.empty(16, 16), precision)
            assert (out == kept).all(), (tf32, precision)
    finally:
        interpreter.install()


@given(seeds)
def test_a_double_rounds_once_to_every_format(seed):
    """Values a hair beside the midpoint of two bfloat16s: rounding to float32 first would land on the midpoint."""
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(rng.uniform(1, 1.99, 64)).bfloat16().double().numpy()
    beside = low + 2.0**-8 + rng.choice([-1, 1], 64) * 2.0**-40
    expected = np.where(beside > low + 2.0**-8, low + 2.0**-7, low)
    rounded = interpreter_numbers.widen(interpreter_numbers.convert(beside, tl.float64, tl.bfloat16))
    exactly(rounded.astype(float), expected, "bfloat16")


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
    exactly(out.numpy(), (2 * x).numpy(), "tile beyond the edge")


def test_the_self_test_notices_an_interpreter_that_changed(monkeypatch):
    interpreter.self_test()
    monkeypatch.setattr(triton.runtime.interpreter.InterpreterBuilder, "create_fadd", lambda self, a, b: self.binary_op(a, b, np.add))
    with pytest.raises(RuntimeError, match="interpreter changed.*bfloat16 arithmetic"):
        interpreter.self_test()
