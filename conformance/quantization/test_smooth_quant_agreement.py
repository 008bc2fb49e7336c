"""SmoothQuant in every dtype and layout within the derived bound; wrong arguments raise before any launch; one graph."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.quantization.test_round_to_nearest_agreement import equal_except_at_ties, rows
from twofold.conformance.quantization.test_smooth_quant import UNIT, alphas, layer
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.quantization import round_to_nearest as fast_round
from twofold.spec.quantization import smooth_quant

shapes = st.sampled_from([(1, 3, 1), (2, 65, 31), (17, 5, 130), (33, 70, 300)])  # tokens, channels, columns


@given(inputs.seeds, inputs.dtypes(), inputs.layouts, alphas)
@example(0, "bfloat16", "sliced", 0.5)
def test_folding_agrees_with_the_definition(fast, seed, dtype, layout, alpha):
    x, weight = (inputs.rounded(values, dtype) for values in layer(seed))
    scale = inputs.rounded(smooth_quant.smoothing_scale(np.abs(x).max(0), np.abs(weight).max(0), alpha), "float32")
    rng = np.random.default_rng(seed)
    gain, bias = inputs.rounded(rng.standard_normal(40), dtype), inputs.rounded(rng.standard_normal(40), dtype)
    given = inputs.tensor(gain, dtype), inputs.tensor(bias, dtype), [rows(weight, dtype, layout), rows(x, dtype, layout)]
    new_gain, new_bias, folded = fast.fold(*given, inputs.tensor(scale, "float32"))
    assert {t.dtype for t in (new_gain, new_bias, *folded)} == {getattr(torch, dtype)}

    def flat(gain, bias, weight, x, scale):
        new_gain, new_bias, folded = smooth_quant.fold(gain, bias, [weight, x], scale)
        return new_gain, new_bias, *folded

    expected = bounded(flat, gain, bias, weight, x, scale, precision=Precision(dtype))
    for name, actual, each in zip(("gain", "bias", "weight", "second weight"), (new_gain, new_bias, *folded), expected, strict=True):
        agree(actual, each, name)


@given(shapes, inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts, st.sampled_from(["token", "tensor"]))
def test_codes_are_the_definitions_except_at_ties(fast, shape, regime, seed, dtype, layout, granularity):
    x = inputs.values(regime, [(shape[0], shape[2])], seed, dtype)[0]
    codes, scale = map(inputs.array, fast.quantize_activation(rows(x, dtype, layout), granularity))
    largest = np.abs(x).max(1, keepdims=True) if granularity == "token" else np.abs(x).max(keepdims=True)
    step = np.where(largest == 0, 1, largest / 127)
    assert scale.shape == step.shape and np.all(np.abs(scale - step) <= UNIT * step)
    expected = smooth_quant.quantize_activation(x, granularity, scale)[0]
    equal_except_at_ties(codes.astype(int), expected, x / scale, np.abs(x / scale))


@given(shapes, inputs.dtypes(), inputs.regimes, inputs.seeds, st.sampled_from(["token", "tensor"]), st.booleans())
@example((33, 70, 300), "float32", "normal", 0, "tensor", True)
def test_products_agree_within_the_bound(fast, shape, dtype, regime, seed, granularity, with_bias):
    t, n, k = shape
    x, weight, bias = inputs.values(regime, [(t, k), (n, k), (n,)], seed, "float32")
    bias = bias if with_bias else None
    (x_codes, x_scale), (codes, scale) = (smooth_quant.quantize_activation(values, granularity) for values in (x, weight))
    x_scale, scale = inputs.rounded(x_scale, "float32"), inputs.rounded(scale, "float32")
    given = rows(x_codes, "int8"), inputs.tensor(x_scale, "float32"), rows(codes, "int8"), inputs.tensor(scale, "float32")
    y = fast.matmul(*given, None if bias is None else inputs.tensor(bias, "float32"), dtype=getattr(torch, dtype))
    agree(y, bounded(smooth_quant.matmul, x_codes, x_scale, codes, scale, bias, precision=Precision(dtype)))


def test_a_scale_for_all_is_that_scale_for_each(fast):
    rng = np.random.default_rng(2)
    x_codes, codes = (inputs.tensor(rng.integers(-127, 128, (n, 140)), "int8") for n in (19, 37))
    one, other = inputs.tensor(np.full((1, 1), 0.3), "float32"), inputs.tensor(np.full((1, 1), 0.7), "float32")
    exactly(fast.matmul(x_codes, one, codes, other), fast_round.matmul_int8(x_codes, one.expand(19, 1), codes, other.expand(37, 1)))


X, K, ONE = torch.ones(3, 8), torch.ones(8), torch.ones(1, 1)
CODES, ROW = torch.ones(3, 8, dtype=torch.int8), torch.ones(3, 1)
TINY = torch.full((8,), 1e-5)

BAD = {
    "alpha beyond 1": ("alpha must be from 0 to 1", lambda f: f.smoothing_scale(K, K, 1.5)),
    "alpha NaN": ("alpha", lambda f: f.smoothing_scale(K, K, float("nan"))),
    "maxima of other channels": ("weight_max must have shape", lambda f: f.smoothing_scale(K, K[:7], 0.5)),
    "a negative maximum": ("act_max must be finite", lambda f: f.smoothing_scale(-K, K, 0.5)),
    "a lost maximum": ("weight_max must be finite", lambda f: f.smoothing_scale(K, K * float("inf"), 0.5)),
    "integers": ("act_max must have dtype", lambda f: f.smoothing_scale(K.int(), K, 0.5)),
    "weights of another width": (r"weights\[1\] must have shape", lambda f: f.fold(K, None, [X, X[:, :7]], K)),
    "bias of another width": ("scale must have shape|norm_bias must have shape", lambda f: f.fold(K, K[:3], [X], K)),
    "scale of 0": ("scale must be positive", lambda f: f.fold(K, None, [X], 0 * K)),
    "scale NaN": ("scale must be positive", lambda f: f.fold(K, None, [X], K * float("nan"))),
    "a norm that overflows": ("norm_weight must stay finite in torch.float16.*channel 0", lambda f: f.fold(K.half(), None, [X], TINY)),
    "a weight that overflows": (r"weights\[0\] must stay finite", lambda f: f.fold(K, None, [X.half()], 1e6 * K)),
    "granularity": ("granularity", lambda f: f.quantize_activation(X, "channel")),
    "x of integers": ("x must have dtype", lambda f: f.quantize_activation(CODES, "token")),
    "x of 3 axes": ("x must have shape", lambda f: f.quantize_activation(X[None], "token")),
    "x of columns": ("x must be contiguous", lambda f: f.quantize_activation(torch.ones(8, 3).T, "token")),
    "a scale per channel": ("scale must have shape", lambda f: f.quantize_activation(X, "token", ONE)),
    "product scale per channel": ("x_scale must have shape", lambda f: f.matmul(CODES, K[None], CODES, ROW)),
    "weight scale, wrong rows": (r"scale must have shape \(3, 1\)", lambda f: f.matmul(CODES, ROW, CODES, torch.ones(2, 1))),
    "codes unsigned": ("codes must have dtype int8", lambda f: f.matmul(CODES, ROW, CODES.byte(), ROW)),
    "widths differ": ("codes must have shape", lambda f: f.matmul(CODES, ROW, CODES[:, :7], ROW)),
    "bias": ("bias must have shape", lambda f: f.matmul(CODES, ROW, CODES, ROW, torch.ones(2))),
    "to integers": ("dtype must be", lambda f: f.matmul(CODES, ROW, CODES, ROW, dtype=torch.int32)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_told(fast, case):
    message, call = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_means_nothing():
    ones = np.ones(4)
    for call in (
        lambda: smooth_quant.smoothing_scale(ones, ones, -0.1),
        lambda: smooth_quant.smoothing_scale(-ones, ones, 0.5),
        lambda: smooth_quant.smoothing_scale(ones * np.nan, ones, 0.5),
        lambda: smooth_quant.quantize_activation(ones[None], "channel"),
    ):
        with pytest.raises(ValueError):
            call()


def test_everything_that_runs_in_inference_compiles_into_one_graph(fast):
    def program(x, weight, static):
        codes, scale = fast.quantize_activation(weight, "token")
        y = fast.matmul(*fast.quantize_activation(x, "token"), codes, scale)
        y = y + fast.matmul(*fast.quantize_activation(x, "tensor"), *fast.quantize_activation(weight, "tensor"))
        return y + fast.matmul(*fast.quantize_activation(x, "tensor", static), codes, scale)

    rng = np.random.default_rng(0)
    given = [inputs.tensor(rng.standard_normal(shape), "float32") for shape in ((2, 40), (3, 40))]
    static = inputs.tensor(np.full((1, 1), 0.03), "float32")
    exactly(torch.compile(program, fullgraph=True, backend="aot_eager")(*given, static), program(*given, static))
