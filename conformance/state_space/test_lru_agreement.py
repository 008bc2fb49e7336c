"""LRU on real values, within derived bounds; gradients, packing, rows; angles far from the start; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import lru

RATES = {"slow": -7.0, "usual": -2.0, "quick": 1.0}  # nu: |lambda| near 0.999, 0.87 and 0.07
rates, lengths = st.sampled_from(sorted(RATES)), st.sampled_from([1, 17, 35])
WHAT = "du", "dnu", "dtheta", "dB", "dC", "dD", "dS0"


def contract(dtype):
    """Nothing that was computed is rounded to the format of the inputs but the outputs."""
    return Precision(dtype, operand="float32")


def model_of(rates, seed, H=7, N=20):
    rng = np.random.default_rng(seed)
    B, C = rng.standard_normal((2, N, H)) / 4, rng.standard_normal((2, H, N)) / 4
    arrays = RATES[rates] + rng.standard_normal(N) / 2, rng.uniform(0, np.pi, N), B, C, rng.standard_normal(H)
    return [inputs.rounded(y, "float32") for y in arrays]


def tokens_of(seed, T, dtype, H=7, N=20):
    """u, S0, d outputs, d final state."""
    u, dy = inputs.values("normal", [(T, H), (T, H)], seed, dtype)
    return u, *(inputs.rounded(y, "float32") for y in np.random.default_rng(seed + 1).standard_normal((2, 2, N))), dy


def bound(form, u, model, *rest, dtype="float32", outputs=None):
    """What an implementation may differ by that takes angles in float64: their cosines and sines are constants, rounded once."""
    nu, theta, *others = model
    text = lambda u, nu, B, C, D, *rest: form(u, nu, theta, B, C, D, *rest)
    return bounded(text, u, nu, *others, *rest, precision=contract(dtype), outputs=outputs)


def tensors(arrays):
    return [inputs.tensor(y, "float32") for y in arrays]


@few
@given(rates, inputs.seeds, inputs.dtypes(), inputs.layouts, lengths, st.sampled_from([64, 16]))
@example("slow", 0, "float32", "contiguous", 35, 16)
def test_outputs_and_states_agree_with_the_definition(fast, rates, seed, dtype, layout, T, chunk):
    model, (u, S0, _, _) = model_of(rates, seed), tokens_of(seed, T, dtype)
    y, state = fast.scan(inputs.tensor(u[None], dtype, layout), *tensors(model), inputs.tensor(S0[None], "float32"), chunk)
    expected = bound(lru.scan, u, model, S0, chunk, dtype=dtype, outputs=(dtype, "float32"))
    values = lru.recurrent(u, *model, S0)
    for actual, wanted, value, what in zip((y[0], state[0]), expected, values, ("output", "final state"), strict=True):
        wanted.value = value
        agree(actual, wanted, what)


@few
@given(rates, inputs.seeds, inputs.dtypes(), lengths)
@example("slow", 0, "float32", 35)
def test_gradients_agree_with_the_adjoint(fast, rates, seed, dtype, T):
    """Of everything; the adjoint is of the frame that turns, in which angles count from the start."""
    model, (u, S0, dS, dy) = model_of(rates, seed), tokens_of(seed, T, dtype)
    leaves = [inputs.tensor(u[None], dtype), *tensors(model), inputs.tensor(S0[None], "float32")]
    leaves = [y.requires_grad_() for y in leaves]
    gradients = torch.autograd.grad(fast.scan(*leaves, 64), leaves, (inputs.tensor(dy[None], dtype), inputs.tensor(dS[None], "float32")))
    formats = dtype, *["float32"] * 6
    expected = bound(lru.backward, u, model, dy, dS, S0, dtype=dtype, outputs=formats)
    for actual, wanted, what in zip(gradients, expected, WHAT, strict=True):
        agree(actual.reshape(wanted.shape), wanted, what)


@few
@given(rates, inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=4))
@example("usual", 0, [5, 0, 19, 1])
@example("usual", 0, [0, 7, 0])
def test_packed_sequences_are_sequences(fast, rates, seed, lengths):
    """Angles begin anew with each, and an empty one returns its own state."""
    model, parts = model_of(rates, seed), [tokens_of(seed + n, T, "float32") for n, T in enumerate(lengths)]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    u, S0 = np.concatenate([u for u, *_ in parts])[None], np.stack([S0 for _, S0, *_ in parts])
    y, states = fast.scan(*tensors([u, *model, S0]), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, (u, S0, *_) in enumerate(parts):
        expected = bound(lru.scan, u, model, S0, 16)
        agree(y[0, edges[n] : edges[n + 1]], expected[0], f"outputs of sequence {n} of lengths {lengths}")
        agree(states[n], expected[1], f"final state of sequence {n} of lengths {lengths}")
        if not len(u):
            exactly(states[n], S0, f"state of empty sequence {n}")


@few
@given(inputs.seeds)
def test_rows_do_not_meet(fast, seed):
    model, rows = model_of("usual", seed), [tokens_of(seed + n, 9, "float32") for n in range(3)]
    u, S0 = (np.stack(column) for column in list(zip(*rows))[:2])
    y, states = fast.scan(*tensors([u, *model, S0]))
    for n, (u, S0, *_) in enumerate(rows):
        expected = bound(lru.scan, u, model, S0, 64)
        agree(y[n], expected[0], f"outputs of row {n}")
        agree(states[n], expected[1], f"final state of row {n}")


def test_angles_far_from_the_start_keep_their_digits(fast):
    """After a million tokens of silence a state that turns and does not fade is where it should be: an angle in float32 is off by 0.1."""
    quiet = torch.zeros((1, 1_000_003, 1), device=inputs.target.device())
    if getattr(fast, "side", "torch") == "triton" and quiet.device.type == "cpu":
        quiet = quiet[:, :64]  # in the interpreter; angles are PyTorch's on either side
    theta, S0 = inputs.rounded(np.array([2.9, 0.1]), "float32"), np.array([[1.0, 3.0], [0.0, -2.0]])
    model = tensors([np.full(2, -200.0), theta, np.zeros((2, 2, 1)), np.zeros((2, 1, 2)), np.zeros(1)])
    _, state = fast.scan(quiet, *model, inputs.tensor(S0[None], "float32"))
    cos, sin = np.cos(quiet.shape[1] * theta), np.sin(quiet.shape[1] * theta)
    turned = lambda z: np.stack([cos * z[0] - sin * z[1], sin * z[0] + cos * z[1]])
    agree(state[0], bounded(turned, S0, precision=Precision("float32")), "state after a long silence")


def some(**changes):
    shapes = {"u": (1, 5, 3), "nu": (4,), "theta": (4,), "B": (2, 4, 3), "C": (2, 3, 4), "D": (3,), "S0": (1, 2, 4)}
    return {name: torch.ones(shape, device=inputs.target.device()) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"theta": torch.ones(3)}, ValueError, "theta must"),
        ({"B": torch.ones(4, 3)}, ValueError, "B must"),
        ({"B": torch.ones(2, 4, 3, dtype=torch.complex64)}, TypeError, "B must"),
        ({"C": torch.ones(2, 4, 3)}, ValueError, "C must"),
        ({"D": torch.ones(4)}, ValueError, "D must"),
        ({"u": torch.ones(5, 3)}, ValueError, "u must"),
        ({"S0": torch.ones(1, 4)}, ValueError, "S0 must"),
        ({"S0": torch.ones(2, 2, 4)}, ValueError, "S0 must"),
        ({"chunk": 0}, ValueError, "chunk must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    wrong = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in wrong.items()}
    with pytest.raises(error, match=message):
        fast.scan(**some(**wrong))


def test_it_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    arguments = some()
    compiled = torch.compile(lambda **x: fast.scan(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**arguments), fast.scan(**arguments), strict=True):
        exactly(actual, expected, "compiled")
