"""SageAttention: codes are discrete and exact, smoothing is an identity, and what is left is the rounding of one softmax."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention.problems import HEADS, WIDTHS, WINDOWS, visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, sage

exact64 = Precision("float64", "float64")
lengths = st.sampled_from([0, 1, 31, 32, 33, 70])
windows = st.sampled_from(WINDOWS)


def problem(seed, regime, heads, widths, t_q, t_k, dtype):
    (h, h_kv), (d, dv) = heads, widths
    return inputs.values(regime, [(1, t_q, h, d), (1, t_k, h_kv, d), (1, t_k, h_kv, dv)], seed, dtype)


def error_of_scores(q, k, q_scale, k_scale, k_codes, scale):
    """Half a step of each code, met by what the other side holds `(Nq, Nk)`; scales are per row."""
    keys = k_scale * np.abs(k_codes).sum(1)  # (Nk,)
    return scale / 2 * (np.outer(q_scale, keys) + np.outer(np.abs(q).sum(1), k_scale))


@given(inputs.seeds, lengths, lengths, st.sampled_from([1, 7, 32, 100]), st.booleans(), st.sampled_from([0, 50]))
def test_error_stays_within_half_a_step_of_each_code(seed, t_q, t_k, rows, causal, mean):
    """|δs| ≤ ε, hence |δL| ≤ ε and |δo| ≤ tanh(ε/2) times the range of the values; a common mean of the keys costs nothing."""
    q, k, v = inputs.values("normal", [(t_q, 24), (t_k, 24), (t_k, 5)], seed)
    k = k + mean
    mask = visible(t_q, t_k, causal)
    o, lse = sage.forward(q, k, v, block_q=rows, block_k=rows, mask=mask)
    expected = dense.attention(q, k, v, mask=mask)
    centered, _ = sage.smooth_k(k)
    (_, q_scale), (k_codes, k_scale) = sage.quantize(q, rows), sage.quantize(centered, rows)
    q_scale, k_scale = np.repeat(q_scale, rows)[:t_q], np.repeat(k_scale, rows)[:t_k]
    errors = error_of_scores(q, centered, q_scale, k_scale, k_codes, 24**-0.5)
    epsilon = np.max(np.where(mask, errors, 0), axis=1, initial=0) + 2.0**-40
    some = mask.any(1)
    assert np.all(np.abs(lse[some] - expected[1][some]) <= epsilon[some]) and np.all(lse[~some] == -np.inf)
    spread = np.ptp(v, axis=0) if t_k else np.zeros(5)
    assert np.all(np.abs(o - expected[0]) <= np.tanh(epsilon / 2)[:, None] * spread + 2.0**-40)


@given(inputs.seeds, st.sampled_from([1, 2, 9, 33]))
def test_smoothing_is_an_identity_without_codes(seed, t_k):
    """The softmax does not see the mean, and the log-sum-exp gets it back. Integers with an integer mean: nothing is rounded before exp."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.integers(-3, 4, (5, 8)).astype(float), rng.integers(-9, 10, (t_k, 8)).astype(float), rng.standard_normal((t_k, 3))
    k[-1] -= k.sum(0) % t_k
    centered, mean = sage.smooth_k(k)
    exactly(mean, np.rint(mean), "mean")
    o, lse = dense.attention(q, centered, v, scale=0.25)
    expected = bounded(dense.attention, q, k, v, precision=exact64, scale=0.25)
    agree(o, expected[0], "output")
    agree(lse + 0.25 * (q @ mean), expected[1], "log-sum-exp")


@given(inputs.seeds, inputs.regimes, inputs.dtypes(), st.sampled_from([0, 1, 31, 33, 70]), st.sampled_from([1, 7, 32]))
@example(0, "ties", "bfloat16", 33, 32)
def test_codes_are_those_of_the_definition(fast, seed, regime, dtype, t, rows):
    """All of them, ties included: a block's largest number and each of its numbers have few digits, so that one division tells."""
    (x,) = inputs.values(regime, [(2, t, 2, 33)], seed, "float16" if dtype == "float16" else "bfloat16")
    codes, scale = fast.quantize(inputs.tensor(x, dtype), rows)
    assert codes.dtype == torch.int8
    for b, h in ((0, 0), (1, 1)):
        expected = sage.quantize(x[b, :, h], rows)
        exactly(codes[b, :, h], expected[0], "codes")
        exactly(scale[b, h], expected[1].astype(np.float32), "scale")


def test_ties_go_to_the_even_code(fast):
    x = np.array([127, 0.5, 1.5, 2.5, -2.5, -62.5, 63.5, 100.25])[None, :, None, None] * np.ones((1, 8, 1, 1)) * 2.0**-3
    codes, scale = fast.quantize(inputs.tensor(x, "bfloat16"), 8)
    exactly(codes.flatten(), np.array([127, 0, 2, 2, -2, -62, 64, 100]), "codes")
    exactly(scale.flatten(), np.array([2.0**-3]), "scale")


