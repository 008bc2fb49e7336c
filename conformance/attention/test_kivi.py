"""KIVI: what the cache holds is exact, on numbers for which every step and minimum is; so is which tokens are still whole."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, poison
from twofold.conformance.compare import exactly
from twofold.conformance.quantization.test_round_to_nearest_agreement import equal_except_at_ties, ratios
from twofold.spec.attention import dense, kivi
from twofold.spec.quantization import round_to_nearest

FORMATS = [(2, 2, 4), (4, 4, 4), (2, 4, 8), (3, 3, 6), (1, 2, 2), (4, 1, 1)]  # bits, group, residual
formats = st.sampled_from(FORMATS)
axes = st.sampled_from([0, 1])


def numbers(seed, n, width, bits, group, axis):
    """A matrix of quarters of steps, every group with its own step, minimum and maximum; and what remains of it after quantization."""
    rng, top = np.random.default_rng(seed), 2**bits - 1
    shape = (n, width) if axis == 1 else (width, n)
    place = np.arange(shape[1])[None] % group
    flip = rng.integers(0, 2, shape)[:, np.arange(shape[1]) // group * group]  # whether a group begins with its minimum
    ratio = np.where(place > 1, rng.integers(0, 4 * top + 1, shape) / 4, np.where(place == flip, 0, top))
    step = 2.0 ** rng.integers(-3, 4, shape)[:, np.arange(shape[1]) // group * group]
    zero = step * rng.integers(-8, 9, shape)[:, np.arange(shape[1]) // group * group]
    alone = np.arange(shape[1]) // group * group == shape[1] - 1  # a group of one number is that number
    kept = np.where(alone | (group == 1), ratio, np.rint(ratio))
    whole, quantized = zero + step * ratio, zero + step * kept
    return (whole, quantized) if axis == 1 else (whole.T, quantized.T)


def batch(seed, lengths, heads, d, dv, bits, group):
    """Keys and values `(B, T, heads, ·)`, and what remains of them: each request and head by itself."""
    longest = max(lengths, default=0)
    pairs = [[numbers(seed + 97 * b + 7 * h + axis, longest, (d, dv)[axis], bits, group, axis) for axis in (0, 1)]
             for b in range(len(lengths)) for h in range(heads)]  # fmt: skip
    spread = lambda axis, i: np.stack([pair[axis][i] for pair in pairs]).reshape(len(lengths), heads, longest, (d, dv)[axis]).swapaxes(1, 2)
    return spread(0, 0), spread(1, 0), spread(0, 1), spread(1, 1)


def seen(whole, quantized, n, first):
    """The first n tokens as a query sees them: quantized before `first`."""
    return np.where(np.arange(n)[:, None] < first, quantized[:n], whole[:n])


def expected_contents(k, v, k_hat, v_hat, n, residual):
    """Of one request and head."""
    return seen(k, k_hat, n, n - n % residual), seen(v, v_hat, n, n - residual)


@given(inputs.seeds, formats, st.integers(0, 20), st.lists(st.integers(0, 9), max_size=4))
@example(0, (2, 4, 8), 7, [1, 1, 8])
@example(0, (2, 4, 8), 8, [1])
@example(0, (2, 4, 8), 9, [])
def test_contents_depend_on_the_tokens_and_not_on_how_they_came_in(seed, form, prefill, pieces):
    bits, group, residual = form
    n = prefill + sum(pieces)
    k, v, k_hat, v_hat = (x[0, :, 0] for x in batch(seed, [n], 1, 3, 5, bits, group))
    cache, at = kivi.Cache(bits, group, residual), 0
    for piece in (prefill, *pieces):
        cache.prefill(k[at : at + piece], v[at : at + piece])
        at += piece
    for actual, expected in zip(cache.contents(), expected_contents(k, v, k_hat, v_hat, n, residual), strict=True):
        exactly(actual, expected, "contents")


@given(inputs.seeds, formats, st.integers(1, 20), axes)
@example(0, (2, 4, 8), 9, 1)
def test_half_a_step_extremes_and_a_second_quantization(fast, seed, form, n, axis):
    """No number moves by more than half its group's step, the least and greatest do not move, and quantizing again changes nothing."""
    bits, group, _ = form
    x, _ = numbers(seed, n, 5, bits, group, axis)
    codes, scale, zero = kivi.quantize(x, bits, group, axis)
    once = kivi.dequantize(codes, scale, zero, group, axis)
    step = np.repeat(scale, group, axis)[:n, :5]
    assert np.all(np.abs(x - once) <= step / 2)
    starts = np.arange(0, x.shape[axis], group)
    for extreme in (np.minimum, np.maximum):
        exactly(extreme.reduceat(once, starts, axis), extreme.reduceat(x, starts, axis), "extremes")
    for actual, expected in zip(kivi.quantize(once, bits, group, axis), (codes, scale, zero), strict=True):
        exactly(actual, expected, "second quantization")
    tensor = inputs.tensor(x[None, :, None], "float32")
    for actual, expected in zip(fast.quantize(tensor, bits, group, axis), (codes, scale, zero), strict=True):
        exactly(actual[0, :, 0], expected, "fast")
    exactly(fast.dequantize(*fast.quantize(tensor, bits, group, axis), group, axis)[0, :, 0], once, "fast, back")


widths, sizes = st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 3, 4, 32])


