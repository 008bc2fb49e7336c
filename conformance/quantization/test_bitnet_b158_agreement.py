"""BitNet b1.58 on random data: codes but for ties, outputs and gradients within the derived bound; wrong arguments; one graph."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.quantization.test_bitnet_b158 import shapes
from twofold.conformance.quantization.test_round_to_nearest_agreement import equal_except_at_ties, rows
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.quantization import smooth_quant
from twofold.spec.quantization import bitnet_b158, round_to_nearest

UNIT = 2.0**-24


def away_from_ties(ratio):
    """Whether float32 rounds the ratio as float64 does, whatever rounding it went through."""
    return np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) > 8 * UNIT * np.abs(ratio)


def untied(x, weight):
    """The same data, what is coded next to a tie set to 0; where that moves the weight's mean onto another tie, there is no example."""
    x = np.where(away_from_ties(x / bitnet_b158.quantize_activation(x)[1]), x, 0)
    weight = np.where(away_from_ties(weight / (np.abs(weight).mean() + 1e-5)), weight, 0)
    assume(np.all(away_from_ties(weight / (np.abs(weight).mean() + 1e-5))))
    return x, weight


@given(shapes, inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts)
@example((17, 5, 130), "spiked", 0, "bfloat16", "sliced")
def test_codes_are_the_definitions_except_at_ties(fast, shape, regime, seed, dtype, layout):
    x, weight = inputs.values(regime, [(shape[0], shape[2]), shape[1:]], seed, dtype)
    codes, scale = map(inputs.array, fast.quantize_activation(rows(x, dtype, layout)))
    step = bitnet_b158.quantize_activation(x)[1]
    assert np.all(np.abs(scale - step) <= 2 * UNIT * step)  # epsilon is rounded, too
    equal_except_at_ties(codes.astype(int), np.clip(np.rint(x / scale), -127, 127), x / scale, np.abs(x / scale), "activations")
    codes, gamma = map(inputs.array, fast.ternarize(rows(weight, dtype, layout)))
    expected, mean = bitnet_b158.ternarize(weight)
    assert np.all(np.abs(gamma - mean) <= UNIT * (1 + 2.0**-20) * mean + 2.0**-149)
    ratio = weight / (mean + 1e-5)
    equal_except_at_ties(codes.astype(int), expected, ratio, np.abs(ratio), "weight")


@given(shapes, inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts)
@example((33, 70, 300), "normal", 0, "float32", "sliced")
def test_outputs_and_gradients_agree_within_the_bound(fast, shape, regime, seed, dtype, layout):
    t, n, k = shape
    x, weight, dy = inputs.values(regime, [(t, k), (n, k), (t, n)], seed, dtype)
    x, weight = untied(x, weight)
    given = [rows(values, dtype, layout).detach().requires_grad_() for values in (x, weight)]
    y = fast.linear(*given)
    y.backward(rows(dy, dtype, layout))
    assert y.dtype == given[0].grad.dtype == given[1].grad.dtype == getattr(torch, dtype)
    (x_codes, scale), (codes, gamma) = bitnet_b158.quantize_activation(x), bitnet_b158.ternarize(weight)
    precision = Precision(dtype, operand="float32")

    def product(largest, mean):
        return bitnet_b158.matmul(x_codes, codes) * (largest / 127 * (mean * 1.0))  # both scales are rounded once before they meet

    agree(y, bounded(product, scale * 127, gamma, precision=precision), "y")
    agree(given[0].grad, bounded(lambda dy, mean: dy @ (codes * (mean * 1.0)), dy, gamma, precision=precision), "dx")
    agree(given[1].grad, bounded(lambda dy, largest: dy.T @ (x_codes * (largest / 127)), dy, scale * 127, precision=precision), "dweight")
    dx, dweight = bitnet_b158.linear_backward(x, weight, dy)
    exactly(dx, dy @ (codes * gamma), "the definition's dx")
    exactly(dweight, dy.T @ (x_codes * scale), "the definition's dweight")


def test_kept_codes_give_the_same_layer(fast):
    x, weight = (inputs.tensor(values, "bfloat16") for values in inputs.values("normal", [(19, 140), (37, 140)], 5, "bfloat16"))
    kept = smooth_quant.matmul(*fast.quantize_activation(x), *fast.ternarize(weight), dtype=torch.bfloat16)
    exactly(fast.linear(x, weight), kept)


def test_activations_are_round_to_nearests(fast):
    """Above epsilon the grid is `absmax` of 8 bits, one group per token."""
    x = inputs.values("normal", [(9, 70)], 5, "float32")[0]
    codes, scale, _ = round_to_nearest.encode(x, 8, None, "absmax")
    exactly(bitnet_b158.quantize_activation(x)[0], codes, "codes")
    exactly(bitnet_b158.quantize_activation(x)[1], scale, "scale")


X, W = torch.ones(3, 8), torch.ones(2, 8)
CODES, W_CODES = torch.ones(3, 8, dtype=torch.int8), torch.ones(2, 8, dtype=torch.int8)
MANY = torch.zeros(1, 131072)

BAD = {
    "widths differ": ("weight must have shape", lambda f: f.linear(X, W[:, :7])),
    "dtypes differ": ("weight must have the dtype of x", lambda f: f.linear(X, W.half())),
    "x of integers": ("x must have dtype", lambda f: f.linear(CODES, W_CODES)),
    "x of 3 axes": ("x must have shape", lambda f: f.linear(X[None], W)),
    "x of columns": ("x must be contiguous", lambda f: f.linear(torch.ones(8, 3).T, W)),
    "weight of columns": ("weight must be contiguous", lambda f: f.linear(X, torch.ones(8, 2).T)),
    "too long": ("x must have at most 131071", lambda f: f.linear(MANY, MANY)),
    "weight of integers": ("weight must have dtype", lambda f: f.ternarize(W_CODES)),
    "weight of one axis": ("weight must have shape", lambda f: f.ternarize(W[0])),
    "epsilon below 0": ("epsilon", lambda f: f.ternarize(W, -1e-5)),
    "epsilon NaN": ("epsilon", lambda f: f.ternarize(W, float("nan"))),
    "activations of integers": ("x must have dtype", lambda f: f.quantize_activation(CODES)),
    "activations of columns": ("x must be contiguous", lambda f: f.quantize_activation(torch.ones(8, 3).T)),
    "codes unsigned": ("codes must have dtype int8", lambda f: f.matmul(CODES, W_CODES.byte())),
    "codes of another width": ("codes must have shape", lambda f: f.matmul(CODES, W_CODES[:, :7])),
    "codes too long": ("x_codes must have at most 131071", lambda f: f.matmul(MANY.char(), MANY.char())),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_told(fast, case):
    message, call = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_operator_is_registered_and_everything_compiles_into_one_graph(fast):
    rng = np.random.default_rng(0)
    x, weight = (inputs.tensor(rng.standard_normal((t, 40)), "float32") for t in (2, 3))
    given = x.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.library.opcheck(torch.ops.twofold.bitnet_b158_linear, given)

    def program(x, weight):
        return fast.linear(x, weight) + fast.matmul(fast.quantize_activation(x)[0], fast.ternarize(weight)[0])

    exactly(torch.compile(program, fullgraph=True, backend="aot_eager")(x, weight), program(x, weight))
