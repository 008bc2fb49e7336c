"""FlashAttention-3 in 8-bit floats, the kernel and its twin: the same codes, the same order, the same roundings."""

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
from twofold.spec.attention import flash_v3
from twofold.spec.attention.sage import encode

lengths = st.sampled_from([0, 1, 31, 32, 33, 70])
windows = st.sampled_from(WINDOWS)


def blocks(x, size):
    codes, scale = encode(x, np.arange(len(x)) // size, -(-len(x) // size), 448, flash_v3.e4m3)
    return codes, single(scale)


@given(
    inputs.seeds, inputs.regimes, inputs.dtypes(), st.sampled_from(HEADS), st.sampled_from(WIDTHS), lengths, lengths,
    st.booleans(), windows, st.sampled_from([(64, 64), (20, 32), (1, 32)]), st.sampled_from([0, 8]),
)  # fmt: skip
@example(0, "normal", "float32", (4, 2), (33, 16), 33, 70, True, None, (20, 32), 8)
@example(1, "spiked", "bfloat16", (2, 1), (8, 24), 70, 70, False, (20, 17), (64, 32), 8)
@example(2, "normal", "float32", (1, 1), (16, 16), 33, 70, False, None, (64, 32), 0)
def test_forward_agrees_with_the_definition(fast, seed, regime, dtype, heads, widths, t_q, t_k, causal, window, size, offset):
    """Codes are the same; a weight may be rounded to the other side only where its exponential is that near to the middle."""
    (h, h_kv), (d, dv) = heads, widths
    shapes = [(1, t_q, h, d), (1, t_k, h_kv, d), (1, t_k, h_kv, dv)]
    q, k, v = inputs.values(regime, shapes, seed, "float16" if dtype == "float16" else "bfloat16")
    tensors = [inputs.tensor(x, dtype) for x in (q, k, v)]
    o, lse = fast.forward_fp8(*tensors, block_q=size[0], block_k=size[1], offset=offset, causal=causal, window=window)
    options = {"mask": visible(t_q, t_k, causal, window), "scale": d**-0.5, "block_k": size[1], "offset": offset}
    for i in range(h):
        j = i // (h // h_kv)
        (a, s), (b, t), (c, u) = blocks(q[0, :, i], size[0]), blocks(k[0, :, j], size[1]), blocks(v[0, :, j], size[1])
        codes = a, np.repeat(s, size[0])[:t_q], b, np.repeat(t, size[1])[:t_k], c, u
        contract = {"precision": Precision("float32"), "outputs": (dtype, "float32")}
        expected = bounded_with(flash_v3, "e4m3", flash_v3.attend, *codes, **contract, **options)
        agree(o[0, :, i], expected[0], "output")
        agree(lse[0, i], expected[1], "log-sum-exp")


@given(st.sampled_from([1, 31, 33, 70]), st.sampled_from([1, 32, 33, 70]), st.sampled_from(HEADS), st.booleans(), windows)
@example(33, 70, (4, 2), True, (5, None))
@example(70, 33, (2, 1), True, None)
def test_mask_tomography(fast, t_q, t_k, heads, causal, window):
    """q = 0 makes every weight 2^8; one-hot values then show which keys a row read, each exactly once, and from which head."""
    seen = visible(t_q, t_k, causal, window)
    q, k = np.zeros((1, t_q, heads[0], 16)), np.ones((1, t_k, heads[1], 16))
    v = np.eye(t_k)[None, :, None] * np.arange(1, heads[1] + 1)[None, None, :, None]
    o, lse = fast.forward_fp8(*(inputs.tensor(x, "float32") for x in (q, k, v)), block_k=32, causal=causal, window=window)
    for h in range(heads[0]):
        read = np.rint(inputs.array(o[0, :, h]) * seen.sum(1)[:, None])
        exactly(read, (h // (heads[0] // heads[1]) + 1.0) * seen, f"keys read by head {h}")
        exactly(np.rint(np.exp(inputs.array(lse[0, h]))), seen.sum(1) * 1.0, "number of keys")


def test_a_scale_belongs_to_its_block_of_values(fast):
    """Blocks of values that differ by powers of two, all representable, under equal weights: the mean comes out exactly."""
    q, k = np.zeros((1, 3, 1, 16)), np.zeros((1, 128, 1, 16))
    v = 448 * 2.0 ** (np.arange(128) // 32)[None, :, None, None] * np.ones((1, 1, 1, 8))
    o, _ = fast.forward_fp8(*(inputs.tensor(x, "float32") for x in (q, k, v)), block_k=32)
    exactly(o, np.full((1, 3, 1, 8), 448 * 15 / 4), "mean of the values")


def test_an_early_sink_flushes_no_weight_of_other_blocks(fast):
    """The last keys come first: what they give is kept when the first key, 14 above, raises the maximum."""
    q, k, v = np.ones((1, 4, 1, 1)), np.zeros((1, 128, 1, 1)), np.full((1, 128, 1, 1), 448.0)
    k[0, 0], v[0, :64] = 14.0, 0
    o, _ = fast.forward_fp8(*(inputs.tensor(x, "float32") for x in (q, k, v)), scale=1.0)
    options = {"scale": 1.0, "block_k": 64, "offset": 8}
    codes = [blocks(x[0, :, 0], 64) for x in (q, k, v)]
    codes = codes[0][0], np.repeat(codes[0][1], 64)[:4], codes[1][0], np.repeat(codes[1][1], 64), *codes[2]
    expected = bounded_with(flash_v3, "e4m3", flash_v3.attend, *codes, precision=Precision("float32"), **options)
    agree(o[0, :, 0], expected[0], "output")
    assert np.all(expected[0].value > 0)


@given(inputs.seeds, st.sampled_from([1, 16, 33, 96]), st.sampled_from(HEADS), inputs.dtypes())
def test_incoherent_agrees_with_the_definition(fast, seed, d, heads, dtype):
    q, k = inputs.values("normal", [(2, 5, heads[0], d), (2, 7, heads[1], d)], seed, dtype)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (heads[1], d))
    turned = fast.incoherent(inputs.tensor(q, dtype), inputs.tensor(k, dtype), inputs.tensor(signs, "float32"))
    for h in range(heads[0]):
        j = h // (heads[0] // heads[1])
        precision = Precision(dtype, operand="float32")
        expected = bounded(flash_v3.incoherent, q[1, :, h], k[1, :, j], signs[j], precision=precision, outputs=dtype)
        agree(turned[0][1, :, h], expected[0], "queries")
        agree(turned[1][1, :, j], expected[1], "keys")


@given(inputs.seeds, inputs.layouts, inputs.dtypes())
def test_strides_do_not_matter_and_sequences_do_not_meet(fast, seed, layout, dtype):
    q, k, v = inputs.values("normal", [(2, 33, 2, 16), (2, 45, 1, 16), (2, 45, 1, 8)], seed, dtype)
    v[1] = inputs.rounded(64 * v[1], dtype)
    tensors = [inputs.tensor(x, dtype, layout) for x in (q, k, v)]
    together = fast.forward_fp8(*tensors, causal=True)
    for i in range(2):
        alone = fast.forward_fp8(*(inputs.tensor(x[i : i + 1], dtype) for x in (q, k, v)), causal=True)
        for x, y in zip(together, alone, strict=True):
            exactly(x[i], y[0], layout)
    for x, y in zip(tensors, (q, k, v), strict=True):
        exactly(x, y, "input")


def test_rows_without_keys(fast):
    x = torch.ones(1, 40, 1, 16, device=inputs.target.device())
    for keys, options in ((x[:, :5], {"causal": True}), (x[:, :0], {}), (x[:, :5], {"window": (0, 0)})):
        o, lse = fast.forward_fp8(x, keys, keys, **options)
        empty = 40 - keys.shape[1]
        exactly(o[:, :empty], np.zeros((1, empty, 1, 16)), "output")
        exactly(lse[..., :empty], np.full((1, 1, empty), -np.inf), "log-sum-exp")
        assert torch.isfinite(lse[..., empty:]).all()
    assert fast.forward_fp8(x[:, :0], x, x)[0].shape == (1, 0, 1, 16)


BAD = [
    ("q", TypeError, lambda q, k, v: ((q.double(), k.double(), v.double()), {})),
    ("v", ValueError, lambda q, k, v: ((q, k, v[:, :4]), {})),
    ("block_q", ValueError, lambda q, k, v: ((q, k, v), {"block_q": 0})),
    ("block_k", ValueError, lambda q, k, v: ((q, k, v), {"block_k": 48})),
    ("offset", ValueError, lambda q, k, v: ((q, k, v), {"offset": 9})),
    ("window", ValueError, lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
]


def arguments():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(target.device()) for shape in ((1, 5, 2, 16), (1, 9, 1, 16), (1, 9, 1, 8))]


@pytest.mark.parametrize(("name", "error", "change"), BAD)
def test_errors_name_the_argument(fast, name, error, change):
    tensors, options = change(*arguments())
    with pytest.raises(error, match=name):
        fast.forward_fp8(*tensors, **options)


def test_incoherent_names_its_arguments(fast):
    q, k, _ = arguments()
    for signs, error in ((q.new_ones(2, 16), ValueError), (q.new_ones(1, 8), ValueError), (None, TypeError)):
        with pytest.raises(error, match="signs"):
            fast.incoherent(q, k, signs)


def test_compiled_graph_is_whole_and_equal(fast):
    q, k, v = arguments()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: fast.forward_fp8(*x, causal=True), fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(q, k, v), fast.forward_fp8(q, k, v, causal=True), strict=True):
        assert torch.equal(x, y)
