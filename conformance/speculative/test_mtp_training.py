"""Multi-token prediction trained: one module, and a loss whose labels end with the text."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import regimes, seeds, tensor, values
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.speculative import eagle, mtp

FLOAT32 = Precision("float32")


def labeled(seed, K, T, V=4):
    probs = eagle.softmax(values("normal", [(K, T, V)], seed)[0])
    return np.float32(probs).astype(float), np.random.default_rng(seed).integers(0, V, T + 1)


@given(seeds, st.integers(1, 4), st.integers(1, 5), st.sampled_from([0.1, 0.3, 1.0]))
def test_the_loss_agrees_and_the_last_places_have_no_label(fast, seed, K, T, weight):
    """The last k places of depth k hold NaN, and nobody notices. The gradient is -1 / p at the labels, over their number."""
    probs, tokens = labeled(seed, K, T)
    for k in range(1, K + 1):
        probs[k - 1, max(T - k, 0) :] = np.nan
    x = tensor(probs[None], "float32").requires_grad_()
    loss = fast.loss(x, tensor(tokens[None]), weight)
    if T == 1:
        assert mtp.loss(probs, tokens, weight) == 0 == loss.item()
        return
    agree(loss[None], bounded(lambda probs: mtp.loss(probs, tokens, weight)[None], probs, precision=FLOAT32), "loss")

    def gradient(probs):
        labels = np.zeros((K, T, 4))
        for k in range(1, min(K, T - 1) + 1):
            labels[k - 1, np.arange(T - k), tokens[k + 1 :]] = 1 / (T - k)
        return np.where(labels > 0, -weight / K * labels / probs, 0.0)

    (slope,) = torch.autograd.grad(loss, x)
    agree(slope[0], bounded(gradient, np.where(np.isnan(probs), 1.0, probs), precision=FLOAT32), "gradient")


def test_tokens_marked_as_unlabeled_do_not_count(fast):
    probs, tokens = labeled(3, 2, 4)
    padded = torch.cat([tensor(tokens), torch.full((2,), -100)])
    rows = torch.cat([tensor(probs, "float32"), torch.full((2, 2, 4), torch.nan)], 1)
    exactly(fast.loss(rows[None], padded[None], 0.3), fast.loss(rows[None, :, :4], padded[None, :5], 0.3), "loss")


@given(regimes, seeds, st.sampled_from([1, 7]))
def test_one_module_agrees(fast, regime, seed, D):
    h, embed, m = values(regime, [(3, D), (5, D), (D, 2 * D)], seed, "float32")
    tokens = np.random.default_rng(seed).integers(0, 5, 3)
    states, *weights = (tensor(x, "float32") for x in (h[None], embed, m))
    actual = fast.module(states, tensor(tokens[None]), *weights, lambda z: z)
    run = lambda h, embed, m: mtp.module(h, tokens, embed, m, lambda z: z)
    agree(actual[0], bounded(run, h, embed, m, precision=FLOAT32), "states")


def test_texts_of_the_wrong_length_are_named(fast):
    with pytest.raises(ValueError, match="tokens must"):
        fast.loss(torch.ones(1, 2, 3, 4), torch.zeros(1, 3, dtype=torch.int64), 1.0)
