"""Mixture of heads: what it is when all gates are equal, which heads a token uses, and what balance means."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import moh

exact64 = Precision("float64", "float64")
HEADS = st.sampled_from([(2, 6), (1, 3), (0, 4), (3, 1)])  # shared and routed


def weights(seed, heads, d=5, dtype="float32", n=7):
    return inputs.values("normal", [(n, d), (2, d), (heads[0], d), (heads[1], d)], seed, dtype)


@given(inputs.seeds, st.integers(1, 5), st.integers(0, 6))
def test_equal_gates_are_multi_head_attention(fast, seed, heads, n):
    """Integers: a gated sum with gates of 1 is the product of all heads side by side with the whole projection."""
    rng = np.random.default_rng(seed)
    o, w_o = rng.integers(-8, 9, (heads, n, 3)).astype(float), rng.integers(-8, 9, (heads, 4, 3)).astype(float)
    whole = np.concatenate(list(o), axis=1) @ np.concatenate(list(w_o), axis=1).T
    exactly(moh.combine(o, np.ones((n, heads)), w_o), whole, "spec")
    actual = fast.combine(inputs.tensor(o.transpose(1, 0, 2)[None], "float32"), torch.ones(1, n, heads, device=inputs.target.device()),
                          inputs.tensor(w_o, "float32"))  # fmt: skip
    exactly(actual[0], whole, "fast")


@given(inputs.seeds, HEADS, st.integers(0, 6), st.booleans())
@example(0, (2, 6), 3, True)
def test_a_token_uses_its_k_highest_heads(fast, seed, heads, k, tied):
    """Told one by one from the scores; equal scores go to the lowest index. All routed heads used: gates are a softmax mixture."""
    k = min(k, heads[1])
    x, w_h, w_s, w_r = weights(seed, heads)
    if tied:  # scores in whole numbers, which often meet
        x, w_r = np.sign(x), np.sign(w_r)
    g, scores = moh.gates(x, w_h, w_s, w_r, k), x @ w_r.T
    used = np.zeros_like(scores, dtype=bool)
    for t, row in enumerate(scores):
        for _ in range(k):
            left = [h for h in range(heads[1]) if not used[t, h]]
            used[t, max(left, key=lambda h: (row[h], -h))] = True
    exactly(g[:, heads[0] :] > 0, used, "spec")
    if k == heads[1] and heads[0]:
        total = bounded(lambda *a: np.sum(moh.gates(*a), axis=1), x, w_h, w_s, w_r, k, precision=exact64)
        agree(np.ones(len(x)), total, "sum of all gates")
    actual = fast.gates(*(inputs.tensor(a, "float32") for a in (x[None], w_h, w_s, w_r)), k)[0]
    gap = np.abs(scores[:, :, None] - scores[:, None, :])
    close = (gap > 0) & (gap < 2.0**-20 * 5 * np.abs(x).max() * np.abs(w_r).max())  # whose order rounding may decide
    sure = ~close.any((1, 2)) if heads[1] else np.ones(len(x), bool)
    exactly((actual[:, heads[0] :] > 0)[inputs.tensor(sure)], used[sure], "fast")


@given(inputs.seeds, HEADS, st.integers(0, 6))
def test_gates_and_sums_agree_with_the_definition(fast, seed, heads, k):
    k, (x, w_h, w_s, w_r) = min(k, heads[1]), weights(seed, heads)
    tensors = [inputs.tensor(a, "float32") for a in (x[None], w_h, w_s, w_r)]
    expected = bounded(moh.gates, x, w_h, w_s, w_r, k, precision=Precision("float32"))
    agree(fast.gates(*tensors, k)[0], expected, "gates")
    agree(fast.balance_loss(tensors[0], tensors[3], k), bounded(moh.balance_loss, x, w_r, k, precision=Precision("float32")), "balance")
    count = sum(heads)
    o, g, w_o = inputs.values("normal", [(count, 7, 3), (7, count), (count, 4, 3)], seed + 1, "float32")
    actual = fast.combine(*(inputs.tensor(a, "float32") for a in (o.transpose(1, 0, 2)[None], g[None], w_o)))
    agree(actual[0], bounded(moh.combine, o, g, w_o, precision=Precision("float32")), "sum")


@given(inputs.seeds, st.integers(1, 4))
def test_balance_is_least_where_heads_are_equally_probable(seed, k):
    """Tokens that agree: chosen heads are the most probable ones, so the loss is at least k / Hr, and equal to it without preferences."""
    x, _, _, w_r = weights(seed, (0, 4), n=1)
    alike = np.repeat(x, 3, axis=0)
    least = k / 4
    assert moh.balance_loss(alike, np.zeros_like(w_r), k) == least
    some = bounded(moh.balance_loss, alike, w_r, k, precision=exact64)
    assert some.value + some.error >= least


def test_unused_heads_get_no_gradient(fast):
    """Not a small one: none, neither their outputs nor their projections."""
    x, w_h, w_s, w_r = (inputs.tensor(a, "float32") for a in weights(0, (1, 5), n=1))
    g = fast.gates(x[None], w_h, w_s, w_r, 2)
    o, w_o = torch.randn(1, 1, 6, 3, device=g.device, requires_grad=True), torch.randn(6, 4, 3, device=g.device, requires_grad=True)
    fast.combine(o, g, w_o).sum().backward()
    unused = inputs.array(g[0, 0]) == 0
    assert unused.sum() == 3
    for gradient in (o.grad[0, 0], w_o.grad):
        exactly(inputs.array(gradient).reshape(6, -1).any(1), ~unused, "heads with a gradient")


def test_wrong_arguments_are_named(fast):
    x, w_h, w_s, w_r = (inputs.tensor(a, "float32") for a in weights(0, (1, 3)))
    for call, error, name in (
        (lambda: fast.gates(x[None], w_h, w_s, w_r, 4), ValueError, "k"),
        (lambda: fast.gates(x[None], w_h[:1], w_s, w_r, 1), ValueError, "w_h"),
        (lambda: fast.balance_loss(x[None, :0], w_r, 1), ValueError, "x"),
        (lambda: fast.combine(x[None, :, None], x[None], w_r[None]), ValueError, "g"),
    ):
        with pytest.raises(error, match=name):
            call()
