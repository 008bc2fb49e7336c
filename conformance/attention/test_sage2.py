"""SageAttention2: what a block of queries shares is taken out and given back, codes are discrete and exact, the rest is bounded."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention.problems import HEADS, WIDTHS, WINDOWS, visible
from twofold.conformance.attention.quantized import bounded_with, single
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, sage, sage2

lengths = st.sampled_from([0, 1, 31, 32, 33, 70])
windows = st.sampled_from(WINDOWS)
TOP = {"fp8": 448, "fp8_fp16acc": 2.25}


@given(inputs.seeds, st.sampled_from([1, 33, 70]), st.sampled_from(["int4", "int8"]), st.sampled_from(list(TOP)), st.booleans())
def test_error_stays_within_the_roundings(seed, t, qk, pv, causal):
    """Scores by half a step of each code; weights and values by 1/16 of themselves, or half the smallest number of e4m3."""
    q, k, v = inputs.values("normal", [(t, 24), (t, 24), (t, 5)], seed)
    mask, bits = visible(t, t, causal), {"int4": 4, "int8": 8}[qk]
    o, lse = sage2.forward(q, k + 50, v, qk=qk, pv=pv, block_q=64, block_k=32, mask=mask)
    real = dense.attention(q, k + 50, v, mask=mask)
    centered, (deviations, _) = sage.smooth_k(k + 50)[0], sage2.smooth_q(q, 64)
    (a, s, g), (b, u, h) = sage2.quantize_per_thread(deviations, "q", bits), sage2.quantize_per_thread(centered, "k", bits)
    epsilon = 24**-0.5 / 2 * (np.outer(s[g], u[h] * np.abs(b).sum(1)) + np.outer(np.abs(deviations).sum(1), u[h]))
    assert np.all(np.abs(a - deviations / s[g][:, None]) <= 0.5 + 2.0**-40) and np.max(np.abs(a), initial=0) <= 2 ** (bits - 1) - 1
    epsilon = np.max(np.where(mask, epsilon, 0), axis=1) + 2.0**-36
    assert np.all(np.abs(lse - real[1]) <= epsilon)
    codes, scale = sage2.quantize_per_channel(v, pv)
    step = np.maximum(np.abs(v) / 16, scale * 2.0**-10) * (1 + 2.0**-40)
    assert np.all(np.abs(codes * scale - v) <= step)
    weight = 2.0**-4 + t * 2.0**-10 / 448 * np.exp(epsilon)  # of a row's sum, what rounding weights moves
    moved = np.tanh(epsilon / 2)[:, None] * np.ptp(v, axis=0) + step.max(0) + weight[:, None] * np.max(np.abs(codes * scale), axis=0)
    assert np.all(np.abs(o - real[0]) <= moved)


@given(inputs.seeds, st.sampled_from([1, 9, 33]), st.sampled_from([1, 4, 64]))
def test_smoothing_is_an_identity_without_codes(seed, t, block):
    """The product of deviations, plus that of the means with the keys, is the product: exact on integers whose means are integers."""
    rng = np.random.default_rng(seed)
    q, k = rng.integers(-4, 5, (t, 6)).astype(float) * t, rng.integers(-4, 5, (7, 6)).astype(float)
    for start in range(0, t, block):
        rows = q[start : start + block]
        rows[-1] -= rows.sum(0) % len(rows)
    deviations, means = sage2.smooth_q(q, block)
    exactly(means, np.rint(means), "means")
    exactly(deviations @ k.T + np.repeat(means @ k.T, block, axis=0)[:t], q @ k.T, "products")


def test_groups_are_those_of_a_warps_threads():
    """8 groups of 4 queries in each 32, 4 groups of 16 keys in each 64; a group's rows are 8 apart, or neighbors in twos."""
    for side, tile, groups, of in (("q", 32, 8, lambda r: r % 8), ("k", 64, 4, lambda r: r % 8 // 2)):
        group = sage2.quantize_per_thread(np.ones((2 * tile + 5, 1)), side, 4)[2]
        exactly(group, np.array([r // tile * groups + of(r % tile) for r in range(2 * tile + 5)]), side)
        assert np.all(np.bincount(group)[: 2 * groups] == tile // groups)


@given(inputs.seeds, inputs.regimes, inputs.dtypes(), st.sampled_from([0, 1, 33, 130]), st.sampled_from("qk"), st.sampled_from([4, 8]))
def test_codes_are_those_of_the_definition(fast, seed, regime, dtype, t, side, bits):
    (x,) = inputs.values(regime, [(2, t, 2, 33)], seed, "float16" if dtype == "float16" else "bfloat16")
    codes, scales, group = fast.quantize_per_thread(inputs.tensor(x, dtype), side, bits)
    values, by_channel = {}, {}
    for pv in TOP:
        values[pv], by_channel[pv] = fast.quantize_per_channel(inputs.tensor(x, dtype), pv)
    for b, h in ((0, 0), (1, 1)):
        expected = sage2.quantize_per_thread(x[b, :, h], side, bits)
        for actual, wanted, name in zip((codes[b, :, h], scales[b, h], group), expected, ("codes", "scales", "groups"), strict=True):
            exactly(actual, single(wanted) if name == "scales" else wanted, name)
        for pv in TOP:
            wanted, scale = sage2.quantize_per_channel(x[b, :, h], pv)
            exactly(values[pv][b, :, h], wanted, f"values, {pv}")
            exactly(by_channel[pv][b, h], single(scale), f"scales of values, {pv}")


@given(inputs.seeds, inputs.dtypes(), st.sampled_from([0, 1, 63, 130]), st.sampled_from([1, 64, 128]))
def test_means_agree_with_the_definition(fast, seed, dtype, t, block):
    """A short last block is divided by the number of its own rows."""
    (x,) = inputs.values("normal", [(2, t, 2, 5)], seed, dtype)
    deviations, means = fast.smooth_q(inputs.tensor(x, dtype), block)
    for b, h in ((0, 1), (1, 0)):
        expected = bounded(sage2.smooth_q, x[b, :, h], block, precision=Precision("float32"))
        agree(deviations[b, :, h], expected[0], "deviations")
        agree(means[b, h], expected[1], "means")


@given(
    inputs.seeds, st.sampled_from(HEADS), st.sampled_from(WIDTHS), lengths, lengths, st.booleans(), windows,
    st.sampled_from(["int4", "int8"]), st.sampled_from(list(TOP)), st.sampled_from([32, 64]), st.sampled_from([64, 128]),
)  # fmt: skip
@example(0, (4, 2), (33, 16), 33, 70, True, None, "int4", "fp8", 32, 64)
@example(1, (2, 1), (8, 24), 70, 70, False, (20, 17), "int8", "fp8_fp16acc", 64, 64)
def test_forward_agrees_with_the_definition(fast, seed, heads, widths, t_q, t_k, causal, window, qk, pv, block_k, block_q):
    """Integers whose means are integers: smoothing is exact, so that codes are the definition's; the bound then follows each weight."""
    (h, h_kv), (d, dv) = heads, widths
    rng, bits = np.random.default_rng(seed), {"int4": 4, "int8": 8}[qk]
    q, k = (rng.integers(-7, 8, (1, n, heads_, d)).astype(float) for n, heads_ in ((t_q, h), (t_k, h_kv)))
    (v,) = inputs.values("normal", [(1, t_k, h_kv, dv)], seed, "bfloat16")
    for x, block in ((q, block_q), (k, max(t_k, 1))):
        for start in range(0, x.shape[1], block):
            rows = x[:, start : start + block]
            rows[:, -1] -= rows.sum(1) % rows.shape[1]
    o, lse = fast.forward(
        *(inputs.tensor(x, "float32") for x in (q, k, v)), qk=qk, pv=pv, block_q=block_q, block_k=block_k, causal=causal, window=window
    )
    options = {"mask": visible(t_q, t_k, causal, window), "scale": d**-0.5, "block_k": block_k}
    for i in range(h):
        j = i // (h // h_kv)
        (centered, mean), (deviations, means) = sage.smooth_k(k[0, :, j]), sage2.smooth_q(q[0, :, i], block_q)
        (a, s, g), (b, u, n) = sage2.quantize_per_thread(deviations, "q", bits), sage2.quantize_per_thread(centered, "k", bits)
        values, by_channel = sage2.quantize_per_channel(v[0, :, j], pv)
        shared = np.repeat(means @ centered.T, block_q, axis=0)[:t_q]
        codes = a, single(s)[g], b, single(u)[n], values, single(by_channel), shared
        contract = {"precision": Precision("float32"), "outputs": ("float32", "float32")}
        expected = bounded_with(sage2, "e4m3", sage2.attend, *codes, **contract, **options)
        agree(o[0, :, i], expected[0], "output")
        shift = bounded(lambda x, m: d**-0.5 * (x @ m), q[0, :, i], mean, precision=Precision("float32"))
        agree(lse[0, i], expected[1] + shift, "log-sum-exp")


@given(st.sampled_from([1, 31, 33, 70]), st.sampled_from([1, 32, 33, 70]), st.sampled_from(HEADS), st.booleans(), windows)
@example(33, 70, (4, 2), True, (5, None))
@example(70, 33, (2, 1), True, None)
def test_mask_tomography(fast, t_q, t_k, heads, causal, window):
    """q = 0 makes every weight 448; one-hot values then show which keys a row read, each exactly once, and from which head."""
    seen = visible(t_q, t_k, causal, window)
    q, k = np.zeros((1, t_q, heads[0], 16)), np.ones((1, t_k, heads[1], 16))
    v = np.eye(t_k)[None, :, None] * np.arange(1, heads[1] + 1)[None, None, :, None]
    o, lse = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, v)), block_q=64, block_k=32, causal=causal, window=window)
    for h in range(heads[0]):
        read = np.rint(inputs.array(o[0, :, h]) * seen.sum(1)[:, None])
        exactly(read, (h // (heads[0] // heads[1]) + 1.0) * seen, f"keys read by head {h}")
        exactly(np.rint(np.exp(inputs.array(lse[0, h]))), seen.sum(1) * 1.0, "number of keys")


@given(inputs.seeds, inputs.layouts, inputs.dtypes())
def test_strides_do_not_matter_and_sequences_do_not_meet(fast, seed, layout, dtype):
    q, k, v = inputs.values("normal", [(2, 33, 2, 16), (2, 45, 1, 16), (2, 45, 1, 8)], seed, dtype)
    v[1] = inputs.rounded(64 * v[1], dtype)
    tensors = [inputs.tensor(x, dtype, layout) for x in (q, k, v)]
    together = fast.forward(*tensors, causal=True, block_q=64)
    for i in range(2):
        alone = fast.forward(*(inputs.tensor(x[i : i + 1], dtype) for x in (q, k, v)), causal=True, block_q=64)
        for x, y in zip(together, alone, strict=True):
            exactly(x[i], y[0], layout)
    for x, y in zip(tensors, (q, k, v), strict=True):
        exactly(x, y, "input")


def test_codes_of_later_blocks_meet_their_own_mean(fast):
    """Queries that are constant in each block of 64 have codes 0: what is left is the mean of their own block, and it is exact."""
    size = np.repeat([1.0, -2.0, 4.0, 3.0], 64)
    q, k = size[None, :, None, None] * np.ones((1, 1, 1, 16)), np.array([-1.0, 1.0])[None, :, None, None] * np.ones((1, 1, 1, 16))
    _, lse = fast.forward(*(inputs.tensor(x, "float32") for x in (q, k, k)), block_q=64, scale=2.0**-6)
    few = size[:, None] / 4, np.array([[-1.0], [1.0]]), np.ones((2, 1))  # 16 products of 2^-6 each
    expected = bounded(dense.attention, *few, scale=1.0, precision=Precision("float32"))
    agree(lse[0, 0], expected[1], "log-sum-exp")


def test_rows_without_keys(fast):
    x = torch.ones(1, 40, 1, 16, device=target.device())
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
    ("qk", ValueError, lambda q, k, v: ((q, k, v), {"qk": "int3"})),
    ("pv", ValueError, lambda q, k, v: ((q, k, v), {"pv": "fp16"})),
    ("block_q", ValueError, lambda q, k, v: ((q, k, v), {"block_q": 48})),
    ("block_k", ValueError, lambda q, k, v: ((q, k, v), {"block_k": 48})),
    ("window", ValueError, lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
]


@pytest.mark.parametrize(("name", "error", "change"), BAD)
def test_errors_name_the_argument(fast, name, error, change):
    tensors, options = change(torch.ones(1, 5, 2, 16), torch.ones(1, 9, 1, 16), torch.ones(1, 9, 1, 8))
    with pytest.raises(error, match=name):
        fast.forward(*(x.to(target.device()) for x in tensors), **options)