@given(inputs.seeds, widths, sizes, axes, inputs.regimes, inputs.dtypes(), inputs.layouts)
def test_codes_of_any_numbers_are_the_nearest(fast, seed, bits, group, axis, regime, dtype, layout):
    """Under the parameters as stored, wherever the quotient is no tie; the minimum is stored exactly."""
    (x,) = inputs.values(regime, [(2, 9, 3, 5)], seed, dtype)
    codes, scale, zero = map(inputs.array, fast.quantize(inputs.tensor(x, dtype, layout), bits, group, axis))
    last = lambda part: (part if axis == 1 else part.swapaxes(1, 3)).reshape(-1, part.shape[3 if axis == 1 else 1])
    weight, codes, scale, zero = map(last, (x, codes, scale, zero))
    expected = round_to_nearest.quantize(weight, scale, zero, bits, group, "min")
    equal_except_at_ties(codes.astype(int), expected, *ratios(weight, scale, zero, bits, group, "min"))
    exactly(zero, np.minimum.reduceat(weight, np.arange(0, weight.shape[1], group), 1), "minimum")


@given(inputs.seeds, formats, st.lists(st.integers(0, 17), min_size=1, max_size=3), st.integers(0, 3), inputs.dtypes(), st.booleans())
@example(0, (2, 4, 8), [7, 8, 9], 1, "float32", True)
@example(1, (2, 2, 4), [0, 16, 15], 9, "bfloat16", False)
@example(2, (8, 4, 4), [3, 17], 0, "float32", False)
def test_each_request_holds_its_own_tokens(fast, seed, form, lengths, more, dtype, streamed):
    """Ragged requests, in two goes or one token at a time: the contents of each, exactly. What lies behind a request's end is poison."""
    bits, group, residual = form
    total = [n + more for n in lengths]
    k, v, k_hat, v_hat = batch(seed, total, 2, 3, 5, bits, group)
    k_in, v_in = (padded(x, lengths, 0, max(lengths), dtype) for x in (k, v))
    cache = fast.Cache(bits, group, residual)
    with poison.poisoned_empty():
        cache.prefill(k_in, v_in, lengths=lengths)
        rest = [[padded(x, [1] * len(lengths), np.add(lengths, i), 1, dtype) for x in (k, v)] for i in range(more)]
        if streamed:
            for k_in, v_in in rest:
                cache.append(k_in, k_in, v_in)
        elif rest:
            cache.prefill(*(torch.cat(parts, 1) for parts in zip(*rest)))
        contents = [inputs.array(x) for x in cache.contents()]
    for b, n in enumerate(total):
        for h in range(2):
            expected = expected_contents(*(x[b, :, h] for x in (k, v, k_hat, v_hat)), n, residual)
            for name, actual, right in zip(("keys", "values"), contents, expected, strict=True):
                exactly(actual[b, :n, h], right, f"{name} of request {b}, head {h}")
                exactly(actual[b, n:, h], np.zeros_like(actual[b, n:, h]), "behind the end")


def padded(x, counts, starts, longest, dtype):
    """Tokens starts[b] … starts[b] + counts[b] of each request, and poison up to the longest."""
    rows = np.full((len(counts), longest, *x.shape[2:]), np.nan)
    for b, (count, start) in enumerate(zip(counts, np.broadcast_to(starts, len(counts)), strict=True)):
        rows[b, :count] = x[b, start : start + count]
    return inputs.tensor(rows, dtype)


def test_a_window_that_is_never_full_leaves_dense_attention():
    q, k, v = inputs.values("normal", [(3, 8), (40, 8), (40, 5)], 0)
    cache = kivi.Cache(2, 8, 64)
    cache.prefill(k[:39], v[:39])
    for actual, expected in zip(cache.append(q, k[39:], v[39:]), dense.attention(q, k, v), strict=True):
        exactly(actual, expected)
    for actual, expected in zip(cache.attend(q), dense.attention(q, k, v), strict=True):
        exactly(actual, expected)


def test_numbers_next_to_zero_keep_a_step():
    """The narrowest groups that a format holds, and constant ones: no division by zero, no NaN, the extremes stay."""
    x = np.array([[0.0, 5e-324, 3e-320, 1e-310], [7.0, 7.0, 7.0, 7.0], [-0.0, 0.0, 0.0, -0.0]])
    once = kivi.dequantize(*kivi.quantize(x, 2, 4, 1), 4, 1)
    exactly(once[1:], x[1:], "constant groups")
    assert np.all(np.isfinite(once)) and once[0, 0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_step_that_storage_would_lose_is_its_smallest(fast, dtype):
    tiny = torch.finfo(getattr(torch, dtype)).smallest_normal
    x = inputs.tensor(np.array([0, tiny / 2, tiny, 0.0])[None, None, None], dtype)
    codes, scale, zero = fast.quantize(x, 8, 4, 1)
    assert torch.isfinite(scale).all() and (scale > 0).all() and torch.isfinite(fast.dequantize(codes, scale, zero, 4, 1)).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_codes_are_packed(fast, bits):
    """No token of a long request costs more than its codes and its share of the parameters."""
    cache, (b, n, heads, d) = fast.Cache(bits, 8, 8), (2, 16, 3, 40)
    x = inputs.tensor(np.zeros((b, n, heads, d)), "float32")
    cache.prefill(x, x)
    for store in (cache.keys, cache.values):
        assert store.words.numel() * 4 == b * n * heads * -(-d * bits // 32) * 4
        assert store.scale.numel() == store.zero.numel() == b * n * heads * d // 8
    assert cache.recent_k.shape == cache.recent_v.shape == (b, 9, heads, d)
