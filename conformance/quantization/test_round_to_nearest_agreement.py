"""Quantizers against the definition: scales to their last rounding, codes equal except next to a tie, and the edges of storage."""

import numpy as np
import pytest
import torch
from hypothesis import example, given

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.quantization.test_round_to_nearest import GRIDS, UNIT, grids, matrix, shapes, spread, widths
from twofold.conformance.rounding import UNIT as ROUNDOFF
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.quantization import round_to_nearest


def rows(values, dtype, layout="sliced"):
    """A matrix on the device, its rows contiguous and apart in memory; `sliced` puts a row of poison between any two."""
    return inputs.tensor(values[None, :, None], dtype, layout)[0, :, 0]


def ratios(weight, scale, zero, bits, size, grid):
    """What is rounded to a code, before the integer zero of `full` and `zero_point` is added, and the size of what it was computed from."""
    step, offset = spread(scale, size, weight.shape[1]), spread(zero, size, weight.shape[1])
    if grid == "float_zero":
        return weight / step + offset, np.abs(weight / step) + np.abs(offset)
    if grid in ("min", "centred"):
        ratio = (weight - offset) / step + (2 ** (bits - 1) if grid == "centred" else 0)
        return ratio, np.abs(ratio) + 2**bits
    return weight / step, np.abs(weight / step)


def equal_except_at_ties(actual, expected, ratio, size, what="codes"):
    """The same integers; one apart only where the number that was rounded lies within its own float32 roundings of a tie."""
    away = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5)
    wrong = (actual != expected) & ~((np.abs(actual - expected) == 1) & (away <= 8 * UNIT * size))
    assert not wrong.any(), f"{what}: {actual[wrong][:4]}, expected {expected[wrong][:4]} from {ratio[wrong][:4]}"


@given(grids, widths, shapes, inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts)
@example("min", 4, (2100, None), "normal", 0, "float32", "sliced")
def test_codes_are_the_definitions_except_at_ties(fast, grid, bits, shape, regime, seed, dtype, layout):
    columns, size = shape
    weight = inputs.rounded(matrix(regime, columns, seed), dtype)
    codes, scale, zero = map(inputs.array, fast.encode(rows(weight, dtype, layout), bits, size, grid))
    expected = round_to_nearest.quantize(weight, scale, zero, bits, size, grid)
    equal_except_at_ties(codes.astype(int), expected, *ratios(weight, scale, zero, bits, size, grid))
    given = rows(weight, dtype, layout), rows(scale, "float32", layout), rows(zero, "float32", layout)
    exactly(fast.quantize(*given, bits, size, grid), codes, "codes under the same parameters")


@given(grids, widths, shapes, inputs.regimes, inputs.seeds, inputs.dtypes())
@example("min", 4, (33, 16), "normal", 0, "float32")
@example("absmax", 8, (2100, None), "normal", 0, "bfloat16")
def test_parameters_are_the_definitions_to_the_last_rounding(fast, grid, bits, shape, regime, seed, stored):
    columns, size = shape
    weight = matrix(regime, columns, seed)
    tensor = inputs.tensor(weight, "float32")
    scale, zero = map(inputs.array, fast.parameters(tensor, bits, size, grid, dtype=getattr(torch, stored)))
    expected = round_to_nearest.parameters(weight, bits, size, grid)
    step = ROUNDOFF[stored] if stored != "float32" else 0  # of its storage, beside those of a difference and a quotient
    assert np.all(np.abs(scale - expected[0]) <= (step + 3 * UNIT) * expected[0] + 2.0**-25)
    groups = [weight[:, start : start + (size or columns)] for start in range(0, columns, size or columns)]
    least, greatest = (np.stack([extreme(group, 1) for group in groups], 1) for extreme in (np.min, np.max))
    if grid in ("absmax", "full"):
        exactly(zero, expected[1], "zero")
    elif grid == "min":
        exactly(zero, inputs.rounded(least, stored), "zero")
    elif grid == "zero_point":
        low = np.where((least == 0) & (greatest == 0), -1, np.minimum(least, 0))
        ratio = -low / scale
        equal_except_at_ties(zero, np.rint(ratio), ratio, np.abs(ratio) + 1, "zero")
    else:
        exact = -least / scale if grid == "float_zero" else least + 2 ** (bits - 1) * scale
        size_of = np.abs(exact) + (2 ** (bits - 1) * scale if grid == "centred" else 0)
        assert np.all(np.abs(zero - exact) <= (step + 4 * UNIT) * size_of + 2.0**-25)


