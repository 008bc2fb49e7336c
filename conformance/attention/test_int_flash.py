"""INT-FlashAttention: integers are exact, so whole laws are too; what is rounded is bounded, weight by weight."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention.problems import HEADS, WIDTHS, WINDOWS, visible
from twofold.conformance.attention.quantized import bounded_with, single
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision
from twofold.spec.attention import dense, int_flash
from twofold.spec.attention.sage import encode

lengths = st.sampled_from([0, 1, 31, 32, 33, 70])
windows = st.sampled_from(WINDOWS)


@given(inputs.seeds, st.sampled_from([1, 5, 33]), st.sampled_from([1, 8, 33]), st.booleans())
def test_error_stays_within_the_roundings(seed, t, block, causal):
    """Scores by half a step of each code. Weights by 1/254 of the largest so far, each met by its value's distance from the output."""
    q, k, v = inputs.values("normal", [(t, 24), (t, 24), (t, 5)], seed)
    mask = visible(t, t, causal)
    o, lse = int_flash.forward(q, k, v, block_k=block, mask=mask)
    (q_codes, q_scale), (k_codes, k_scale) = int_flash.quantize(q), int_flash.quantize(k)
    v_codes, v_scale = encode(v, np.zeros(t, int), 1, 127)
    real = dense.attention(q, k, v, mask=mask)
    keys, queries = k_scale * np.abs(k_codes).sum(1), np.abs(q).sum(1)
    epsilon = np.max(np.where(mask, 24**-0.5 / 2 * (np.outer(q_scale, keys) + np.outer(queries, k_scale)), 0), axis=1) + 2.0**-40
    middle = dense.attention(q_codes * q_scale[:, None], k_codes * k_scale[:, None], v_codes * v_scale, mask=mask)  # weights not rounded
    spread = np.ptp(v_codes * v_scale, axis=0)
    assert np.all(np.abs(middle[1] - real[1]) <= epsilon)
    assert np.all(np.abs(middle[0] - real[0]) <= np.tanh(epsilon / 2)[:, None] * spread + v_scale / 2 + 2.0**-40)
    most = np.max(np.where(mask, dense.logits(q_codes * q_scale[:, None], k_codes * k_scale[:, None]), -np.inf), axis=1)
    share = np.exp(most - middle[1]) / 254  # of the row's sum, what half a step of one weight is
    count = mask.sum(1)
    assert np.all(np.abs(lse - middle[1]) <= -np.log1p(-np.minimum(count * share, 0.999)) + 2.0**-40)
    apart = np.where(mask[..., None], np.abs((v_codes * v_scale)[None] - o[:, None]), 0).sum(1)  # (Tq, Dv)
    assert np.all(np.abs(o - middle[0]) <= share[:, None] * apart + 2.0**-40)


@given(inputs.seeds, inputs.regimes, inputs.dtypes(), st.sampled_from([0, 1, 33]))
def test_codes_are_those_of_the_definition(fast, seed, regime, dtype, t):
    (x,) = inputs.values(regime, [(2, t, 2, 33)], seed, "float16" if dtype == "float16" else "bfloat16")
    codes, scale = fast.quantize(inputs.tensor(x, dtype))
    for b, h in ((0, 0), (1, 1)):
        expected = int_flash.quantize(x[b, :, h])
        exactly(codes[b, :, h], expected[0], "codes")
        exactly(scale[b, h], single(expected[1]), "scales")


@given(
    inputs.seeds, inputs.regimes, inputs.dtypes(), st.sampled_from(HEADS), st.sampled_from(WIDTHS), lengths, lengths,
    st.booleans(), windows, st.sampled_from([32, 64]),
)  # fmt: skip
@example(0, "normal", "float32", (4, 2), (33, 16), 33, 70, True, None, 32)
@example(1, "normal", "bfloat16", (2, 1), (8, 24), 70, 70, False, (20, 17), 32)
def test_forward_agrees_with_the_definition(fast, seed, regime, dtype, heads, widths, t_q, t_k, causal, window, block):
    """Codes are the same; a weight may be rounded to the other side only where its exponential is that near to the middle."""
    (h, h_kv), (d, dv) = heads, widths
    shapes = [(1, t_q, h, d), (1, t_k, h_kv, d), (1, t_k, h_kv, dv)]
    q, k, v = inputs.values(regime, shapes, seed, "float16" if dtype == "float16" else "bfloat16")
    o, lse = fast.forward(*(inputs.tensor(x, dtype) for x in (q, k, v)), block_k=block, causal=causal, window=window)
    options = {"mask": visible(t_q, t_k, causal, window), "scale": d**-0.5, "block_k": block}
    for i in range(h):
        j = i // (h // h_kv)
        (a, s), (b, t) = int_flash.quantize(q[0, :, i]), int_flash.quantize(k[0, :, j])
        c, u = encode(v[0, :, j], np.zeros(t_k, int), 1, 127)
        contract = {"precision": Precision("float32"), "outputs": (dtype, "float32")}
        codes = a, single(s), b, single(t), c, single(u)
        expected = bounded_with(int_flash, "nearest", int_flash.attend, *codes, **contract, **options)
        agree(o[0, :, i], expected[0], "output")
        agree(lse[0, i], expected[1], "log-sum-exp")


