"""The bound is never exceeded by an honest low-precision run, and is not so wide that anything passes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import compare, inputs
from twofold.conformance.rounding import Precision, Rounded, bounded, perturbed


def attention(q, k, v, scale):
    scores = q @ k.T * scale
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return (weights @ v) / np.sum(weights, axis=-1, keepdims=True)


def emulated(q, k, v, scale, dtype):
    """The kernel everybody writes: fp32 softmax, probabilities cast to the storage dtype for the second product."""
    storage = getattr(torch, dtype)
    q, k, v = (torch.from_numpy(x).to(storage).float() for x in (q, k, v))
    scores = q @ k.T * scale
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return (weights.to(storage).float() @ v) / weights.sum(-1, keepdim=True)


def case(seed, dtype, regime="normal", rows=40):
    q, k, v = inputs.values(regime, [(rows, 64), (100, 64), (100, 64)], seed, dtype)
    return (q, k, v), bounded(attention, q, k, v, precision=Precision(dtype), scale=0.125)


def worst(ratios):
    return {check: float(np.max(ratio)) for check, ratio in ratios.items()}


@given(inputs.regimes, inputs.seeds, inputs.dtypes())
def test_correct_attention_is_never_flagged(regime, seed, dtype):
    arrays, expected = case(seed, dtype, regime)
    output = inputs.array(emulated(*arrays, 0.125, dtype).to(getattr(torch, dtype)))
    assert worst(compare.checks(output, expected, independent=False))["worst"] <= 1


@given(inputs.seeds, inputs.dtypes("bfloat16", "float16"))
def test_wrong_attention_is_flagged(seed, dtype):
    arrays, expected = case(seed, dtype)
    right = emulated(*arrays, 0.125, dtype)
    store = lambda x: inputs.array(x.to(getattr(torch, dtype)))
    assert max(worst(compare.checks(store(right), expected, independent=True)).values()) <= 1
    scaled = emulated(*arrays, 0.125 * 1.02, dtype)
    row = right.clone()
    row[7] = 0
    for wrong in (scaled, row, right.roll(1, 0), right * 1.05):
        assert max(worst(compare.checks(store(wrong), expected, independent=True)).values()) > 1


@given(inputs.seeds)
def test_truncating_cast_is_flagged_by_its_bias(seed):
    arrays, expected = case(seed, "bfloat16", rows=200)  # a bias shows the more the more is summed
    truncated = (emulated(*arrays, 0.125, "bfloat16").view(torch.int32) & -65536).view(torch.float32)
    assert worst(compare.checks(inputs.array(truncated), expected, independent=True))["bias"] > 1


def test_bound_is_at_most_four_times_too_wide():
    used = [
        worst(compare.checks(inputs.array(emulated(*arrays, 0.125, dtype).to(getattr(torch, dtype))), expected, False))["worst"]
        for dtype in ("bfloat16", "float16")
        for seed in range(10)
        for arrays, expected in [case(seed, dtype)]
    ]
    assert min(used) > 0.25


@given(inputs.seeds, st.integers(1, 40))
def test_float32_sum_stays_within_bound_and_bound_is_exact_for_one_rounding(seed, n):
    x, y = inputs.values("normal", [(n,), (n,)], seed, "float32")
    precision = Precision("float32")
    total = bounded(np.sum, x, precision=precision)
    exact = sum(map(Fraction, x), Fraction(0))
    for order in (x, x[::-1], np.sort(x)):
        running = np.float32(0)
        for value in order:
            running = np.float32(running + np.float32(value))
        assert abs(Fraction(float(running)) - exact) <= Fraction(float(total.error)) + abs(exact) * Fraction(1, 2**50)
    product = Rounded(x, precision=precision) * y
    assert np.all(np.abs((x.astype(np.float32) * y.astype(np.float32)).astype(float) - x * y) <= product.error)


@given(inputs.regimes, inputs.seeds)
def test_bound_covers_inputs_that_move_by_one_unit_roundoff(regime, seed):
    q, k, v = inputs.values(regime, [(10, 16), (30, 16), (30, 16)], seed, "bfloat16")
    exact = {"precision": Precision("float32"), "scale": 0.25}
    held = [Rounded(x, np.abs(x) * 2.0**-24, precision=Precision("float32")) for x in (q, k, v)]
    bound = attention(*held, 0.25).error
    assert np.all(perturbed(attention, q, k, v, unit=2.0**-24, scale=0.25) <= bound)
    assert np.all(bounded(attention, q, k, v, **exact).error <= bound)


ELEMENTARY = ["exp", "log", "tanh", "sqrt", "log1p", "expm1", "square", "reciprocal", "sin", "cos"]


@pytest.mark.parametrize("name", ELEMENTARY)
def test_elementary_functions_cover_their_float32_versions(name):
    x = np.abs(inputs.values("normal", [(500,)], 3, "float32")[0]) * 3 + 2.0**-10
    x = inputs.rounded(x, "float32")
    moved = x * (1 + np.random.default_rng(0).uniform(-0.9, 0.9, 500) * 2.0**-20)
    expected = getattr(np, name)(Rounded(x, np.abs(x) * 2.0**-20, precision=Precision("float32")))
    assert np.all(np.abs(getattr(torch, name)(torch.from_numpy(moved).float()).double().numpy() - expected.value) <= expected.error)


def test_cubes_cover_three_factors_in_float32():
    x = inputs.values("normal", [(500,)], 3, "float32")[0]
    moved = (x * (1 + np.random.default_rng(0).uniform(-0.9, 0.9, 500) * 2.0**-20)).astype(np.float32)
    expected = Rounded(x, np.abs(x) * 2.0**-20, precision=Precision("float32")) ** 3
    assert np.all(np.abs((moved * moved * moved).astype(float) - expected.value) <= expected.error)


@given(inputs.seeds, st.integers(1, 40))
def test_products_of_many_factors_stay_within_their_bound(seed, n):
    """Against float32 from right to left and from left to right; the exact products are those of fractions."""
    x = np.random.default_rng(seed).uniform(-1.5, 1.5, (n, 3)).astype(np.float32)
    expected = np.cumprod(Rounded(x.astype(float), precision=Precision("float32")), axis=0)
    for column in range(3):
        exact = Fraction(1)
        for i in range(n):
            exact *= Fraction(float(x[i, column]))
            backwards = np.prod(x[i::-1, column] if i else x[:1, column], dtype=np.float32)
            for actual in (np.cumprod(x[:, column], dtype=np.float32)[i], backwards):
                assert abs(Fraction(float(actual)) - exact) <= expected.error[i, column] * (1 + 2.0**-30)


def test_what_is_unbounded_stays_unbounded():
    """The logarithm of a sum that may be nothing has no bound: neither have its exponential, its product with 1, its quotient."""
    x = Rounded(np.ones(3), np.array([0.5, 1.0, 2.0]), precision=Precision("float32"))
    log = np.log(x)
    for result in (log, log * Rounded(np.ones(3), precision=Precision("float32")), log - log, np.exp(log), log / 2.0, np.ones(3) / x):
        assert np.isfinite(result.error).tolist() == [True, False, False]
    logits = Rounded(np.array([-5000.0, -np.inf]), np.array([4000.0, 0.0]), precision=Precision("float32"))
    assert np.all(np.exp(logits).error <= 1e-30)  # however wide the interval, it ends where exponentials are nothing


def test_an_operation_without_a_rule_is_an_error():
    x = Rounded(np.ones(3), precision=Precision("float32"))
    into = lambda x: np.add(x, x, out=np.ones(3))
    for operation in (np.arctan, np.rint, np.floor, lambda x: np.power(x, 4), np.median, np.linalg.inv, into):
        with pytest.raises(TypeError, match="rounding rule"):
            operation(x)
    with pytest.raises(TypeError):
        float(x.sum())


def test_constants_are_rounded_once_and_masks_are_free():
    precision = Precision("float32")
    one = Rounded(np.ones(1), precision=precision)
    assert (one * 0.5).error[0] < 1.1 * 2.0**-25 < (one * 0.1).error[0] * 20
    masked = np.exp(np.where(np.array([True, False]), Rounded(np.zeros(2), precision=precision), -np.inf))
    assert masked.value.tolist() == [1.0, 0.0] and masked.error[1] < 2.0**-100


def test_stored_output_adds_half_a_unit_in_the_last_place():
    x = Rounded(np.array([1.0, 1.99, 3.0]), precision=Precision("bfloat16"))
    np.testing.assert_array_less(x.rounded_to("bfloat16").error, 1.0001 * np.array([2.0**-8, 2.0**-8, 2.0**-7]))
    assert x.rounded_to("float32") is x