@given(grids, widths, shapes, inputs.regimes, inputs.seeds, inputs.dtypes())
@example("zero_point", 4, (70, 32), "normal", 0, "float32")
def test_values_agree_with_the_definition(fast, grid, bits, shape, regime, seed, dtype):
    columns, size = shape
    weight = matrix(regime, columns, seed)
    codes, scale, zero = round_to_nearest.encode(weight, bits, size, grid)
    scale, zero = inputs.rounded(scale, "float32"), inputs.rounded(zero, "float32")
    given = rows(codes, "int8" if grid == "absmax" else "uint8"), rows(scale, "float32"), rows(zero, "float32")
    value = fast.dequantize(*given, bits, size, grid, dtype=getattr(torch, dtype))
    agree(value, bounded(round_to_nearest.dequantize, codes, scale, zero, bits, size, grid, precision=Precision(dtype)), "value")


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_not_finite_stays_in_its_group(fast, grid, lost):
    weight = inputs.values("normal", [(3, 40)], 5, "float32")[0]
    hurt = weight.copy()
    hurt[1, 20] = lost
    codes, scale, zero = map(inputs.array, fast.encode(inputs.tensor(weight, "float32"), 4, 16, grid))
    hurt_codes, hurt_scale, hurt_zero = map(inputs.array, fast.encode(inputs.tensor(hurt, "float32"), 4, 16, grid))
    codes[1, 16:32], scale[1, 1], zero[1, 1] = 0, np.nan, np.nan
    for name, actual, expected in (("codes", hurt_codes, codes), ("scale", hurt_scale, scale), ("zero", hurt_zero, zero)):
        exactly(actual, expected, name)


@pytest.mark.parametrize("grid", GRIDS)
def test_scales_that_storage_would_lose_are_kept_at_its_edge(fast, grid):
    weight = inputs.rounded(np.vstack([np.linspace(-1, 1, 16) * 2.0**-24, np.linspace(-1, 1, 16) * 2.0**27]), "float32")
    tensor = inputs.tensor(weight, "float32")
    options = 8, None, grid
    codes, scale, zero = map(inputs.array, fast.encode(tensor, *options, dtype=torch.float16))
    exactly(scale[:, 0], np.array([2.0**-14, 65504.0]), "scale")
    if grid == "zero_point":
        assert np.all((zero >= 0) & (zero <= 255))
    if np.all(np.isfinite(zero)):  # minus 2^27 itself is more than float16 can say
        expected = round_to_nearest.quantize(weight, scale, zero, *options)
        equal_except_at_ties(codes.astype(int), expected, *ratios(weight, scale, zero, *options))


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_not_finite_has_code_0_under_given_parameters(fast, grid, lost):
    """A weight that is not finite under finite parameters, and any weight under a scale that is not: code 0, and nobody else's changes."""
    weight = inputs.values("normal", [(3, 40)], 5, "float32")[0]
    scale, zero = (inputs.array(x) for x in fast.parameters(inputs.tensor(weight, "float32"), 4, 16, grid))
    quantize = lambda w, s: inputs.array(fast.quantize(*(inputs.tensor(x, "float32") for x in (w, s, zero)), 4, 16, grid))
    codes = quantize(weight, scale)
    hurt, lost_scale = weight.copy(), scale.copy()
    hurt[1, 20], lost_scale[0, 2] = lost, lost
    expected = codes.copy()
    expected[1, 20] = 0
    exactly(quantize(hurt, scale), expected, "codes, a weight lost")
    expected = codes.copy()
    expected[0, 32:] = 0
    exactly(quantize(weight, lost_scale), expected, "codes, a scale lost")
