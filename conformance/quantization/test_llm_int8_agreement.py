"""LLM.int8() on random data within the derived bound, on every tile; what released code does otherwise; wrong arguments; one graph."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.quantization.test_llm_int8 import UNIT, Arrays, on_the_grid, options, shapes
from twofold.conformance.quantization.test_round_to_nearest_agreement import equal_except_at_ties, rows
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.kernels import int8_matmul
from twofold.spec.quantization import llm_int8, round_to_nearest


def quantized(values, exclude=None):
    """Codes and float32 scales by the definition."""
    codes, scale = llm_int8.quantize(values, exclude)
    return codes, inputs.rounded(scale, "float32")


@given(shapes, inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts, st.sampled_from([0.0, 1.5, 3.0]), options)
@example((33, 70, 300), "normal", 0, "float32", "sliced", 0.5, "dequantized")  # more outliers than are loaded together
@example((17, 5, 130), "normal", 0, "bfloat16", "sliced", 2.0, "weight")
def test_both_sums_agree_within_the_bound(fast, shape, regime, seed, dtype, layout, threshold, option):
    t, n, k = shape
    x, weight, bias = inputs.values(regime, [(t, k), (n, k), (n,)], seed, dtype)
    columns = llm_int8.outlier_columns(x, threshold)
    (x_codes, x_scale), (codes, scale) = quantized(x, columns), quantized(weight)
    kept = weight if option == "weight" else None
    y = fast.matmul_decomposed(
        rows(x, dtype, layout), inputs.tensor(columns), rows(x_codes, "int8", layout), rows(x_scale, "float32", layout),
        rows(codes, "int8", layout), rows(scale, "float32", layout), None if kept is None else rows(kept, dtype, layout),
        inputs.tensor(bias, dtype),
    )  # fmt: skip
    assert y.dtype == getattr(torch, dtype)
    expected = bounded(llm_int8.matmul_decomposed, x, columns, x_codes, x_scale, codes, scale, kept, bias, precision=Precision(dtype))
    agree(y, expected)


@given(shapes, inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts, st.sampled_from([None, 0.5, 2.0]))
def test_codes_are_the_definitions_except_at_ties(fast, shape, regime, seed, dtype, layout, threshold):
    x = inputs.values(regime, [(shape[0], shape[2])], seed, dtype)[0]
    exclude = None if threshold is None else llm_int8.outlier_columns(x, threshold)
    codes, scale = map(inputs.array, fast.quantize(rows(x, dtype, layout), None if exclude is None else inputs.tensor(exclude)))
    expected, step = llm_int8.quantize(x, exclude)
    assert np.all(np.abs(scale - step) <= UNIT * step)
    ratio = (x if exclude is None else np.where(exclude, 0, x)) / scale
    equal_except_at_ties(codes.astype(int), np.clip(np.rint(ratio), -127, 127), ratio, np.abs(ratio))


@pytest.mark.parametrize("t, n, k", [(16, 16, 32), (32, 64, 64), (64, 128, 256)])
@pytest.mark.parametrize("gathered", [16, 64])
def test_exact_outputs_do_not_depend_on_the_tile(fast, monkeypatch, t, n, k, gathered):
    monkeypatch.setattr(int8_matmul, "tile", lambda *shape: int8_matmul.Tile(t, n, k))
    monkeypatch.setattr(int8_matmul, "GATHERED", gathered)
    x, weight, threshold, _ = on_the_grid((33, 17, 150), 3, outliers=70)
    for option in ("weight", "dequantized"):
        exactly(Arrays(fast).matmul(x, weight, threshold, option), x @ weight.T)


@given(inputs.seeds)
def test_released_scales_count_values_of_outlier_columns(fast, seed):
    """The ledger's first row: the largest ordinary value of a token may stand in an outlier column, where it is not coded."""
    x = inputs.rounded(np.random.default_rng(seed).uniform(-4, 4, (50, 64)), "float32")
    x[:, 3], x[::2, 3], x[7, 3] = 0, 5.5, 9
    columns = llm_int8.outlier_columns(x, 6.0)
    codes, scale = llm_int8.quantize(x, columns)
    released_codes, released_scale = llm_int8.quantize_as_released(x, 6.0)
    exactly(released_scale[::2], np.full((25, 1), 5.5 / 127), "scales of tokens with 5.5 in column 3")
    assert np.all(scale[::2] <= 4 / 127) and np.all(np.abs(released_codes[::2]).max(1) < 127)  # codes that nobody can have
    exactly(released_scale[1::2], scale[1::2], "scales of the others")
    exactly(released_codes[1::2], codes[1::2], "codes of the others")
    ours = fast.quantize(inputs.tensor(x, "float32"), inputs.tensor(columns))[1]
    exactly(ours, inputs.rounded(scale, "float32"), "fast, which follows the paper")


