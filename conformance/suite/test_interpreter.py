"""The mended interpreter computes as PyTorch does, bit for bit, and notices when it no longer does."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import interpreter, interpreter_numbers
from twofold.conformance.compare import exactly

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
    wide, other = x.to(tl.float32), y.to(tl.float32)
    tl.store(flag_ptr + i, (wide >= other).to(tl.float32) + (wide == wide).to(tl.float32) + (x < y).to(tl.float32))


@given(seeds, scales, scales)
def test_bfloat16_arithmetic_is_pytorchs(seed, scale, other):
    x, y = bfloat16s(seed, scale)[0], bfloat16s(seed + 1, other)[0].flip(0)
    out, flags = torch.empty(7, 256, dtype=torch.bfloat16), torch.empty(256)
    elementwise[(1,)](x, y, out, flags)
    for row, expected in enumerate((x + y, x - y, x * y, -x, x.abs(), torch.where(x < y, x, y), x / y)):
        exactly(bits(out[row]), bits(expected), f"row {row}")
    exactly(flags.numpy(), ((x < y).float() + (x >= y).float() + (x == x).float()).numpy(), "comparisons, as numbers")


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
    x[:8] = torch.tensor([0.0, -0.0, float("nan"), 600.0, -1e6, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-9])
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


def test_the_self_test_notices_an_interpreter_that_changed(monkeypatch):
    interpreter.self_test()
    monkeypatch.setattr(triton.runtime.interpreter.InterpreterBuilder, "create_fadd", lambda self, a, b: self.binary_op(a, b, np.add))
    with pytest.raises(RuntimeError, match="interpreter changed.*bfloat16 arithmetic"):
        interpreter.self_test()
