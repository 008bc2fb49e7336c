"""E8M0 is exact: every code, and in every mode the scale at every significand where it changes, in every binade, and just beside it."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import e8m0

MODES = ("floor", "even", "rceil", "ceil")
ELEMENTS = {  # from the OCP specification: exponent and value of the largest number, bits of mantissa
    "e5m2": (15, 57344, 2), "e4m3fn": (8, 448, 3), "e3m2": (4, 28, 2), "e2m3": (2, Fraction(15, 2), 3), "e2m1": (2, 6, 1),
    "int8": (0, Fraction(127, 64), 6),
}  # fmt: skip
elements, modes = st.sampled_from(sorted(ELEMENTS)), st.sampled_from(MODES)


class Arrays:
    """The implementation under test, fed and read in arrays."""

    def __init__(self, fast, dtype="float64"):
        self.fast, self.dtype = fast, dtype

    def block_scale(self, amax, fmt, mode):
        return inputs.array(self.fast.block_scale(inputs.tensor(amax, self.dtype), fmt, mode)).astype(int)


def sides(fast):
    return e8m0, Arrays(fast), Arrays(fast, "float32")


def floor_log2(x):
    """Of a positive fraction, by counting binary digits."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


def by_fractions(amax, fmt, mode):
    """The code of one scale, in the words of each mode's own definition."""
    (exponent, largest, mantissa), a = ELEMENTS[fmt], Fraction(float(amax))
    if not a:
        return 0
    if mode == "floor":
        e = floor_log2(a) - exponent
    elif mode == "ceil":
        e = -floor_log2(1 / a) - exponent
    elif mode == "rceil":
        e = -floor_log2(largest / a)  # the smallest with a <= largest 2^e
    else:
        step = Fraction(2) ** (floor_log2(a) - mantissa)
        e = floor_log2((a / step + Fraction(1, 2)) // 1 * step) - exponent  # a rounded to its bits of mantissa, half up
    return min(max(e, -127), 127) + 127


def turning_points(fmt, kind):
    """The significands where some mode may change its mind, in every binade of float32, and the floats beside them."""
    exponent, largest, mantissa = ELEMENTS[fmt]
    significands = np.array([1, float(largest) / 2**exponent, 2 - 2.0 ** (-mantissa - 1), 1.5])
    points = (significands[:, None] * 2.0 ** np.arange(-149, 128)).ravel().astype(kind)
    points = np.concatenate([np.nextafter(points, kind(0)), points, np.nextafter(points, kind(np.inf))])
    return points[np.isfinite(points) & (points > 0)].astype(float)


def test_every_code_stands_for_what_others_say(fast):
    codes = np.arange(256, dtype=np.uint8)
    values = np.array([2.0 ** (c - 127) for c in range(255)] + [np.nan])
    for name, told in [("spec", e8m0.decode(codes)), ("fast", fast.decode(inputs.tensor(codes)))]:
        exactly(told, values, name)
    exactly(codes.view(ml_dtypes.float8_e8m0fnu).astype(float), values, "ml_dtypes")
    exactly(torch.from_numpy(codes).view(torch.float8_e8m0fnu).float(), values, "torch")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", ELEMENTS)
def test_scales_at_every_turning_point_are_those_of_exact_arithmetic(fast, fmt, mode):
    for side, kind in zip(sides(fast), (np.float64, np.float64, np.float32)):
        amax = turning_points(fmt, kind)
        exactly(side.block_scale(amax, fmt, mode), np.array([by_fractions(a, fmt, mode) for a in amax]), "codes")


@given(elements, modes, inputs.dtypes("float32", "bfloat16", "float16", "float64"), inputs.seeds, inputs.layouts)
@example("int8", "ceil", "float32", 0, "transposed")
def test_scales_of_all_numbers_are_those_of_exact_arithmetic(fast, fmt, mode, dtype, seed, layout):
    rng = np.random.default_rng(seed)
    amax = rng.uniform(1, 2, 300) * 2.0 ** rng.integers(-150, 127, 300)
    amax = inputs.rounded(np.where(np.arange(300) % 50 == 0, 0, amax).reshape(3, 10, 10), dtype)
    amax = np.where(np.isfinite(amax), amax, 3)
    expected = np.vectorize(lambda a: by_fractions(a, fmt, mode))(amax)
    exactly(e8m0.block_scale(amax, fmt, mode), expected, "spec codes")
    exactly(fast.block_scale(inputs.tensor(amax, dtype, layout), fmt, mode), expected, "codes")


@given(elements, inputs.seeds)
def test_what_saturates_and_by_how_much(fast, fmt, seed):
    exponent, largest, mantissa = ELEMENTS[fmt]
    rng = np.random.default_rng(seed)
    amax = inputs.rounded(rng.uniform(1, 2, 500) * 2.0 ** rng.integers(-100, 100, 500), "float32")
    for side in sides(fast):
        ratio = {mode: amax / 2.0 ** (side.block_scale(amax, fmt, mode) - 127) / 2.0**exponent for mode in MODES}
        top = float(largest) / 2**exponent
        assert np.all((ratio["floor"] >= 1) & (ratio["floor"] < 2))
        assert np.all((ratio["even"] >= 1 - 2.0 ** (-mantissa - 2)) & (ratio["even"] < 2 - 2.0 ** (-mantissa - 1)))
        assert np.all((ratio["rceil"] > top / 2) & (ratio["rceil"] <= top))
        assert np.all((ratio["ceil"] > 0.5) & (ratio["ceil"] <= 1))


@given(elements, modes, inputs.seeds)
def test_twice_the_maximum_is_the_next_scale(fast, fmt, mode, seed):
    amax = inputs.rounded(np.random.default_rng(seed).lognormal(0, 9, 300), "float32")
    for side in sides(fast):
        exactly(side.block_scale(2 * amax, fmt, mode), side.block_scale(amax, fmt, mode) + 1, "codes")
        exactly(side.block_scale(-amax, fmt, mode), side.block_scale(amax, fmt, mode), "codes of negated numbers")


@pytest.mark.parametrize("mode", MODES)
def test_ends_of_the_range(fast, mode):
    amax = np.array([0.0, -0.0, 2.0**-149, 2.0**-126, np.inf, -np.inf, np.nan])
    for side in sides(fast):
        exactly(side.block_scale(amax, "e2m1", mode), np.array([0, 0, 0, 0, 255, 255, 255]), "codes")
    highest = np.array([np.finfo(np.float32).max])
    exactly(e8m0.block_scale(highest, "e2m1", mode), np.array([252 + (mode != "floor")]), "far below the largest scale")
    far = np.array([2.0**-1060, 2.0**-1000, 2.0**1000])
    for side in sides(fast)[:2]:
        exactly(side.block_scale(far, "e2m1", mode), np.array([0, 0, 254]), "codes of 64-bit numbers beyond")


def test_a_maximum_rounded_to_16_bits_has_another_scale(fast):
    amax = np.array([np.nextafter(np.float32(8), np.float32(0))]).astype(float)
    for side in sides(fast):
        assert side.block_scale(amax, "e2m1", "floor")[0] == 127
        assert side.block_scale(inputs.rounded(amax, "bfloat16"), "e2m1", "floor")[0] == 128


@pytest.mark.parametrize(
    "message, call",
    [
        ("fmt must be", lambda f: f.block_scale(torch.ones(2), "fp16")),
        ("mode must be", lambda f: f.block_scale(torch.ones(2), "e2m1", "nearest")),
        ("amax must have dtype", lambda f: f.block_scale(torch.ones(2, dtype=torch.int32), "e2m1")),
        ("code must have dtype uint8", lambda f: f.decode(torch.ones(2))),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_it_does_not_know():
    for call in (
        lambda: e8m0.decode(np.array([256])),
        lambda: e8m0.block_scale(np.ones(1), "fp16"),
        lambda: e8m0.block_scale(np.ones(1), "e2m1", "nearest"),
    ):
        with pytest.raises(ValueError):
            call()


def test_empty_tensors_and_one_graph(fast):
    assert fast.block_scale(torch.ones(2, 0), "e2m1").shape == (2, 0)
    both = torch.compile(lambda x: fast.decode(fast.block_scale(x, "e4m3fn", "rceil")), fullgraph=True, backend="aot_eager")
    exactly(both(torch.tensor([448.0, 449.0])), np.array([1.0, 2.0]), "scales")