@given(inputs.seeds, inputs.regimes, st.sampled_from([0, 1, 33, 70]), inputs.dtypes())
def test_smoothed_keys(fast, seed, regime, t, dtype):
    (k,) = inputs.values(regime, [(2, t, 2, 16)], seed, dtype)
    centered, mean = fast.smooth_k(inputs.tensor(k, dtype))
    expected = bounded(sage.smooth_k, k[1, :, 0], precision=Precision(dtype), outputs="float32")
    agree(centered[1, :, 0], expected[0], "keys")
    agree(mean[1, 0], expected[1], "mean")


def rows_of(scale, rows, n):
    return np.repeat(inputs.array(scale), rows)[:n]


@given(
    inputs.seeds, inputs.regimes, inputs.dtypes(), st.sampled_from(HEADS), st.sampled_from(WIDTHS), lengths, lengths,
    st.booleans(), windows, st.booleans(), st.sampled_from([(128, 64), (32, 32), (20, 32)]),
)  # fmt: skip
@example(0, "normal", "float32", (4, 2), (33, 16), 33, 70, True, None, True, (20, 32))
@example(1, "normal", "bfloat16", (2, 1), (8, 24), 70, 70, False, (20, 17), False, (32, 32))
def test_forward_agrees_with_the_definition_on_the_same_codes(
    fast, seed, regime, dtype, heads, widths, t_q, t_k, causal, window, smooth, blocks
):  # fmt: skip
    q, k, v = problem(seed, regime, heads, widths, t_q, t_k, dtype)
    k = inputs.rounded(k + 8, dtype)
    tensors = [inputs.tensor(x, dtype) for x in (q, k, v)]
    o, lse = fast.forward(*tensors, smooth=smooth, block_q=blocks[0], block_k=blocks[1], causal=causal, window=window)
    centered, mean = fast.smooth_k(tensors[1]) if smooth else (tensors[1], torch.zeros(1, heads[1], widths[0]))
    (q_codes, q_scale), (k_codes, k_scale) = fast.quantize(tensors[0], blocks[0]), fast.quantize(centered, blocks[1])
    options = {"mask": visible(t_q, t_k, causal, window), "scale": widths[0] ** -0.5}
    for h in range(heads[0]):
        j = h // (heads[0] // heads[1])
        codes = inputs.array(q_codes[0, :, h]) * 1.0, rows_of(q_scale[0, h], blocks[0], t_q)
        codes += inputs.array(k_codes[0, :, j]) * 1.0, rows_of(k_scale[0, j], blocks[1], t_k)
        expected = bounded(sage.attend, *codes, v[0, :, j], precision=Precision(dtype), outputs=(dtype, "float32"), **options)
        shift = bounded(lambda a, b: options["scale"] * (a @ b), q[0, :, h], inputs.array(mean[0, j]), precision=Precision("float32"))
        agree(o[0, :, h], expected[0], "output")
        agree(lse[0, h], expected[1] + shift, "log-sum-exp")


