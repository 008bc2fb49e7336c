"""int8 under int8: the integer product is exact, so what remains are a product of two scales, one product with it, and one cast."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.quantization.test_round_to_nearest_agreement import rows
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.kernels import int8_matmul
from twofold.spec.quantization import round_to_nearest

tokens, channels, columns = st.sampled_from([1, 2, 17]), st.sampled_from([1, 3, 65]), st.sampled_from([1, 31, 128, 130])


def operands(t, n, k, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(-127, 128, (t, k)), rng.integers(-127, 128, (n, k))


def powers(count, steps):
    """A scale per row, a power of two, different from its neighbors'."""
    return 2.0 ** (steps * np.arange(count)[:, None] % 8 - 12)


def product(fast, x_codes, x_scale, codes, scale, bias=None, dtype="float32", scales="float32"):
    import torch

    given = rows(x_codes, "int8"), rows(x_scale, scales), rows(codes, "int8"), rows(scale, scales)
    return fast.matmul_int8(*given, None if bias is None else inputs.tensor(bias, "float32"), dtype=getattr(torch, dtype))


@given(tokens, channels, columns, inputs.dtypes(), inputs.seeds)
@example(17, 65, 130, "float32", 0)
def test_powers_of_two_as_scales_leave_one_rounding(fast, t, n, k, dtype, seed):
    x_codes, codes = operands(t, n, k, seed)
    x_scale, scale = powers(t, 3), powers(n, 5)
    exact = (x_codes @ codes.T) * (x_scale * scale.T)
    exactly(product(fast, x_codes, x_scale, codes, scale, dtype=dtype), inputs.rounded(exact, dtype))
    exactly(round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale), exact, "spec")


@given(tokens, channels, columns, inputs.dtypes(), inputs.seeds)
@example(17, 65, 130, "bfloat16", 0)
def test_bias_is_added_before_the_only_cast(fast, t, n, k, dtype, seed):
    x_codes, codes = operands(t, n, k, seed)
    x_scale, scale, bias = np.full((t, 1), 2.0**-3), np.full((n, 1), 2.0**-2), 1.0 + np.arange(n) % 7
    exact = (x_codes @ codes.T) * 2.0**-5 + bias  # at most 24 bits
    exactly(product(fast, x_codes, x_scale, codes, scale, bias, dtype), inputs.rounded(exact, dtype))
    exactly(round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale, bias), exact, "spec")


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_what_float32_counts_are_exact(fast, sign):
    rng = np.random.default_rng(1)
    x_codes, codes = rng.integers(64, 128, (4, 4096)), sign * rng.integers(64, 128, (40, 4096))
    total = x_codes @ codes.T
    assert np.min(np.abs(total)) > 2**24  # beyond it float32 rounds every addition
    exactly(product(fast, x_codes, np.ones((4, 1)), codes, np.ones((40, 1))), inputs.rounded(total, "float32"))


def test_the_widest_codes_do_not_overflow(fast):
    x_codes, codes = np.full((1, 300), -128), np.full((2, 300), -128)
    exactly(product(fast, x_codes, np.ones((1, 1)), codes, np.ones((2, 1))), np.full((1, 2), 300 * 2.0**14))


def test_scales_multiply_in_float32_whatever_their_dtype(fast):
    x_codes, codes = operands(2, 3, 40, 2)
    large, small = np.full((2, 1), 512.0), np.full((3, 1), 2.0**-20)
    exactly(product(fast, x_codes, large, codes, np.full((3, 1), 256.0), scales="float16"), (x_codes @ codes.T) * 2.0**17)
    exactly(product(fast, x_codes, small[:2], codes, small, scales="float16"), (x_codes @ codes.T) * 2.0**-40)


@given(tokens, channels, columns, inputs.dtypes(), inputs.regimes, inputs.seeds)
@example(17, 65, 130, "float32", "normal", 0)
def test_random_scales_agree_within_the_bound(fast, t, n, k, dtype, regime, seed):
    x, weight, bias = inputs.values(regime, [(t, k), (n, k), (n,)], seed, "float32")
    x_codes, x_scale, _ = round_to_nearest.encode(x, 8, None, "absmax")
    codes, scale, _ = round_to_nearest.encode(weight, 8, None, "absmax")
    x_scale, scale = inputs.rounded(x_scale, "float32"), inputs.rounded(scale, "float32")
    y = product(fast, x_codes, x_scale, codes, scale, bias, dtype)
    agree(y, bounded(round_to_nearest.matmul_int8, x_codes, x_scale, codes, scale, bias, precision=Precision(dtype)))


@pytest.mark.parametrize("t, n, k", [(16, 16, 32), (32, 64, 64), (64, 128, 256)])
def test_exact_outputs_do_not_depend_on_the_tile(fast, monkeypatch, t, n, k):
    monkeypatch.setattr(int8_matmul, "tile", lambda *shape: int8_matmul.Tile(t, n, k))
    x_codes, codes = operands(33, 17, 150, 3)
    exactly(product(fast, x_codes, powers(33, 3), codes, powers(17, 5)), (x_codes @ codes.T) * (powers(33, 3) * powers(17, 5).T))


@pytest.mark.parametrize("t, n, k", [(0, 3, 8), (2, 0, 8), (2, 3, 0)])
def test_empty_sizes(fast, t, n, k):
    y = product(fast, np.ones((t, k)), np.ones((t, 1)), np.ones((n, k)), np.ones((n, 1)))
    exactly(y, np.zeros((t, n)))
