"""Laws of LLM.int8(): thresholds at either end, columns that partition, and numbers on the grid, of which nothing is ever rounded."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.quantization import llm_int8, round_to_nearest

options = st.sampled_from(["weight", "dequantized"])
shapes = st.sampled_from([(1, 3, 5), (3, 65, 31), (17, 5, 130), (33, 70, 300)])  # tokens, channels, columns
UNIT = 2.0**-24


class Arrays:
    """The implementation under test, fed and read in float64 arrays, so that one statement of a law serves spec and fast."""

    def __init__(self, fast, dtype="float32"):
        self.fast, self.dtype = fast, dtype

    def _given(self, *arrays):
        return [None if x is None else inputs.tensor(x, self.dtype) for x in arrays]

    def matmul(self, x, weight, threshold, outliers="weight", bias=None):
        x, weight, bias = self._given(x, weight, bias)
        return inputs.array(self.fast.matmul(x, weight, threshold, outliers, bias))

    def outlier_columns(self, x, threshold):
        return inputs.array(self.fast.outlier_columns(*self._given(x), threshold))

    def quantize(self, x, exclude=None):
        codes, scale = self.fast.quantize(*self._given(x), None if exclude is None else inputs.tensor(exclude))
        return inputs.array(codes).astype(int), inputs.array(scale)

    def matmul_decomposed(self, x, columns, x_codes, x_scale, codes, scale, weight=None, bias=None):
        x_codes, codes = inputs.tensor(x_codes, "int8"), inputs.tensor(codes, "int8")
        x_scale, scale = inputs.tensor(x_scale, "float32"), inputs.tensor(scale, "float32")
        x, weight, bias = self._given(x, weight, bias)
        return inputs.array(self.fast.matmul_decomposed(x, inputs.tensor(columns), x_codes, x_scale, codes, scale, weight, bias))


def sides(fast):
    return llm_int8, Arrays(fast)


def on_the_grid(shape, seed, outliers=2):
    """Activations and a weight that `absmax` codes reproduce, and the threshold between the inliers and some `outliers` columns.

    Every token is integers up to 127 times a power of two of its own, with 127 in an inlier column; so is every row of the weight, which
    has its 127 in an outlier column, for it is quantized as a whole. One token of each outlier column reaches the threshold.
    """
    t, n, k = shape
    rng = np.random.default_rng(seed)
    chosen, keeper = np.split(rng.permutation(k)[: outliers + 1], [outliers])
    x, weight = rng.integers(-126, 127, (t, k)).astype(float), rng.integers(-126, 127, (n, k)).astype(float)
    x[:, keeper[0]] = rng.choice([-127, 127], t)
    weight[:, chosen[0] if outliers else keeper[0]] = rng.choice([-127, 127], n)
    x, weight = x * 2.0 ** (np.arange(t)[:, None] * 3 % 4), weight * 2.0 ** (np.arange(n)[:, None] * 5 % 4 - 2)
    x[rng.integers(0, t, outliers), chosen] = rng.choice([-1, 1], outliers) * 1024.0
    return x, weight, 1024.0, np.isin(np.arange(k), chosen)


@given(shapes, inputs.seeds, options, st.integers(0, 3), st.booleans())
@example((17, 5, 130), 0, "weight", 2, True)
def test_numbers_on_the_grid_are_multiplied_exactly(fast, shape, seed, option, outliers, with_bias):
    x, weight, threshold, chosen = on_the_grid(shape, seed, outliers)
    bias = np.random.default_rng(seed).integers(-9, 10, shape[1]) + 0.5 if with_bias else None
    exact = x @ weight.T + (0 if bias is None else bias)
    for side in sides(fast):
        exactly(side.outlier_columns(x, threshold), chosen, "columns")
        exactly(side.matmul(x, weight, threshold, option, bias), exact, "output")


@given(shapes, inputs.regimes, inputs.seeds)
def test_no_threshold_is_plain_int8(fast, shape, regime, seed):
    t, n, k = shape
    x, weight = inputs.values(regime, [(t, k), (n, k)], seed, "float32")
    (x_codes, x_scale, _), (codes, scale, _) = (round_to_nearest.encode(values, 8, None, "absmax") for values in (x, weight))
    exactly(llm_int8.matmul(x, weight, np.inf), round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale), "spec")
    from twofold.fast.quantization import round_to_nearest as plain

    (x_codes, x_scale, _), (codes, scale, _) = (plain.encode(inputs.tensor(values, "float32"), 8, None, "absmax") for values in (x, weight))
    expected = inputs.array(plain.matmul_int8(x_codes, x_scale, codes, scale))
    for option in ("weight", "dequantized"):
        exactly(Arrays(fast).matmul(x, weight, np.inf, option), expected, "fast")


@given(shapes, inputs.seeds)
def test_threshold_0_is_plain_floating_point(fast, shape, seed):
    """Weights that no 8 bits hold: odd multiples of 2^-9 up to 8, which the codes would spoil."""
    t, n, k = shape
    rng = np.random.default_rng(seed)
    x, weight = rng.integers(-3, 4, (t, k)).astype(float), (2 * rng.integers(-2048, 2048, (n, k)) + 1) * 2.0**-9
    for side in sides(fast):
        assert side.outlier_columns(x, 0.0).all()
        exactly(side.matmul(x, weight, 0.0), x @ weight.T, "output")
        codes, scale = side.quantize(x, side.outlier_columns(x, 0.0))
        exactly(codes, np.zeros((t, k)), "codes")
        exactly(scale, np.ones((t, 1)), "scale")


@given(shapes, inputs.seeds, inputs.dtypes())
@example((33, 70, 300), 0, "bfloat16")
def test_both_sums_meet_before_the_only_cast(fast, shape, seed, dtype):
    """Codes and outlier weights that have nothing to do with each other: whoever mixes them up, or casts twice, is found out."""
    t, n, k = shape
    rng = np.random.default_rng(seed)
    columns = rng.random(k) < rng.choice([0.1, 0.5])
    x = rng.integers(-15, 16, (t, k)).astype(float)
    x_codes, codes = np.where(columns, 0, rng.integers(-127, 128, (t, k))), rng.integers(-127, 128, (n, k))
    x_scale, scale = 2.0 ** (np.arange(t)[:, None] % 2), 2.0 ** (np.arange(n)[:, None] % 2 - 1)
    weight, bias = rng.integers(-63, 64, (n, k)) * 2.0, rng.integers(-9, 10, n) + 0.5
    if dtype == "float16":
        x_codes, x, bias = x_codes % 2, x % 2, bias % 2  # below 65504
    total = (x_codes @ codes.T) * (x_scale * scale.T) + bias
    for kept, told in ((weight, weight), (codes * scale, None)):
        exact = total + x[:, columns] @ kept[:, columns].T
        exactly(Arrays(fast, dtype).matmul_decomposed(x, columns, x_codes, x_scale, codes, scale, told, bias), inputs.rounded(exact, dtype))
        exactly(llm_int8.matmul_decomposed(x, columns, x_codes, x_scale, codes, scale, told, bias), exact, "spec")


@given(shapes, inputs.seeds, st.sampled_from([0.5, 1.0, 2.0, 2.5]))
def test_columns_are_coded_or_kept(fast, shape, seed, threshold):
    x = inputs.values("normal", [(shape[0], shape[2])], seed, "float32")[0]
    for side in sides(fast):
        columns = side.outlier_columns(x, threshold)
        exactly(columns, np.array([max(abs(value) for value in column) >= threshold for column in x.T]), "columns")
        codes, scale = side.quantize(x, columns)
        assert np.all(codes[:, columns] == 0)
        inliers = x[:, ~columns]
        largest = np.abs(inliers).max(1, initial=0)
        assert np.all(np.abs(codes).max(1) == np.where(largest > 0, 127, 0))  # the scale is theirs alone
        assert np.all(np.abs(inliers - codes[:, ~columns] * scale) <= scale / 2 * (1 + 2.0**-14))  # 127 codes, four roundings each


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_reaches_the_threshold_is_an_outlier(fast, dtype):
    below = {"float32": 6 - 2.0**-21, "float16": 6 - 2.0**-8, "bfloat16": 6 - 2.0**-5}[dtype]
    x = np.array([[6.0, -6.0, below, -below, 0.0]])
    for side in (llm_int8, Arrays(fast, dtype)):
        exactly(side.outlier_columns(x, 6.0), np.array([True, True, False, False, False]))
        exactly(side.outlier_columns(x, 6.0 + 2.0**-40), np.zeros(5, bool), "a threshold that no 16 bits hold")


@given(inputs.seeds)
def test_tokens_see_each_other_through_the_columns_alone(fast, seed):
    """A property, not a mistake: a neighbor's outlier changes which columns of a token are rounded. The same columns, the same output."""
    x, weight = inputs.values("normal", [(4, 40), (6, 40)], seed, "float32")
    other = x.copy()
    other[3, 11] = 100
    for side in sides(fast):
        alone, beside = side.matmul(x, weight, 6.0), side.matmul(other, weight, 6.0)
        columns = side.outlier_columns(other, 6.0)
        codes, scale = side.quantize(weight)
        again = side.matmul_decomposed(x, columns, *side.quantize(x, columns), codes, scale, weight)
        exactly(again[:3], beside[:3], "under the same columns")
        assert np.any(alone[:3] != beside[:3])


