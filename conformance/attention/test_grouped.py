"""Grouped-query attention: heads that share keys are more rows to them, and less to store; packing changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, grouped

HEADS = st.sampled_from([(1, 1), (3, 1), (5, 1), (6, 2), (7, 1), (4, 4)])  # query heads, key heads: groups of 1, 3, 5, 3, 7 and 1
OPTIONS = st.sampled_from([{}, {"causal": True}, {"window": (3, 1)}, {"causal": True, "window": (5, None), "softcap": 2.0}])
exact64 = Precision("float64", "float64")


def arrays(seed, heads, n_q, n_k, d=16, dv=8, dtype="float64", regime="normal"):
    """q (H, Nq, D), k (Hkv, Nk, D), v (Hkv, Nk, Dv), do (H, Nq, Dv), sink (H,)."""
    h, h_kv = heads
    q, k, v, do = inputs.values(regime, [(h, n_q, d), (h_kv, n_k, d), (h_kv, n_k, dv), (h, n_q, dv)], seed, dtype)
    return q, k, v, do, inputs.values("normal", [(h,)], seed + 1, "float32")[0]


def tensors(*heads_first, dtype="float32"):
    """(H, T, D) -> (1, T, H, D)."""
    return [inputs.tensor(x.swapaxes(0, 1)[None], dtype) for x in heads_first]


def kept(options):
    """The options that the definition has as well, and the mask that stands for the others."""
    return {"softcap": options.get("softcap")}, lambda n_q, n_k: visible(n_q, n_k, options.get("causal", False), options.get("window"))


@given(inputs.seeds, HEADS, st.integers(0, 4), st.integers(0, 5), st.booleans(), st.booleans())
@example(0, (6, 2), 4, 3, True, True)
def test_packed_rows_of_a_group_are_its_heads(seed, heads, n_q, n_k, own_masks, sinks):
    """Without rounding: every group as one head with g times the rows; each row keeps its head's mask, bias and sink."""
    h, h_kv = heads
    g, rng = h // h_kv, np.random.default_rng(seed)
    problems = [field.problem(seed + h, n_q, n_k, 2) for h in range(h_kv)]
    k, v = (np.stack([problem[i] for problem in problems]) for i in (1, 2))
    q = np.stack([np.roll(np.eye(n_q, dtype=int), head % g, axis=1).astype(object) for head in range(h)]).view(field.FieldArray)
    mask = np.stack([np.tri(n_q, n_k, n_k - n_q, dtype=bool) & ((rng.random((n_q, n_k)) < 0.7) | ~own_masks) for _ in range(h)])
    sink = field.logits(rng, h) if sinks else None
    o, lse = grouped.attention(q, k, v, mask=mask, sink=sink, scale=1)
    rows, masks = grouped.pack(q, h_kv), grouped.pack(mask, h_kv)
    parts = [dense.attention(rows[j], k[j], v[j], mask=masks[j], scale=1) for j in range(h_kv)]
    packed_o, packed_lse = (grouped.unpack(np.stack(x), g) for x in zip(*parts))
    field.exactly(lse, packed_lse, "log-sum-exp")
    if sinks:
        packed_o = np.stack([dense.share(packed_lse[head], sink[head])[:, None] * packed_o[head] for head in range(h)])
    field.exactly(o, packed_o, "output")


