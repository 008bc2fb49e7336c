"""Low-bit weights under full-precision activations: exact inputs first, where every order of summation gives the same bits."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.quantization.test_round_to_nearest import GRIDS, grids, spread
from twofold.conformance.quantization.test_round_to_nearest_agreement import rows
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.kernels import low_bit_matmul
from twofold.fast.number_formats import bit_packing
from twofold.spec.quantization import round_to_nearest

tokens, channels = st.sampled_from([1, 2, 17]), st.sampled_from([1, 3, 65])
columns, sizes = st.sampled_from([1, 31, 64, 65, 130]), st.sampled_from([1, 16, 20, 32, 64, 100, None])
widths = st.sampled_from([2, 3, 4, 8])


def exact_case(t, n, k, bits, size, grid, seed):
    """Small integers, and a scale that differs between neighboring groups and rows, so that no wrong index can hide."""
    rng = np.random.default_rng(seed)
    groups = -(-k // (size or k))
    exponent = (5 * np.arange(groups)[None] + 3 * np.arange(n)[:, None]) % 8 - 4
    x, scale = rng.integers(-3, 4, (t, k)), 2.0**exponent
    if grid == "absmax":
        codes, zero = rng.integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (n, k)), np.zeros((n, groups), int)
    else:
        codes, zero = rng.integers(0, 2**bits, (n, k)), rng.integers(0, 2**bits, (n, groups))
        zero = np.full((n, groups), 2 ** (bits - 1)) if grid == "full" else zero
    integers = (codes - spread(zero, size, k)) << spread(exponent + 4, size, k)              # the weight in units of 1/16
    assert np.max(np.abs(x) @ np.abs(integers).T) < 2**24
    told = zero.astype(float)
    if grid in ("min", "centred"):
        told = round_to_nearest.convert(scale, told, bits, "zero_point", grid)[1]
    return x, codes, scale, told, x @ integers.T / 16, integers / 16


def carried(codes, scale, zero, grid, bits, packed, parameters="float32"):
    there = rows(codes, "int8" if grid == "absmax" else "uint8")
    there = bit_packing.pack(there, bits) if packed else there
    return there, rows(scale, parameters), rows(zero, parameters)


@given(tokens, channels, columns, sizes, widths, grids, inputs.dtypes(), st.booleans(), inputs.seeds)
@example(1, 65, 130, 32, 4, "full", "float16", True, 0)
@example(17, 65, 130, 20, 4, "zero_point", "float32", True, 0)
@example(2, 3, 130, 64, 3, "zero_point", "bfloat16", True, 0)
@example(2, 65, 130, 16, 4, "zero_point", "float32", False, 0)
@example(17, 3, 65, None, 4, "absmax", "float32", False, 0)
@example(2, 3, 130, 32, 4, "min", "float32", False, 0)
@example(1, 3, 530, 64, 2, "float_zero", "float32", True, 0)  # K is split over programs
def test_exact_inputs_give_exact_outputs(fast, t, n, k, size, bits, grid, dtype, packed, seed):
    x, codes, scale, zero, expected, _ = exact_case(t, n, k, bits, size, grid, seed)
    packed = packed and grid != "absmax"
    y = fast.matmul(rows(x, dtype), *carried(codes, scale, zero, grid, bits, packed), bits, size, grid, packed=packed)
    exactly(y, inputs.rounded(expected, dtype))
    exactly(round_to_nearest.matmul(x, codes, scale, zero, bits, size, grid), expected, "spec")


TILES = [  # T x N outputs, K at a time, splits of K; for groups of which a tile is a part, the whole, several, or neither
    (16, 64, 16, 1, 4, 32, "zero_point"),
    (16, 32, 64, 2, 3, 64, "centred"),
    (32, 64, 64, 3, 2, 24, "float_zero"),
    (64, 128, 128, 1, 4, 16, "full"),
    (16, 16, 128, 1, 8, None, "full"),
]


@pytest.mark.parametrize("t, n, k, splits, bits, size, grid", TILES)
def test_exact_outputs_do_not_depend_on_the_tile(fast, monkeypatch, t, n, k, splits, bits, size, grid):
    monkeypatch.setattr(low_bit_matmul, "tile_low_bit", lambda *shape: low_bit_matmul.Tile(t, n, k, splits))
    x, codes, scale, zero, expected, _ = exact_case(18, 33, 150, bits, size, grid, 0)
    y = fast.matmul(rows(x, "float16"), *carried(codes, scale, zero, grid, bits, True), bits, size, grid, packed=True)
    exactly(y, inputs.rounded(expected, "float16"))


@given(columns, channels, sizes, widths, st.sampled_from(GRIDS[:3]), inputs.dtypes(), inputs.seeds)
def test_identity_reads_out_the_dequantized_weight(fast, k, n, size, bits, grid, dtype, seed):
    rng = np.random.default_rng(seed)
    _, codes, scale, zero, _, _ = exact_case(1, n, min(k, 65), bits, size, grid, seed)
    scale = inputs.rounded(rng.uniform(0.01, 1, scale.shape), "float16")
    weight = round_to_nearest.dequantize(codes, scale, zero, bits, size, grid)
    y = fast.matmul(rows(np.eye(codes.shape[1]), dtype), *carried(codes, scale, zero, grid, bits, False, "float16"), bits, size, grid)
    exactly(y, inputs.rounded(weight.T, dtype), "dequantized weight")


@given(tokens, channels, columns, sizes, widths, grids, inputs.dtypes(), inputs.regimes, inputs.seeds)
@example(17, 65, 130, 32, 4, "zero_point", "float32", "normal", 0)
@example(17, 65, 130, 20, 4, "min", "bfloat16", "normal", 0)
@example(2, 3, 130, 64, 4, "float_zero", "float16", "normal", 0)
def test_random_inputs_agree_within_the_bound(fast, t, n, k, size, bits, grid, dtype, regime, seed):
    x, weight = inputs.values(regime, [(t, k), (n, k)], seed, dtype)
    codes, scale, zero = round_to_nearest.encode(weight, bits, size, grid)
    scale, zero = inputs.rounded(scale, "float32"), inputs.rounded(zero, "float32")
    y = fast.matmul(rows(x, dtype), *carried(codes, scale, zero, grid, bits, False), bits, size, grid)
    expected = bounded(round_to_nearest.matmul, x, codes, scale, zero, bits, size, grid, precision=Precision(dtype))
    agree(y, expected, independent=regime == "normal")


@given(tokens, st.sampled_from([1, 3]), columns, sizes, grids, st.booleans(), inputs.seeds)
def test_gradient_is_exact_too(fast, t, n, k, size, grid, packed, seed):
    x, codes, scale, zero, _, weight = exact_case(t, n, k, 4, size, grid, seed)
    packed = packed and grid != "absmax"
    x = rows(x, "float32").requires_grad_()
    dy = np.random.default_rng(seed).integers(-3, 4, (t, n))
    fast.matmul(x, *carried(codes, scale, zero, grid, 4, packed), 4, size, grid, packed=packed).backward(inputs.tensor(dy, "float32"))
    exactly(x.grad, dy @ weight, "gradient of x")


@pytest.mark.parametrize("t, n, k", [(0, 3, 8), (2, 0, 8), (2, 3, 0)])
def test_empty_sizes(fast, t, n, k):
    groups = -(-k // 4)
    y = fast.matmul(
        torch.ones(t, k), torch.ones(n, k, dtype=torch.uint8), torch.ones(n, groups), torch.zeros(n, groups), 4, 4, "zero_point"
    )
    exactly(y, np.zeros((t, n)))


def test_inputs_stay_and_two_runs_are_bit_equal(fast):
    x, codes, scale, zero, _, _ = exact_case(3, 5, 530, 2, 64, "zero_point", 0)
    given = rows(x + 0.1, "float32"), *carried(codes, scale * 1.1, zero, "zero_point", 2, True)
    kept = [tensor.clone() for tensor in given]
    first = fast.matmul(*given, 2, 64, "zero_point", packed=True)
    exactly(fast.matmul(*given, 2, 64, "zero_point", packed=True), first, "second run")
    for tensor, before in zip(given, kept):
        exactly(tensor, before, "input")


def test_one_scale_per_tensor_may_be_expanded(fast):
    x, codes, _, _, _, _ = exact_case(2, 5, 33, 4, None, "absmax", 0)
    one, none = inputs.tensor(np.array([[0.25]]), "float32").expand(5, 1), inputs.tensor(np.zeros((1, 1)), "float32").expand(5, 1)
    exactly(fast.matmul(rows(x, "float32"), rows(codes, "int8"), one, none, 4, None, "absmax"), x @ codes.T / 4)