@given(inputs.seeds)
def test_dequantized_outliers_lose_what_the_codes_lost(fast, seed):
    """The ledger's second row: both options differ by the outliers times the rounding of the weight, and by nothing else."""
    rng = np.random.default_rng(seed)
    x, weight = rng.integers(-3, 4, (9, 40)) + 0.0, rng.integers(-2048, 2048, (6, 40)) * 2.0**-9
    weight[:, 0], x[2, 5] = 127 / 16, 64  # steps of 1/16 on a grid of 1/512
    lost = weight - round_to_nearest.dequantize(*round_to_nearest.encode(weight, 8, None, "absmax"), 8, None, "absmax")
    for side in (llm_int8, Arrays(fast)):
        columns = side.outlier_columns(x, 6.0)
        given = x, columns, np.zeros((9, 40), int), np.ones((9, 1)), *side.quantize(weight)
        exact, rounded = side.matmul_decomposed(*given, weight), side.matmul_decomposed(*given, None)
        exactly(exact - rounded, x[:, columns] @ lost[:, columns].T)
        assert np.any(exact != rounded)


X, W = torch.ones(3, 8), torch.ones(2, 8)
NONE, MANY = torch.zeros(8, dtype=torch.bool), torch.zeros(1, 131072)
CODES, ROW = torch.ones(3, 8, dtype=torch.int8), torch.ones(3, 1)
W_CODES, W_ROW = torch.ones(2, 8, dtype=torch.int8), torch.ones(2, 1)
GIVEN = {"x": X, "columns": NONE, "x_codes": CODES, "x_scale": ROW, "codes": W_CODES, "scale": W_ROW}
LONG = {"x": MANY, "columns": MANY[0].bool(), "x_codes": MANY.char(), "x_scale": ROW[:1], "codes": MANY.char(), "scale": ROW[:1]}

BAD = {
    "threshold below 0": ("threshold must not be negative", lambda f: f.matmul(X, W, -1.0)),
    "threshold NaN": ("threshold must not be negative or NaN", lambda f: f.outlier_columns(X, float("nan"))),
    "option": ("outliers must be 'weight' or 'dequantized'", lambda f: f.matmul(X, W, 6.0, "int8")),
    "widths differ": ("weight must have shape", lambda f: f.matmul(X, W[:, :7], 6.0)),
    "weight of another dtype": ("weight must have the dtype of x", lambda f: f.matmul(X.half(), W, 6.0)),
    "x of integers": ("x must have dtype", lambda f: f.matmul(CODES, W_CODES, 6.0)),
    "x of columns": ("x must be contiguous", lambda f: f.matmul(torch.ones(8, 3).T, W, 6.0)),
    "bias": ("bias must have shape", lambda f: f.matmul(X, W, 6.0, "weight", torch.ones(3))),
    "exclude of numbers": ("exclude must have dtype bool", lambda f: f.quantize(X, X[0])),
    "exclude per token": ("exclude must have shape", lambda f: f.quantize(X, X > 0)),
    "columns of another width": ("columns must have shape", lambda f: f.matmul_decomposed(**GIVEN | {"columns": NONE[:7]})),
    "columns as indices": ("columns must have dtype bool", lambda f: f.matmul_decomposed(**GIVEN | {"columns": NONE.long()})),
    "codes unsigned": ("x_codes must have dtype int8", lambda f: f.matmul_decomposed(**GIVEN | {"x_codes": CODES.byte()})),
    "a scale per column": ("scale must have shape", lambda f: f.matmul_decomposed(**GIVEN | {"scale": W})),
    "weight, decomposed": ("weight must have shape", lambda f: f.matmul_decomposed(**GIVEN, weight=W[:1])),
    "codes of columns": ("codes must be contiguous", lambda f: f.matmul_decomposed(**GIVEN | {"codes": W_CODES.T.contiguous().T})),
    "too long": ("131071", lambda f: f.matmul_decomposed(**LONG)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_told(fast, case):
    message, call = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


@pytest.mark.parametrize("threshold", [-1.0, np.nan])
def test_the_spec_refuses_what_means_nothing(threshold):
    with pytest.raises(ValueError, match="threshold"):
        llm_int8.outlier_columns(np.ones((2, 3)), threshold)
    with pytest.raises(ValueError, match="outliers"):
        llm_int8.matmul(np.ones((2, 3)), np.ones((2, 3)), 6.0, "int8")


def test_the_operator_is_registered_and_everything_compiles_into_one_graph(fast):
    rng = np.random.default_rng(0)
    x, weight = (inputs.tensor(rng.standard_normal((t, 40)), "float32") for t in (2, 3))
    columns = fast.outlier_columns(x, 1.5)
    (x_codes, x_scale), (codes, scale) = fast.quantize(x, columns), fast.quantize(weight)
    for kept in (weight, None):
        given = x_codes, x_scale, codes, scale, None, torch.float32, x, columns, kept
        torch.library.opcheck(torch.ops.twofold.int8_matmul, given)
    program = lambda x, weight: fast.matmul(x, weight, 1.5) + fast.matmul(x, weight, 1.5, "dequantized")
    exactly(torch.compile(program, fullgraph=True, backend="aot_eager")(x, weight), program(x, weight))


def test_a_launch_reads_how_many_outliers_there_are_from_the_device(fast):
    """The number of outlier columns is data: meta tensors, which hold none, go through all of it."""
    x, weight = torch.empty(3, 40, device="meta", dtype=torch.float16), torch.empty(5, 40, device="meta", dtype=torch.float16)
    y = fast.matmul(x, weight, 6.0)
    assert y.shape == (3, 5) and y.dtype == torch.float16
