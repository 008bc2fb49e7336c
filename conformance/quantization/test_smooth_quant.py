"""Laws of SmoothQuant: smoothing changes nothing but the magnitudes, and what is quantized after it is round to nearest."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.quantization import round_to_nearest, smooth_quant

UNIT = 2.0**-24
alphas = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.85, 1.0])


class Arrays:
    """The implementation under test, fed and read in float64 arrays, so that one statement of a law serves spec and fast."""

    def __init__(self, fast):
        self.fast = fast

    def smoothing_scale(self, act_max, weight_max, alpha):
        return inputs.array(self.fast.smoothing_scale(inputs.tensor(act_max, "float32"), inputs.tensor(weight_max, "float32"), alpha))

    def fold(self, norm_weight, norm_bias, weights, scale):
        given = [None if x is None else inputs.tensor(x, "float32") for x in (norm_weight, norm_bias, *weights, scale)]
        weight, bias, folded = self.fast.fold(*given[:2], given[2:-1], given[-1])
        return inputs.array(weight), None if bias is None else inputs.array(bias), [inputs.array(w) for w in folded]

    def quantize_activation(self, x, granularity, scale=None):
        scale = None if scale is None else inputs.tensor(scale, "float32")
        codes, scale = self.fast.quantize_activation(inputs.tensor(x, "float32"), granularity, scale)
        return inputs.array(codes).astype(int), inputs.array(scale)

    def matmul(self, x_codes, x_scale, codes, scale, bias=None):
        given = [inputs.tensor(x, dtype) for x, dtype in zip((x_codes, x_scale, codes, scale), ("int8", "float32") * 2, strict=True)]
        return inputs.array(self.fast.matmul(*given, None if bias is None else inputs.tensor(bias, "float32")))


def sides(fast):
    return smooth_quant, Arrays(fast)


def layer(seed, t=9, n=7, k=40):
    """Activations with channels up to 2^9 apart, and a weight: float32 values."""
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((t, k)) * 2.0 ** rng.integers(-3, 7, k), rng.standard_normal((n, k))
    return inputs.rounded(x, "float32"), inputs.rounded(weight, "float32")


@given(inputs.seeds, st.integers(0, 1))
def test_powers_of_two_move_between_norm_and_weight_without_a_trace(fast, seed, with_bias):
    """The layer norm's affine part, then two linear layers: small integers and powers of two, so that every sum is exact."""
    rng = np.random.default_rng(seed)
    normed, gain, shift = rng.integers(-8, 9, (6, 40)) + 0.0, rng.integers(1, 9, 40) + 0.0, rng.integers(-8, 9, 40) + 0.0
    weights, scale = [rng.integers(-8, 9, (n, 40)) + 0.0 for n in (5, 3)], 2.0 ** rng.integers(-6, 7, 40)
    x = normed * gain + with_bias * shift
    for side in sides(fast):
        folded_gain, folded_shift, folded = side.fold(gain, shift if with_bias else None, weights, scale)
        assert (folded_shift is None) == (not with_bias)
        smoothed = normed * folded_gain + (folded_shift if with_bias else 0)
        exactly(smoothed, x / scale, "activations")
        for before, after in zip(weights, folded, strict=True):
            exactly(after, before * scale, "weight")
            exactly(smoothed @ after.T, x @ before.T, "output")


@given(inputs.seeds, alphas)
@example(0, 0.5)
def test_any_scale_leaves_the_layer_what_it_is(fast, seed, alpha):
    """Float32 roundings: one of each quotient and one of each product, after which the sum is compared in float64."""
    x, weight = layer(seed)
    for side in sides(fast):
        scale = side.smoothing_scale(np.abs(x).max(0), np.abs(weight).max(0), alpha)
        rows = [side.fold(row, None, [weight], scale) for row in x]  # each token as a norm's weight: what it does to a channel
        smoothed, folded = np.stack([row[0] for row in rows]), rows[0][2][0]
        size = np.abs(x) @ np.abs(weight).T
        assert np.all(np.abs(smoothed @ folded.T - x @ weight.T) <= (2 * UNIT + UNIT**2 + 2.0**-46) * size + 2.0**-120)


