"""EAGLE trained: the loss and its gradients, what can be called wrongly, and that compilers see through it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import regimes, seeds, tensor, values
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import tiny_models
from twofold.spec.speculative import eagle

FLOAT32 = Precision("float32")


@given(seeds, st.integers(1, 5))
def test_predicted_features_agree(fast, seed, T):
    w, layer = tiny_models.weights(seed, V=5, D=4, T=T), tiny_models.attention(seed, D=4)
    features, tokens, embed, fc, _ = w.tensors()
    run = lambda features, embed, fc: eagle.predict(features, w.tokens, embed, fc, layer.spec)
    agree(fast.predict(features, tokens, embed, fc, layer.fast)[0], bounded(run, w.features, w.embed, w.fc, precision=FLOAT32), "features")


@given(seeds, st.integers(1, 5), st.integers(1, 3))
def test_the_last_predicted_feature_gives_the_first_drafted_row(fast, seed, T, gamma):
    """Integers: what training runs in one pass is what drafting runs at the end of every prefix."""
    w, layer = tiny_models.weights(seed, V=6, D=3, T=T, exact=True), tiny_models.counting(seed, D=3)
    features, tokens, embed, fc, head = w.tensors()
    predicted = fast.predict(features, tokens, embed, fc, layer.fast)
    exactly(predicted[0], eagle.predict(w.features, w.tokens, w.embed, w.fc, layer.spec), "predicted features")
    for t in range(1, T + 1):
        q = fast.draft(features[:, :t], tokens[:, : t + 1], embed, fc, layer.fast, head, gamma)[1]
        exactly(q[0, 0], torch.softmax(predicted[0, t - 1] @ head.T, -1), f"law after {t} features")


@given(regimes, seeds, st.integers(1, 4), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_loss_agrees(fast, regime, seed, T, weight):
    predicted, features, head = values(regime, [(T, 3), (T, 3), (5, 3)], seed, "float32")
    loss = fast.loss(*(tensor(x, "float32") for x in (predicted[None], features[None], head)), weight)
    run = lambda predicted, features, head: eagle.loss(predicted, features, head, weight)[None]
    agree(loss[None], bounded(run, predicted, features, head, precision=FLOAT32), "loss")


@given(seeds, st.integers(1, 4))
def test_its_gradient_agrees(fast, seed, T):
    """The error cut to [-1, 1] over the number of channels, and (q - p) through the LM head over the number of places."""
    predicted, features, head = values("normal", [(T, 3), (T, 3), (5, 3)], seed, "float32")
    x = tensor(predicted[None], "float32").requires_grad_()
    loss = fast.loss(x, tensor(features[None], "float32"), tensor(head, "float32"))

    def gradient(predicted, features, head):
        difference = predicted - features
        cut = np.maximum(np.minimum(difference, 1.0), -1.0) / difference.size
        laws = eagle.softmax(predicted @ head.T) - eagle.softmax(features @ head.T)
        return cut + 0.1 / T * (laws @ head)

    agree(torch.autograd.grad(loss, x)[0][0], bounded(gradient, predicted, features, head, precision=FLOAT32), "gradient")


def test_equal_features_leave_only_the_entropy_of_their_laws(fast):
    head = np.zeros((4, 2))  # uniform laws
    features = np.ones((2, 2))
    assert eagle.loss(features, features, head, 1.0) == np.log(4.0)
    assert fast.loss(*(tensor(x, "float32") for x in (features[None], features[None], head)), 0.0).item() == 0


def test_a_drafter_learns_and_keeps_more(fast):
    """A target that tells from its feature which token follows: a layer that starts from noise learns to continue the features."""
    V, D = 5, 6
    generator = torch.Generator().manual_seed(1)
    embed, head = torch.randn(V, D, generator=generator), 4 * torch.eye(V, D)
    tokens = torch.arange(13)[None] % V
    features = torch.nn.functional.one_hot((tokens + 1) % V, D).float()  # each feature names the next token
    fc = torch.randn(D, 2 * D, generator=generator).div_(4).requires_grad_()
    kept = lambda: fast.draft(features[:, :2], tokens[:, :3], embed, fc, lambda z: z, head, 4)[0][0].tolist()
    before = kept()
    for _ in range(100):
        loss = fast.loss(fast.predict(features[:, :-1], tokens, embed, fc, lambda z: z), features[:, 1:], head)
        with torch.no_grad():
            fc -= 0.1 * torch.autograd.grad(loss, fc)[0]
    assert before != kept() == [(3 + i) % V for i in range(4)]


def test_gradients_reach_every_weight_through_a_draft(fast):
    w, layer = tiny_models.weights(3, V=5, D=4, T=3), tiny_models.attention(3, D=4)
    features, tokens, *weights = (x.requires_grad_() if x.is_floating_point() else x for x in w.tensors())
    for options, face in (({}, layer.fast), ({"cache": ()}, layer.cached)):
        q = fast.draft(features, tokens, *weights[:2], face, weights[2], 3, **options)[1]
        for slope in torch.autograd.grad(q[:, :, 0].sum(), [features, *weights]):
            assert slope.abs().sum() > 0 and slope.isfinite().all()


def some(**changes):
    shapes = {"features": (2, 3, 4), "embed": (5, 4), "fc": (4, 8), "lm_head": (5, 4)}
    right = {name: torch.ones(shape) for name, shape in shapes.items()} | {"tokens": torch.zeros(2, 4, dtype=torch.int64)}
    return right | {"layer": lambda z: z, "gamma": 2} | changes


@pytest.mark.parametrize(("wrong", "message"), [
    ({"features": torch.ones(3, 4)}, "features must"), ({"tokens": torch.zeros(2, 3, dtype=torch.int64)}, "tokens must"),
    ({"tokens": torch.zeros(2, 4)}, "tokens must"), ({"embed": torch.ones(5, 3)}, "embed must"), ({"fc": torch.ones(4, 4)}, "fc must"),
    ({"fc": torch.ones(4, 8).double()}, "fc must"), ({"lm_head": torch.ones(6, 4)}, "lm_head must"), ({"gamma": -1}, "gamma must"),
    ({"lengths": torch.ones(3, dtype=torch.int64)}, "lengths must"), ({"lengths": torch.ones(2)}, "lengths must"),
    ({"token": torch.ones(2, 3)}, "token must"), ({"token": torch.ones(2, 2), "seed": 1}, "token excludes"),
    ({"seed": 1, "request": torch.zeros(3, dtype=torch.int64)}, "request must"), ({"seed": 1, "position": torch.zeros(2)}, "position must"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**some(**wrong))


@pytest.mark.parametrize("cached", [False, True])
def test_it_compiles(fast, cached):
    w, layer = tiny_models.weights(3, V=5, D=4, T=3), tiny_models.attention(3, D=4)
    features, tokens, embed, fc, head = w.tensors(B=2)
    uniform, lengths = torch.full((2, 2), 0.4), torch.tensor([3, 2])
    face, options = (layer.cached, {"cache": ()}) if cached else (layer.fast, {})
    call = lambda features: fast.draft(features, tokens, embed, fc, face, head, 2, token=uniform, lengths=lengths, **options)[:2]
    for compiled, eager in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(features), call(features), strict=True):
        exactly(compiled, eager, "compiled")