@given(st.sampled_from([1, 31, 33, 70]), st.sampled_from([1, 32, 33, 70]), st.sampled_from(HEADS), st.booleans(), windows)
@example(33, 70, (4, 2), True, (5, None))
@example(70, 33, (2, 1), True, None)
def test_mask_tomography(fast, t_q, t_k, heads, causal, window):
    """q = 0 makes every logit 0; one-hot values then show which keys a row read, each exactly once, and from which head."""
    seen = visible(t_q, t_k, causal, window)
    q, k = np.zeros((1, t_q, heads[0], 16)), np.ones((1, t_k, heads[1], 16))
    owners = np.arange(1, heads[1] + 1)[None, None, :, None]
    v = np.eye(t_k)[None, :, None] * owners
    o, lse = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)), block_q=32, block_k=32, causal=causal, window=window)
    for h in range(heads[0]):
        read = np.rint(inputs.array(o[0, :, h]) * seen.sum(1)[:, None])
        exactly(read, (h // (heads[0] // heads[1]) + 1.0) * seen, f"keys read by head {h}")
        exactly(np.rint(np.exp(inputs.array(lse[0, h]))), seen.sum(1) * 1.0, "number of keys")


@given(inputs.seeds, st.integers(-64, 64), st.booleans())
@example(0, 64, True)
def test_a_number_added_to_all_keys_moves_the_log_sum_exp_alone(fast, seed, c, causal):
    """Not one bit of the output changes: 64 keys have an exact mean, and the smoothed keys are the same."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.integers(-8, 9, (1, 64, 2, 16)).astype(float) for _ in range(3))
    o, lse = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)), causal=causal)
    shifted = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k + c, v)), causal=causal)
    exactly(shifted[0], o, "output")
    mean = k[0, :, 0].mean(0)
    unshifted = inputs.array(lse[0, 0]) - 0.25 * (q[0, :, 0] @ mean)
    difference = lambda l, q, mean, other: (l + 0.25 * (q @ other)) - (l + 0.25 * (q @ mean))
    expected = bounded(difference, unshifted, q[0, :, 0], mean, mean + c, precision=Precision("float32"))
    agree(inputs.array(shifted[1][0, 0]) - inputs.array(lse[0, 0]), expected, "log-sum-exp")


@given(inputs.seeds)
def test_products_of_codes_are_exact(fast, seed):
    """Keys that are permutations of each other under a constant query have one and the same logit, above what 16 bits hold."""
    rng = np.random.default_rng(seed)
    key = rng.integers(-20, 128, 200).astype(float)
    key[0] = 127
    k = np.stack([rng.permutation(key) for _ in range(64)])[None, :, None]
    v = rng.integers(-8, 9, (1, 64, 1, 16)).astype(float)
    tensors = [inputs.tensor(x, "float32") for x in (np.full((1, 3, 1, 200), 127.0), k, v)]
    o, _ = fast.forward(*tensors, smooth=False, scale=2.0**-6)
    exactly(o[0, :, 0], np.broadcast_to(v[0, :, 0].mean(0), (3, 16)), "mean of the values")


@given(inputs.seeds, inputs.layouts, inputs.dtypes())
def test_strides_do_not_matter_and_sequences_do_not_meet(fast, seed, layout, dtype):
    """Gaps hold NaN; a batch gives the bits of each sequence alone, its own mean and scales included; two runs agree, inputs stay."""
    q, k, v = inputs.values("normal", [(2, 33, 2, 16), (2, 45, 1, 16), (2, 45, 1, 8)], seed, dtype)
    k[1] = inputs.rounded(64 * k[1], dtype)
    tensors = [inputs.tensor(x, dtype, layout) for x in (q, k, v)]
    together = fast.forward(*tensors, causal=True)
    for i in range(2):
        alone = fast.forward(*(inputs.tensor(x[i : i + 1], dtype) for x in (q, k, v)), causal=True)
        for x, y in zip(together, alone, strict=True):
            exactly(x[i], y[0], layout)
    for x, y in zip(together, fast.forward(*tensors, causal=True), strict=True):
        exactly(x, y, "second run")
    for x, y in zip(tensors, (q, k, v), strict=True):
        exactly(x, y, "input")


def test_rows_without_keys_and_values_nobody_sees(fast):
    """Output 0 and log-sum-exp -inf, also after the mean is put back; NaN values behind every window are never met."""
    x = torch.ones(1, 40, 1, 16, device=inputs.target.device())
    for keys, options in ((x[:, :5], {"causal": True}), (x[:, :0], {}), (x[:, :5], {"window": (0, 0)})):
        o, lse = fast.forward(x, keys, keys, **options)
        empty = 40 - keys.shape[1]
        exactly(o[:, :empty], np.zeros((1, empty, 1, 16)), "output")
        exactly(lse[..., :empty], np.full((1, 1, empty), -np.inf), "log-sum-exp")
        assert torch.isfinite(lse[..., empty:]).all()
    v = x.clone()
    v[:, :30] = float("nan")
    exactly(fast.forward(x[:, :4], x, v, window=(6, 0))[0], np.ones((1, 4, 1, 16)), "values outside every window")
    assert fast.forward(x[:, :0], x, x)[0].shape == (1, 0, 1, 16)


BAD = [
    ("q", ValueError, lambda q, k, v: ((q[0], k, v), {})),
    ("q", TypeError, lambda q, k, v: ((q.double(), k.double(), v.double()), {})),
    ("q", ValueError, lambda q, k, v: ((q[:, :, [0, 1, 0]], k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1)), {})),
    ("v", ValueError, lambda q, k, v: ((q, k, v[:, :4]), {})),
    ("v", TypeError, lambda q, k, v: ((q, k, v.half()), {})),
    ("v", ValueError, lambda q, k, v: ((q, k, v.repeat(1, 1, 1, 2)[..., ::2]), {})),
    ("block_k", ValueError, lambda q, k, v: ((q, k, v), {"block_k": 48})),
    ("block_q", ValueError, lambda q, k, v: ((q, k, v), {"block_q": 0})),
    ("window", ValueError, lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
    ("scale", ValueError, lambda q, k, v: ((q, k, v), {"scale": 0.0})),
]


def arguments():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(target.device()) for shape in ((1, 5, 2, 16), (1, 9, 1, 16), (1, 9, 1, 8))]


@pytest.mark.parametrize(("name", "error", "change"), BAD)
def test_errors_name_the_argument(fast, name, error, change):
    tensors, options = change(*arguments())
    with pytest.raises(error, match=name):
        fast.forward(*tensors, **options)


def test_compiled_graph_is_whole_and_equal(fast):
    q, k, v = arguments()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: fast.forward(*x, causal=True), fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(q, k, v), fast.forward(q, k, v, causal=True), strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operator_is_registered_in_full(fast):
    q, k, v = arguments()
    codes = [x.to(torch.int8) for x in (q, k)]
    ones = q.new_ones(1, 2, 5), q.new_ones(1, 1, 9)
    options = None, None, 1, 3, 0, 0.25, 32, 1.0, False, False, torch.float32
    torch.library.opcheck(torch.ops.twofold.quantized_attention_forward, (*codes, v, *ones, *options))