def test_small_numbers_survive_the_product_of_scales_in_half_precision(fast):
    """Scales of 2^-14 on both sides: their product, 2^-28, is 0 in float16, and the result is not."""
    x, weight = np.full((2, 128), 127 * 2.0**-14), np.full((3, 128), 127 * 2.0**-14)
    exactly(Arrays(fast, "float16").matmul(x, weight, 6.0), inputs.rounded(x @ weight.T, "float16"))


def test_sums_beyond_what_float32_counts_are_exact(fast):
    rng = np.random.default_rng(1)
    x_codes, codes = rng.integers(64, 128, (4, 4096)), rng.integers(64, 128, (40, 4096))
    x_codes[:, 7] = 0
    columns, total = np.arange(4096) == 7, x_codes @ codes.T
    assert np.min(total) > 2**24
    x, weight = np.ones((4, 4096)), np.full((40, 4096), 2.0**24)
    y = Arrays(fast).matmul_decomposed(x, columns, x_codes, np.ones((4, 1)), codes, np.ones((40, 1)), weight)
    exactly(y, inputs.rounded(inputs.rounded(total, "float32") + 2.0**24, "float32"))  # one rounding of the sum, one of the sum of both


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("option", ["weight", "dequantized"])
def test_empty_sizes(fast, shape, option):
    t, n, k = shape
    for side in sides(fast):
        exactly(side.matmul(np.ones((t, k)), np.ones((n, k)), 6.0, option, np.full(n, 2.5)), np.full((t, n), 2.5 + k))
        exactly(side.outlier_columns(np.ones((t, k)), 0.0), np.full(k, t > 0), "columns")