@given(st.sampled_from([1, 31, 33, 70]), st.sampled_from([1, 32, 33, 70]), st.sampled_from(HEADS), st.booleans(), windows)
@example(33, 70, (4, 2), True, (5, None))
@example(70, 33, (2, 1), True, None)
def test_mask_tomography(fast, t_q, t_k, heads, causal, window):
    """q = 0 makes every weight 127; one-hot values then show which keys a row read, each exactly once, and from which head."""
    seen = visible(t_q, t_k, causal, window)
    q, k = np.zeros((1, t_q, heads[0], 16)), np.ones((1, t_k, heads[1], 16))
    v = np.eye(t_k)[None, :, None] * np.arange(1, heads[1] + 1)[None, None, :, None]
    o, lse = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)), block_k=32, causal=causal, window=window)
    for h in range(heads[0]):
        read = np.rint(inputs.array(o[0, :, h]) * seen.sum(1)[:, None])
        exactly(read, (h // (heads[0] // heads[1]) + 1.0) * seen, f"keys read by head {h}")
        exactly(np.rint(np.exp(inputs.array(lse[0, h]))), seen.sum(1) * 1.0, "number of keys")


@given(inputs.seeds, inputs.regimes, st.sampled_from([1, 33, 64]))
def test_within_one_tile_the_order_of_the_keys_is_of_no_consequence(fast, seed, regime, t_k):
    """Every sum is one of integers: not one bit changes."""
    q, k, v = inputs.values(regime, [(1, 5, 2, 16), (1, t_k, 1, 16), (1, t_k, 1, 8)], seed, "bfloat16")
    order = np.random.default_rng(seed).permutation(t_k)
    straight = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)))
    shuffled = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k[:, order], v[:, order])))
    for x, y in zip(shuffled, straight, strict=True):
        exactly(x, y)


@given(inputs.seeds, st.sampled_from([1, 33, 70]), st.sampled_from([2.0**-4, 1.0, 96.0]))
def test_constant_values_come_out_as_they_are(fast, seed, t_k, value):
    """Output and sum take the same rounded weights, so they cancel: 127 codes of value / 127."""
    q, k = inputs.values("large", [(1, 9, 2, 16), (1, t_k, 1, 16)], seed, "bfloat16")
    v = np.full((1, t_k, 1, 8), value)
    o, _ = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)), block_k=32)
    exactly(o, np.full((1, 9, 2, 8), float(np.float32(127) * np.float32(value / 127))), "output")


def test_weights_below_half_a_step_are_dropped(fast):
    """A key e^-6 below the largest has code 0: its value, anything up to the largest, moves no bit. Before the larger one it counts."""
    q, k = np.ones((1, 1, 1, 1)), np.zeros((1, 64, 1, 1))
    k[0, 40] = 6.0
    v = np.zeros((1, 64, 1, 1))
    v[0, 40] = 1.0
    changed = v.copy()
    changed[0, :40] = 0.5
    run = lambda v, block: fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)), scale=1.0, block_k=block)[0]
    exactly(run(changed, 64), run(v, 64), "one tile")
    assert np.all(inputs.array(run(changed, 32)) != inputs.array(run(v, 32)))


@given(inputs.seeds, inputs.layouts, inputs.dtypes())
def test_strides_do_not_matter_and_sequences_do_not_meet(fast, seed, layout, dtype):
    q, k, v = inputs.values("normal", [(2, 33, 2, 16), (2, 45, 1, 16), (2, 45, 1, 8)], seed, dtype)
    v[1] = inputs.rounded(64 * v[1], dtype)
    tensors = [inputs.tensor(x, dtype, layout) for x in (q, k, v)]
    together = fast.forward(*tensors, causal=True)
    for i in range(2):
        alone = fast.forward(*(inputs.tensor(x[i : i + 1], dtype) for x in (q, k, v)), causal=True)
        for x, y in zip(together, alone, strict=True):
            exactly(x[i], y[0], layout)
    for x, y in zip(tensors, (q, k, v), strict=True):
        exactly(x, y, "input")


def test_rows_without_keys(fast):
    x = torch.ones(1, 40, 1, 16, device=inputs.target.device())
    for keys, options in ((x[:, :5], {"causal": True}), (x[:, :0], {}), (x[:, :5], {"window": (0, 0)})):
        o, lse = fast.forward(x, keys, keys, **options)
        empty = 40 - keys.shape[1]
        exactly(o[:, :empty], np.zeros((1, empty, 1, 16)), "output")
        exactly(lse[..., :empty], np.full((1, 1, empty), -np.inf), "log-sum-exp")
        assert torch.isfinite(lse[..., empty:]).all()
    assert fast.forward(x[:, :0], x, x)[0].shape == (1, 0, 1, 16)


BAD = [
    ("q", TypeError, lambda q, k, v: ((q.double(), k.double(), v.double()), {})),
    ("v", ValueError, lambda q, k, v: ((q, k, v[:, :4]), {})),
    ("block_k", ValueError, lambda q, k, v: ((q, k, v), {"block_k": 48})),
    ("window", ValueError, lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
    ("scale", ValueError, lambda q, k, v: ((q, k, v), {"scale": 0.0})),
]


@pytest.mark.parametrize(("name", "error", "change"), BAD)
def test_errors_name_the_argument(fast, name, error, change):
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 5, 2, 16), (1, 9, 1, 16), (1, 9, 1, 8)
    tensors, options = change(*(torch.randn(shape, generator=generator).to(target.device()) for shape in shapes))
    with pytest.raises(error, match=name):
        fast.forward(*tensors, **options)


def test_compiled_graph_is_whole_and_equal(fast):
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", [(1, 5, 2, 16), (1, 9, 1, 16), (1, 9, 1, 8)], 0))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: fast.forward(*x, causal=True), fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(q, k, v), fast.forward(q, k, v, causal=True), strict=True):
        assert torch.equal(x, y)
