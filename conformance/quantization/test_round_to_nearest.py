"""Laws of round to nearest: each is stated once, and both the definition and the implementation under test are held to it."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.quantization import round_to_nearest

GRIDS = ("absmax", "full", "zero_point", "min", "float_zero", "centred")
grids, widths = st.sampled_from(GRIDS), st.integers(2, 8)
UNIT = 2.0**-24


class Arrays:
    """The implementation under test, fed and read in float64 arrays, so that one statement of a law serves spec and fast."""

    def __init__(self, fast):
        self.fast = fast

    def parameters(self, weight, *options):
        return tuple(map(inputs.array, self.fast.parameters(inputs.tensor(weight, "float32"), *options)))

    def quantize(self, weight, scale, zero, *options):
        return inputs.array(self.fast.quantize(*(inputs.tensor(x, "float32") for x in (weight, scale, zero)), *options)).astype(int)

    def dequantize(self, codes, scale, zero, bits, size, grid):
        codes = inputs.tensor(codes, "int8" if grid == "absmax" else "uint8")
        return inputs.array(self.fast.dequantize(codes, *(inputs.tensor(x, "float32") for x in (scale, zero)), bits, size, grid))

    def encode(self, weight, *options):
        codes, scale, zero = map(inputs.array, self.fast.encode(inputs.tensor(weight, "float32"), *options))
        return codes.astype(int), scale, zero

    def convert(self, scale, zero, *options):
        return tuple(map(inputs.array, self.fast.convert(*(inputs.tensor(x, "float32") for x in (scale, zero)), *options)))


def sides(fast):
    return round_to_nearest, Arrays(fast)


shapes = st.sampled_from([(1, 1), (31, 16), (33, 16), (70, 32), (37, 100), (65, None), (1, None)])  # columns, group size


def matrix(regime, columns, seed):
    """Two rows of the regime; then all-zero, constant, positive far from zero, negative, and one spike per sixteen."""
    rng = np.random.default_rng(seed)
    spikes = np.where(np.arange(columns) % 16 == 3, 2.0**9, 1) * rng.standard_normal(columns)
    special = [np.zeros(columns), np.full(columns, 5.5), 10 + rng.random(columns) / 2, -1 - rng.random(columns), spikes]
    return inputs.rounded(np.vstack([inputs.REGIMES[regime](rng, (2, columns)), *special]), "float32")


def spread(values, size, columns):
    return np.repeat(values, size or columns, axis=1)[:, :columns]


@given(grids, widths, shapes, inputs.regimes, inputs.seeds)
@example("zero_point", 4, (70, 32), "normal", 0)
@example("min", 2, (33, 16), "normal", 0)
@example("absmax", 8, (2100, None), "normal", 0)  # a group longer than a program holds
def test_error_is_at_most_half_a_step(fast, grid, bits, shape, regime, seed):
    columns, size = shape
    weight = matrix(regime, columns, seed)
    for side in sides(fast):
        codes, scale, zero = side.encode(weight, bits, size, grid)
        value = round_to_nearest.dequantize(codes, scale, zero, bits, size, grid)
        step, offset = spread(scale, size, columns), spread(zero, size, columns)
        offset = np.abs(offset if grid in ("min", "centred") else offset * step)
        # roundings to float32 of the ratio, of the zero and of the sums between, each of at most what meets in it
        limit = step / 2 + 8 * UNIT * (np.abs(weight) + offset + step * 2**bits)
        assert np.all(np.abs(value - weight) <= limit)


@given(grids, widths, shapes, inputs.regimes, inputs.seeds)
def test_codes_lie_in_their_range_and_values_on_the_grid_stay(fast, grid, bits, shape, regime, seed):
    columns, size = shape
    lowest, highest = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if grid == "absmax" else (0, 2**bits - 1)
    weight = matrix(regime, columns, seed)
    for side in sides(fast):
        codes, scale, zero = side.encode(weight, bits, size, grid)
        assert codes.min() >= lowest and codes.max() <= highest
        exactly(side.quantize(side.dequantize(codes, scale, zero, bits, size, grid), scale, zero, bits, size, grid), codes, "codes")


@given(grids, widths, inputs.seeds, st.integers(-6, 6))
def test_powers_of_two_change_only_scales(fast, grid, bits, seed, exponent):
    weight = inputs.values("normal", [(3, 70)], seed, "float32")[0]
    for side in sides(fast):
        codes, scale, zero = side.encode(weight, bits, 32, grid)
        larger = side.encode(weight * 2.0**exponent, bits, 32, grid)
        exactly(larger[0], codes, "codes")
        exactly(larger[1], scale * 2.0**exponent, "scale")
        exactly(larger[2], zero * (2.0**exponent if grid in ("min", "centred") else 1), "zero")


@given(widths, shapes, inputs.regimes, inputs.seeds)
def test_absmax_is_odd(fast, bits, shape, regime, seed):
    weight = matrix(regime, shape[0], seed)
    for side in sides(fast):
        codes, scale, _ = side.encode(weight, bits, shape[1], "absmax")
        negated = side.encode(-weight, bits, shape[1], "absmax")
        exactly(negated[0], -codes, "codes")
        exactly(negated[1], scale, "scale")


@given(grids, widths, inputs.regimes, inputs.seeds)
def test_codes_are_monotone(fast, grid, bits, regime, seed):
    weight = np.sort(matrix(regime, 40, seed), axis=1)
    for side in sides(fast):
        assert np.all(np.diff(side.encode(weight, bits, None, grid)[0], axis=1) >= 0)


@given(st.sampled_from(("absmax", "full", "zero_point")), widths, inputs.regimes, inputs.seeds)
def test_zero_stays_zero(fast, grid, bits, regime, seed):
    weight = matrix(regime, 40, seed)
    weight[:, 7::9] = 0
    for side in sides(fast):
        codes, scale, zero = side.encode(weight, bits, 16, grid)
        exactly(side.dequantize(codes, scale, zero, bits, 16, grid)[:, 7::9], np.zeros((len(weight), 4)), "zeros")


@given(grids, widths, shapes)
def test_degenerate_groups(fast, grid, bits, shape):
    columns, size = shape
    weight = np.vstack([np.zeros(columns), np.full(columns, 5.5), np.full(columns, -0.75)])
    for side in sides(fast):
        codes, scale, zero = side.encode(weight, bits, size, grid)
        value = side.dequantize(codes, scale, zero, bits, size, grid)
        assert np.all(np.isfinite(scale)) and np.all(scale > 0)
        exactly(value[0], weight[0], "all-zero groups")
        if grid in ("min", "float_zero", "centred"):
            exactly(value, weight, "constant groups")


@given(grids, widths, inputs.seeds, st.integers(0, 4))
def test_groups_and_rows_do_not_see_each_other(fast, grid, bits, seed, changed):
    weight = matrix("normal", 70, seed)
    other, order = weight.copy(), np.random.default_rng(seed).permutation(7)
    other[:, 16 * changed : 16 * changed + 16] *= -3
    kept = np.arange(70) // 16 != changed
    for side in sides(fast):
        codes, scale, zero = side.encode(weight, bits, 16, grid)
        moved, permuted = side.encode(other, bits, 16, grid), side.encode(weight[order], bits, 16, grid)
        exactly(moved[0][:, kept], codes[:, kept], "codes of other groups")
        exactly(np.delete(moved[1], changed, 1), np.delete(scale, changed, 1), "scales of other groups")
        for name, x, y in zip(("codes", "scale", "zero"), permuted, (codes, scale, zero)):
            exactly(x, y[order], f"{name} of permuted rows")


@given(grids, inputs.seeds)
def test_ties_go_to_the_even_code(fast, grid, seed):
    halves = np.random.default_rng(seed).integers(-9, 9, (3, 40)) + 0.5
    scale, zero = np.full((3, 3), 0.25), np.zeros((3, 3))
    middle = 128 if grid == "centred" else 0
    expected = np.clip(np.array([[round(x) for x in row] for row in halves]) + middle, -127 if grid == "absmax" else 0, 255)
    for side in sides(fast):
        exactly(side.quantize(halves / 4, scale, zero, 8, 16, grid), expected, "codes")


@given(st.sampled_from(GRIDS[1:]), st.sampled_from(GRIDS[3:]), widths, inputs.seeds)
def test_conversions_tell_the_same_values(fast, grid_from, grid_to, bits, seed):
    weight = inputs.values("normal", [(3, 40)], seed, "float32")[0]
    codes, scale, zero = (np.float32(x) for x in round_to_nearest.encode(weight, bits, 16, grid_from))
    value = round_to_nearest.dequantize(codes, scale, zero, bits, 16, grid_from)
    for side in sides(fast):
        told = side.convert(scale, zero, bits, grid_from, grid_to)
        limit = 8 * UNIT * spread(scale * 2 ** (bits + 1) + np.abs(told[1] * (scale if grid_to == "float_zero" else 1)), 16, 40)
        assert np.all(np.abs(round_to_nearest.dequantize(codes.astype(int), *told, bits, 16, grid_to) - value) <= limit)


def test_one_scale_per_tensor_is_one_group(fast):
    weight = inputs.values("normal", [(4, 30)], 3, "float32")[0]
    tensor = inputs.tensor(weight, "float32")
    codes, scale, zero = fast.encode(tensor.reshape(1, -1), 8, None, "absmax")
    assert scale.shape == (1, 1) and float(scale) == np.float32(np.abs(weight).max()) / np.float32(127)
    value = fast.dequantize(codes.reshape(4, 30), scale.expand(4, 1), zero.expand(4, 1), 8, None, "absmax")
    assert np.abs(inputs.array(value) - weight).max() <= float(scale) * 0.5001


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_spec_refuses_what_is_not_finite(grid, value):
    with pytest.raises(ValueError, match="finite"):
        round_to_nearest.parameters(np.array([[1.0, value]]), 4, None, grid)