@given(inputs.seeds)
def test_alpha_says_which_side_is_leveled(fast, seed):
    rng = np.random.default_rng(seed)
    act_max, weight_max = 4.0 ** rng.integers(-4, 5, 40), 4.0 ** rng.integers(-4, 5, 40)  # powers of four: every root is exact
    for side in sides(fast):
        exactly(act_max / side.smoothing_scale(act_max, weight_max, 1.0), np.ones(40), "alpha 1: activations")
        exactly(weight_max * side.smoothing_scale(act_max, weight_max, 0.0), np.ones(40), "alpha 0: weight")
        scale = side.smoothing_scale(act_max, weight_max, 0.5)
        exactly(act_max / scale, weight_max * scale, "alpha 1/2: both")
        exactly((act_max / scale) ** 2, act_max * weight_max, "alpha 1/2: their product is shared")


@given(inputs.seeds, alphas)
def test_the_scale_is_the_definitions_to_one_rounding(fast, seed, alpha):
    x, weight = layer(seed)
    given = np.abs(x).max(0), np.abs(weight).max(0)
    expected = np.exp(alpha * np.log(given[0]) - (1 - alpha) * np.log(given[1]))  # another form of the same, in float64
    for side in sides(fast):
        assert np.all(np.abs(side.smoothing_scale(*given, alpha) - expected) <= UNIT * expected * (1 + 2.0**-20))


@given(alphas)
def test_channels_without_activations_or_weights_get_a_finite_scale(fast, alpha):
    act_max, weight_max = np.array([0.0, 0.0, 8.0]), np.array([0.0, 2.0, 0.0])
    floor = inputs.rounded(np.array(1e-5), "float32")
    for side in sides(fast):
        scale = side.smoothing_scale(act_max, weight_max, alpha)
        assert np.all(np.isfinite(scale)) and np.all(scale >= floor)
        if alpha > 0:
            assert np.all(np.abs(scale[:2] - 1e-5) <= UNIT * 1e-5)


@given(inputs.regimes, inputs.seeds, st.sampled_from(["token", "tensor"]), st.sampled_from([(1, 1), (3, 40), (9, 33), (2, 1100)]))
def test_codes_are_those_of_round_to_nearest(fast, regime, seed, granularity, shape):
    x = inputs.values(regime, [shape], seed, "float32")[0]
    x[0] = 0
    rows = x if granularity == "token" else x.reshape(1, -1)
    for side, twin in ((smooth_quant, round_to_nearest), (Arrays(fast), None)):
        codes, scale = side.quantize_activation(x, granularity)
        assert scale.shape == ((len(x), 1) if granularity == "token" else (1, 1)) and codes.shape == x.shape
        if twin:
            expected, step, _ = twin.encode(rows, 8, None, "absmax")
            exactly(scale, step, "scale")
            exactly(codes, expected.reshape(x.shape), "codes")
        assert np.all(np.abs(codes * scale - x) <= scale / 2 * (1 + 2.0**-14))  # 127 codes, four float32 roundings each
        exactly(side.quantize_activation(x, granularity, scale)[0], codes, "codes under the same scale")
        if granularity == "token":
            exactly(scale[0], np.ones(1), "scale of a zero row")


def test_a_static_scale_clips(fast):
    x = np.array([[300.0, -300.0, 2.5, -0.5, 0.0]])
    for side in sides(fast):
        codes, _ = side.quantize_activation(x, "tensor", np.ones((1, 1)))
        exactly(codes, np.array([[127, -127, 2, 0, 0]]), "codes")


