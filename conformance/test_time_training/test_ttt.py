"""TTT layers: both forms are one, gradients are gradients, and the simplest case is the delta rule."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine
from twofold.spec.test_time_training import ttt

KINDS = st.sampled_from(["plain", "normed"])
SIZES = st.sampled_from([(0, 4), (1, 4), (4, 4), (5, 4), (17, 16), (18, 7)])  # tokens, mini-batch
exact64 = Precision("float64", "float64")


def problem(seed, T, batch, kind, D=5, V=None):
    """q, k, v, eta, W, b, ln: moderate numbers of float32, steps that differ from row to row and from column to column."""
    rng = np.random.default_rng(seed)
    V = D if kind == "normed" or V is None else V
    single = lambda x: inputs.rounded(x, "float32")
    q, k, v = (single(rng.standard_normal((T, n))) for n in (D, D, V))
    eta = single(rng.random((T, batch)) / (2 * D))
    W, b = single(rng.standard_normal((D, V)) / D), single(rng.standard_normal(V) / 4)
    ln = single(1 + rng.standard_normal(V) / 4), single(rng.standard_normal(V) / 4)
    return q, k, v, eta, W, b, ln if kind == "normed" else None


def two_layers(seed, T, batch, kind, D=5, M=6):
    q, k, v, eta, _, b2, ln = problem(seed, T, batch, kind, D)
    rng = np.random.default_rng(seed + 1)
    W1, b1, W2 = (inputs.rounded(rng.standard_normal(shape) / 4, "float32") for shape in ((D, M), M, (M, len(b2))))
    return q, k, v, eta, W1, b1, W2, b2, ln


def on_fast(form, q, k, v, eta, *weights_and_ln, batch, dtype="float32"):
    *weights, ln = weights_and_ln
    rows = [inputs.tensor(x[None, :, None], dtype) for x in (q, k, v, eta)]
    weights = [inputs.tensor(x[None, None], "float32") for x in weights]
    ln = None if ln is None else tuple(inputs.tensor(x[None], "float32") for x in ln)
    o, after = form(*rows, *weights, ln, batch)
    return inputs.array(o)[0, :, 0], *(inputs.array(x)[0, 0] for x in after)


def form_of(form, batch):
    """One of the forms as a function of arrays and of nothing else: outputs, then weights."""
    return lambda *arguments: (lambda o, weights: (o, *weights))(*form(*arguments, batch))


def hold(actual, expected, what):
    for one, other, name in zip(actual, expected, ("outputs", "W1", "b1", "W2", "b2"), strict=False):
        agree(one, other, f"{name}, {what}")


def loss_of(z_of, k, v, ln):
    """Half the squared distance of f(k) to v, written out with PyTorch."""
    z = z_of(k)
    if ln is not None:
        z = k + torch.nn.functional.layer_norm(z, z.shape[-1:], ln[0], ln[1], 1e-6)
    return (z - v).square().sum() / 2


@given(inputs.seeds, SIZES, KINDS)
@example(0, (18, 7), "normed")
@example(0, (18, 7), "plain")
def test_the_dual_form_is_the_definition(fast, seed, sizes, kind):
    """Batches that do not divide the text, steps that differ for every pair."""
    T, batch = sizes
    arguments = problem(seed, T, batch, kind)
    own, other = (bounded(form_of(form, batch), *arguments, precision=exact64) for form in (ttt.primal, ttt.dual))
    for one, two in zip(own, other, strict=True):
        coincide(one, two, "spec")
    for form in ("primal", "dual"):
        expected = bounded(form_of(getattr(ttt, form), batch), *arguments, precision=Precision("float32"))
        hold(on_fast(getattr(fast, form), *arguments, batch=batch), expected, form)


@given(inputs.seeds, SIZES, KINDS)
@example(0, (18, 7), "normed")
def test_two_layers_are_the_definition(fast, seed, sizes, kind):
    arguments = two_layers(seed, *sizes, kind)
    hold(
        on_fast(fast.mlp, *arguments, batch=sizes[1]),
        bounded(form_of(ttt.mlp, sizes[1]), *arguments, precision=Precision("float32")),
        "two layers",
    )


@given(inputs.seeds, KINDS)
def test_gradients_are_those_of_automatic_differentiation(seed, kind):
    """For one layer and for two: weights after one batch with one step size are those of a step of gradient descent, within their bound."""
    T, step = 6, 0.05
    wide = lambda x: torch.tensor(x, dtype=torch.float64)
    q, k, v, _, W, b, ln = problem(seed, T, T, kind)
    eta = np.full((T, T), step)
    norm = None if ln is None else tuple(map(wide, ln))
    leaves = [wide(W).requires_grad_(), wide(b).requires_grad_()]
    slopes = torch.autograd.grad(loss_of(lambda x: x @ leaves[0] + leaves[1], wide(k), wide(v), norm), leaves)
    _, *after = bounded(form_of(ttt.primal, T), q, k, v, eta, W, b, ln, precision=exact64)
    for name, expected, leaf, slope, moves in zip(("W", "b"), after, leaves, slopes, (True, ln is not None), strict=True):
        agree((leaf - step * slope * moves).detach(), expected, name)
    q, k, v, _, *weights, ln = two_layers(seed, T, T, kind)
    norm = None if ln is None else tuple(map(wide, ln))
    W1, b1, W2, b2 = leaves = [wide(x).requires_grad_() for x in weights]
    model = lambda x: torch.nn.functional.gelu(x @ W1 + b1, approximate="tanh") @ W2 + b2
    slopes = torch.autograd.grad(loss_of(model, wide(k), wide(v), norm), leaves)
    _, *after = bounded(form_of(ttt.mlp, T), q, k, v, eta, *weights, ln, precision=exact64)
    for name, expected, leaf, slope in zip(("W1", "b1", "W2", "b2"), after, leaves, slopes, strict=True):
        moves = ln is not None or name.startswith("W")
        agree((leaf - step * slope * moves).detach(), expected, name)


@given(inputs.seeds, st.integers(0, 12))
def test_one_token_at_a_time_without_a_norm_is_the_delta_rule(seed, T):
    """Exactly, on integers: beta is the step, and the core erases what it reads."""
    rng = np.random.default_rng(seed)
    q, k, v, W = (rng.integers(-1, 2, shape).astype(float) for shape in ((T, 3), (T, 3), (T, 2), (3, 2)))
    eta = rng.integers(0, 2, (T, 1)).astype(float) * (rng.permutation(T) < 3)[:, None]
    zero = np.zeros((T, 3))
    expected = affine.recurrent(q, eta * k, v, zero, k, -eta * k, W)
    o, (after, b) = ttt.primal(q, k, v, eta, W, batch=1)
    exactly(o, expected[0], "outputs")
    exactly(after, expected[1], "weights")
    exactly(b, np.zeros(2), "a bias that is not given stays zero")


@given(inputs.seeds, KINDS, st.integers(0, 3))
def test_a_run_resumes_between_batches_and_the_future_does_not_matter(seed, kind, batches):
    q, k, v, eta, W, b, ln = problem(seed, 18, 5, kind)
    o, after = ttt.dual(q, k, v, eta, W, b, ln, 5)
    at = 5 * batches
    cut = lambda where: [x[where] for x in (q, k, v, eta)]
    first, weights = ttt.dual(*cut(slice(0, at)), W, b, ln, 5)
    second, last = ttt.dual(*cut(slice(at, None)), *weights, ln, 5)
    for one, other in zip((np.concatenate([first, second]), *last), (o, *after), strict=True):
        exactly(one, other, "resumed")
    changed = [np.concatenate([x[:at], x[at:][::-1]]) for x in (q, k, v, eta)]
    exactly(ttt.dual(*changed, W, b, ln, 5)[0][:at], o[:at], "outputs before what changed")


@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 4, 9]), min_size=1, max_size=3), KINDS)
def test_packed_sequences_have_batches_of_their_own(fast, seed, lengths, kind):
    parts = [problem(seed + n, T, 4, kind) for n, T in enumerate(lengths)]
    rows = [inputs.tensor(np.concatenate([part[i] for part in parts])[None, :, None], "float32") for i in range(4)]
    W, b = (inputs.tensor(np.stack([part[i] for part in parts])[:, None], "float32") for i in (4, 5))
    ln = parts[0][6]
    norm = None if ln is None else tuple(inputs.tensor(x[None], "float32") for x in ln)
    edges = inputs.tensor(np.concatenate([[0], np.cumsum(lengths)]), "int64")
    o, after = fast.dual(*rows, W, b, norm, 4, cu_seqlens=edges)
    begin = 0
    for n, part in enumerate(parts):
        expected = bounded(form_of(ttt.dual, 4), *part[:6], ln, precision=Precision("float32"))
        hold((o[0, begin : begin + lengths[n], 0], after[0][n, 0], after[1][n, 0]), expected, f"sequence {n} of lengths {lengths}")
        begin += lengths[n]


def test_gradients_reach_everything(fast):
    """Through a layer that learns by gradients: by finite differences, in float64."""
    arguments = problem(0, 6, 4, "normed", D=3)
    leaves = [inputs.tensor(x[None, :, None] if n < 4 else x[None, None], "float64").requires_grad_() for n, x in enumerate(arguments[:6])]
    norm = [inputs.tensor(x[None], "float64").requires_grad_() for x in arguments[6]]
    call = lambda *x: (lambda o, after: (o, *after))(*fast.dual(*x[:6], (x[6], x[7]), 4))
    assert torch.autograd.gradcheck(call, (*leaves, *norm), fast_mode=True)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"eta": torch.zeros(1, 5, 2, 3)}, "eta must"), ({"batch": 0}, "batch must"), ({"W": torch.zeros(1, 2, 4, 3)}, "W must"),
        ({"ln": (torch.ones(2, 3), torch.ones(2, 3))}, "gamma must"), ({"k": torch.zeros(1, 4, 2, 4)}, "k must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, message):
    shapes = {"q": (1, 5, 2, 4), "k": (1, 5, 2, 4), "v": (1, 5, 2, 4), "eta": (1, 5, 2, 16), "W": (1, 2, 4, 4)}
    arguments = {name: torch.zeros(shape) for name, shape in shapes.items()} | wrong
    with pytest.raises(ValueError, match=message):
        fast.dual(**arguments)
