"""A kernel with 32-bit offsets fails on a sparse tensor beyond 2**31 elements; one with 64-bit offsets passes; both in milliseconds."""

import os
import time

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.big_tensor import far_apart, sparse_tensor
from twofold.conformance.compare import exactly


@triton.jit
def scale_rows(x_ptr, out_ptr, stride, N: tl.constexpr, WIDE: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, N)
    if WIDE:
        source = x_ptr + row.to(tl.int64) * stride
    else:
        source = x_ptr + row * stride  # the stride fits 32 bits, twice the stride does not
    tl.store(out_ptr + row.to(tl.int64) * N + i, 2 * tl.load(source + i))


def run(x, wide):
    scale_rows[(x.shape[0],)](x, out := torch.empty(*x.shape, dtype=x.dtype), x.stride(0), 16, wide)
    return out


def test_offsets_of_32_bits_fail_and_of_64_bits_pass():
    x = torch.arange(48.0).view(3, 16)
    big = far_apart(x)
    exactly(run(big, True).numpy(), 2 * x.numpy(), "64-bit offsets")
    with pytest.raises(Exception, match="overflow|outside every argument"):
        run(big, False)


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]), st.integers(0, 2))
def test_values_and_strides(dtype, axis):
    x = torch.arange(27).view(3, 3, 3).to(dtype)
    big = far_apart(x, axis)
    assert big.shape == x.shape and big.stride(axis) == 2**30 + 64 and big.dtype == dtype
    exactly(big.float().numpy(), x.float().numpy(), "values")


def test_sparse_tensors_are_zeros_and_take_no_room():
    start = time.perf_counter()
    x = sparse_tensor((3, 2**31), torch.int8)
    assert x.is_contiguous() and x.numel() == 3 * 2**31 and x[2, -1] == 0
    x[2, -1] = 7
    assert x.flatten()[-1] == 7 and time.perf_counter() - start < 60  # writing 6 GiB would not be done
    assert sparse_tensor((2, 0, 4), torch.float32).shape == (2, 0, 4)


def test_nothing_stays_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x = sparse_tensor((4,), torch.float32)
    assert os.listdir(tmp_path) == [] and x.tolist() == [0.0] * 4


def test_a_tensor_that_would_show_nothing_is_refused():
    with pytest.raises(ValueError, match="below 2"):
        far_apart(torch.zeros(2, 3))