@given(inputs.seeds, HEADS, st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_groups_are_heads_with_repeated_keys_and_gradients_sum_over_the_copies(seed, heads, n_q, n_k, biased):
    h, h_kv = heads
    q, k, v, do, sink = arrays(seed, heads, n_q, n_k)
    repeated = [np.repeat(x, h // h_kv, axis=0) for x in (k, v)]
    bias = np.random.default_rng(seed).standard_normal((n_q, n_k)) if biased else None
    options = {"sink": sink, "bias": bias, "mask": visible(n_q, n_k, True)}
    for x, y in zip(grouped.attention(q, k, v, **options), grouped.attention(q, *repeated, **options), strict=True):
        exactly(x, y)
    dq, dk, dv, dbias, dsink = grouped.backward(q, k, v, do, **options)
    for head in range(h):
        one = {"bias": bias, "mask": options["mask"], "sink": sink[head]}
        expected = bounded(dense.backward, q[head], repeated[0][head], repeated[1][head], do[head], precision=exact64, **one)
        agree(dq[head], expected[0], "dq")
        agree(dsink[head], expected[4], "dsink")
    copies = grouped.backward(q, *repeated, do, **options)
    exactly(dk, np.stack([sum(copies[1][i : i + h // h_kv]) for i in range(0, h, h // h_kv)]), "dk")
    exactly(dv, np.stack([sum(copies[2][i : i + h // h_kv]) for i in range(0, h, h // h_kv)]), "dv")
    assert (dbias is None) == (bias is None) and (bias is None or dbias.shape == bias.shape)


@given(inputs.seeds, HEADS, st.sampled_from([1, 5, 33]), st.sampled_from([0, 3, 33]), OPTIONS, st.sampled_from(["float32", "bfloat16"]))
@example(0, (7, 1), 33, 33, {"causal": True}, "float32")
@example(0, (6, 2), 5, 33, {"window": (3, 1)}, "bfloat16")
def test_attention_agrees_with_the_definition(fast, seed, heads, n_q, n_k, options, dtype):
    q, k, v, _, sink = arrays(seed, heads, n_q, n_k, dtype=dtype)
    o, lse = fast.attention(*tensors(q, k, v, dtype=dtype), sink=inputs.tensor(sink, "float32"), **options)
    more, mask = kept(options)
    mask = mask(n_q, n_k)
    expected = bounded(grouped.attention, q, k, v, precision=Precision(dtype), outputs=(dtype, "float32"), mask=mask, sink=sink, **more)
    agree(o[0].transpose(0, 1), expected[0], "output")
    agree(lse[0], expected[1], "log-sum-exp")


@given(inputs.seeds, HEADS, OPTIONS, st.booleans())
@example(0, (3, 1), {"causal": True}, False)
@example(0, (6, 2), {}, True)
def test_gradients_agree_with_the_definition(fast, seed, heads, options, biased):
    """By the function and by autograd, on the tiled side and, with a bias per head, on the dense one."""
    q, k, v, do, sink = arrays(seed, heads, 7, 9, dtype="float32")
    more, mask = kept(options)
    if biased:
        options, bias = {"softcap": options.get("softcap")}, np.random.default_rng(seed).standard_normal((heads[0], 7, 9))
        more |= {"bias": inputs.rounded(bias, "float32")}
        options = options | {"bias": inputs.tensor(more["bias"][None], "float32"), "mask": inputs.tensor(mask(7, 9)[None, None])}
    leaves = [x.requires_grad_() for x in tensors(q, k, v)]
    z, grad = inputs.tensor(sink, "float32").requires_grad_(), tensors(do)[0]
    expected = bounded(grouped.backward, q, k, v, do, precision=Precision("float32"), mask=mask(7, 9), sink=sink, **more)
    options = options | {"sink": z}
    with_function = fast.backward(*(x.detach() for x in leaves), grad, **(options | {"sink": z.detach()}))
    by_autograd = torch.autograd.grad(fast.attention(*leaves, **options)[0], (*leaves, z), grad)
    for dq, dk, dv, dsink in ((*with_function[:3], with_function[4]), by_autograd):
        for what, actual, right in zip(("dq", "dk", "dv"), (dq, dk, dv), expected, strict=False):
            agree(actual[0].transpose(0, 1), right, what)
        agree(dsink, expected[4], "dsink")


@given(inputs.seeds, st.sampled_from([(3, 1), (6, 2), (7, 1)]), OPTIONS)
def test_equal_queries_of_a_group_have_equal_outputs(fast, seed, heads, options):
    """Bit for bit, whichever tile a head falls into, and in no other group."""
    h, h_kv = heads
    q, k, v, _, _ = arrays(seed, (1, h_kv), 9, 17)
    o, lse = fast.attention(*tensors(np.repeat(q, h, axis=0), k, v), **options)
    for head in range(h):
        first = head // (h // h_kv) * (h // h_kv)
        exactly(o[:, :, head], o[:, :, first], "output")
        exactly(lse[:, head], lse[:, first], "log-sum-exp")
    if h_kv > 1:
        assert not torch.equal(o[:, :, 0], o[:, :, h - 1])


@given(st.integers(1, 2), st.integers(0, 5), HEADS, st.integers(1, 4))
def test_packing_is_a_permutation_and_pooling_a_mean(fast, b, n, heads, d):
    """Integers, so that every form is exact; spec and fast number rows alike."""
    h, h_kv = heads
    x = np.arange(b * n * h * d, dtype=float).reshape(b, n, h, d)
    packed = fast.pack(inputs.tensor(x, "float32"), h_kv)
    for i in range(b):
        exactly(packed[i].transpose(0, 1), grouped.pack(x[i].swapaxes(0, 1), h_kv), "packed")
    exactly(fast.unpack(packed, h // h_kv), x, "and back")
    exactly(grouped.unpack(grouped.pack(x[0].swapaxes(0, 1), h_kv), h // h_kv), x[0].swapaxes(0, 1), "and back, spec")
    w = 105.0 * np.arange(h * d).reshape(h, d)  # divisible by every group
    exactly(fast.mean_pool(inputs.tensor(w, "float32"), h_kv), grouped.mean_pool(w, h_kv), "pooled")
    exactly(grouped.mean_pool(w, h_kv)[0], w[: h // h_kv].sum(0) / (h // h_kv), "the mean of the first group")


def test_wrong_arguments_are_named(fast):
    q, k = torch.zeros(1, 4, 6, 8, device=inputs.target.device()), torch.zeros(1, 4, 4, 8, device=inputs.target.device())
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool, device=q.device)
    for call, name in (
        (lambda: fast.attention(q, k, k), "q"),
        (lambda: fast.attention(q, q, q, mask=mask, causal=True), "mask"),
        (lambda: fast.backward(q, q, q, q, bias=mask.float(), window=(1, 0)), "bias"),
        (lambda: fast.pack(q, 4), "h_kv"),
        (lambda: fast.unpack(q, 3), "x"),
        (lambda: fast.mean_pool(q[0, 0], 4), "h_kv"),
        (lambda: grouped.attention(np.zeros((3, 1, 1)), np.zeros((2, 1, 1)), np.zeros((2, 1, 1))), "q"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