def test_degenerate_rows(fast):
    """Zero, constant and one-hot tokens; a zero and a constant weight row. Their scales are powers of two, so all is exact."""
    x = np.zeros((4, 40))
    x[1], x[2, 5], x[3, 6] = 127, -254, 1024
    weight = np.zeros((3, 40))
    weight[1], weight[2, 5] = 63.5, -254
    for side in sides(fast):
        for threshold in (np.inf, 1000.0, 200.0, 100.0, 0.0):
            exactly(side.matmul(x, weight, threshold)[:3], x[:3] @ weight.T, f"threshold {threshold}")


def test_a_lost_number_hurts_its_token_or_channel_alone(fast):
    x, weight = inputs.values("normal", [(5, 40), (6, 40)], 3, "float32")
    side = Arrays(fast)
    healthy = side.matmul(x, weight, 6.0)
    for lost in (np.nan, np.inf, -np.inf):
        hurt, expected = weight.copy(), healthy.copy()
        hurt[2, 0], expected[:, 2] = lost, np.nan
        exactly(side.matmul(x, hurt, 6.0), expected, "a weight")
        hurt = x.copy()
        hurt[2, 0] = lost
        columns = np.isin(np.arange(40), [] if np.isnan(lost) else [0])
        exactly(side.outlier_columns(hurt, 6.0), columns, "columns")
        expected = side.matmul_decomposed(x, columns, *side.quantize(x, columns), *side.quantize(weight), weight)
        expected[2] = np.nan if np.isnan(lost) else lost * weight[:, 0]
        exactly(side.matmul(hurt, weight, 6.0), expected, "an activation")
        with pytest.raises(ValueError, match="finite"):
            llm_int8.quantize(hurt)
    hurt, big = x.copy(), x.copy()
    hurt[2, 0], hurt[3, 0], big[3, 0] = np.nan, 8, 8
    exactly(side.outlier_columns(hurt, 6.0), side.outlier_columns(big, 6.0), "a NaN does not hide its column's outlier")
    assert np.isnan(side.matmul(hurt, weight, 6.0)[2]).all()