@given(inputs.seeds)
def test_fold_then_quantize_is_quantize_what_was_folded(fast, seed):
    """Powers of two in every row and channel at once: the codes of the smoothed weight are those of its rows as they stand."""
    x, weight = layer(seed)
    scale = 2.0 ** np.random.default_rng(seed).integers(-5, 6, 40)
    for side in sides(fast):
        folded = side.fold(x[0], None, [weight], scale)[2][0]
        for got, expected in zip(side.quantize_activation(folded, "token"), side.quantize_activation(weight * scale, "token")):
            exactly(got, expected)


@given(inputs.seeds, st.sampled_from(["per row", "one", "mixed"]), st.booleans())
def test_the_product_is_exact_whatever_the_granularity(fast, seed, granularity, with_bias):
    rng = np.random.default_rng(seed)
    x_codes, codes = rng.integers(-127, 128, (17, 150)), rng.integers(-127, 128, (33, 150))
    x_scale = np.full((1, 1), 0.5) if granularity == "one" else 2.0 ** (np.arange(17)[:, None] % 4 - 2)
    scale = 2.0 ** (3 * np.arange(33)[:, None] % 4 - 2) if granularity == "per row" else np.full((1, 1), 2.0)
    bias = rng.integers(-9, 9, 33) + 0.5 if with_bias else None
    exact = (x_codes @ codes.T) * x_scale * scale.T + (0 if bias is None else bias)
    for side in sides(fast):
        exactly(side.matmul(x_codes, x_scale, codes, scale, bias), exact)


def test_smoothing_saves_what_an_outlier_channel_takes(fast):
    """One channel a thousand times larger than the rest: unsmoothed, every other code is 0 and its part of the output is lost."""
    x, weight = layer(7, k=64)
    x = inputs.rounded(x / np.abs(x).max(0), "float32")
    x[:, 5] = 1024 * np.sign(x[:, 5])
    exact = x @ weight.T
    for side in sides(fast):
        codes, step = side.quantize_activation(weight, "token")
        x_codes, x_scale = side.quantize_activation(x, "token")
        exactly(np.delete(x_codes, 5, 1), np.zeros((9, 63)), "codes beside an outlier")
        unsmoothed = np.abs(side.matmul(x_codes, x_scale, codes, step) - exact).max()
        scale = side.smoothing_scale(np.abs(x).max(0), np.abs(weight).max(0), 0.5)
        x_codes, x_scale = side.quantize_activation(inputs.rounded(x / scale, "float32"), "token")
        assert np.all(np.abs(x_codes).max(0) > 0)
        codes, step = side.quantize_activation(inputs.rounded(side.fold(x[0], None, [weight], scale)[2][0], "float32"), "token")
        assert np.abs(side.matmul(x_codes, x_scale, codes, step) - exact).max() < unsmoothed


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_empty_sizes(fast, shape, granularity):
    for side in sides(fast):
        codes, scale = side.quantize_activation(np.ones(shape), granularity)
        exactly(scale, np.ones((shape[0] if granularity == "token" else 1, 1)), "scale")
        exactly(side.matmul(codes, scale, np.ones((4, shape[1]), int), np.ones((4, 1))), np.zeros((shape[0], 4)), "output")
    exactly(fast.smoothing_scale(torch.ones(0), torch.ones(0), 0.5), np.ones(0))


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_token(fast, lost):
    x = inputs.values("normal", [(5, 40)], 3, "float32")[0]
    weight = inputs.values("normal", [(6, 40)], 4, "float32")[0]
    codes, step = Arrays(fast).quantize_activation(weight, "token")
    output = lambda x: Arrays(fast).matmul(*Arrays(fast).quantize_activation(x, "token"), codes, step)
    healthy, hurt = output(x), x.copy()
    hurt[2, 7] = lost
    expected = healthy.copy()
    expected[2] = np.nan
    exactly(output(hurt), expected)
    assert np.isnan(Arrays(fast).quantize_activation(hurt, "tensor")[1]).all()
    with pytest.raises(ValueError, match="finite"):
        smooth_quant.quantize_activation(hurt, "token")
