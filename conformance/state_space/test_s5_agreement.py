"""S5 on real values: derived bounds, angles far from the start, gradients, packing, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.state_space.test_s4d import back, complex_tensor
from twofold.conformance.state_space.test_s5 import constants, exact_model, in_frame, model_tensors, parts, real, sample_by_sample, whole
from twofold.spec.state_space import s5

lengths = st.sampled_from([1, 17, 35])
WHAT = "outputs", "real parts of the state", "imaginary parts"


def demand(found, expected, values):
    """Outputs and final states of one sequence, against bounds that ran along in other text than the definition."""
    for actual, bound, value, what in zip(parts(inputs.array(found[0])[0], back(found[1])[0]), expected, values, WHAT, strict=True):
        bound.value = value
        agree(actual, bound, what)


@few
@given(inputs.seeds, inputs.dtypes(), inputs.layouts, lengths, st.sampled_from([64, 16]))
@example(0, "float32", "contiguous", 35, 16)
def test_outputs_and_states_agree_with_the_definition(fast, seed, dtype, layout, T, chunk):
    u, *model, S0 = arguments = real(seed, T, dtype=dtype)
    given_ = inputs.tensor(u[None], dtype, layout), *model_tensors(*model), complex_tensor(S0[None])
    contract = {"precision": Precision("float32"), "outputs": (dtype, "float32", "float32")}
    values = parts(*s5.recurrent(*arguments))
    demand(fast.scan(*given_, chunk=chunk), bounded(in_frame, *constants(*arguments), chunk, **contract), values)


@few
@given(inputs.seeds, inputs.dtypes(), lengths)
def test_sample_by_sample_agrees_with_the_definition(fast, seed, dtype, T):
    u, *model, S0 = arguments = real(seed, T, dtype=dtype)
    given_ = inputs.tensor(u[None], dtype), *model_tensors(*model), complex_tensor(S0[None])
    expected = bounded(
        lambda *x: sample_by_sample(*x[:-2], *(y * 1.0 for y in x[-2:])),
        *constants(*arguments), precision=Precision("float32"), outputs=(dtype, "float32", "float32"),
    )  # fmt: skip
    demand(fast.recurrent(*given_), expected, parts(*s5.recurrent(*arguments)))


def test_angles_keep_their_digits_far_from_the_start(fast):
    """One oscillator that hardly fades, struck once, after 1500 samples and hundreds of turns."""
    u, one = np.zeros((1500, 1)), np.ones((1, 1), complex)
    u[0] = 1.0
    arguments = u, np.array([-(2.0**-12) + 3.1j]), one, one, np.zeros(1), np.ones(1), np.zeros(1, complex)
    given_ = inputs.tensor(u[None], "float32"), *model_tensors(*arguments[1:-1]), complex_tensor(arguments[-1][None])
    rounded = arguments[0], back(given_[1]), *arguments[2:]
    expected = bounded(in_frame, *constants(*rounded), 64, precision=Precision("float32"))
    demand(fast.scan(*given_, chunk=64), expected, parts(*s5.recurrent(*rounded)))


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=4), st.sampled_from([64, 16]))
@example(0, [5, 0, 19], 16)
def test_packed_sequences_are_sequences(fast, seed, lengths, chunk):
    """Each as if alone, and gradients of what is linear, exactly; oscillators that turn, within their bounds."""
    rng, T, n = np.random.default_rng(seed), sum(lengths), len(lengths)
    u, model, S0 = rng.integers(-2, 3, (T, 3)) + 0.0, exact_model(5, 3), whole(rng, n, 5)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    packed = inputs.tensor(edges, "int32")
    leaves = inputs.tensor(u[None], "float32").requires_grad_(), complex_tensor(S0).requires_grad_()
    y, states = fast.scan(leaves[0], *model_tensors(*model), leaves[1], chunk=chunk, cu_seqlens=packed)
    dy, dS = rng.integers(-2, 3, (1, T, 3)) + 0.0, whole(rng, n, 5)
    du, dS0 = torch.autograd.grad((y, states), leaves, (inputs.tensor(dy, "float32"), complex_tensor(dS)))
    other, others = rng.integers(-2, 3, (T, 3)) + 0.0, whole(rng, n, 5)
    for m in range(n):
        here = slice(edges[m], edges[m + 1])
        output, state = s5.recurrent(u[here], *model, S0[m])
        exactly(y[0, here], output, f"outputs of sequence {m} of lengths {lengths}")
        exactly(back(states)[m], state, f"final state of sequence {m} of lengths {lengths}")
        output, state = s5.recurrent(other[here], *model, others[m])
        slope = np.sum(inputs.array(du)[0, here] * other[here]) + np.real(np.sum(np.conj(back(dS0)[m]) * others[m]))
        exactly(slope, np.sum(dy[0, here] * output) + np.real(np.sum(np.conj(dS[m]) * state)), f"gradients of sequence {m}")
    _, *turning, _ = real(seed, 0)
    y, states = fast.scan(leaves[0], *model_tensors(*turning), leaves[1], chunk=chunk, cu_seqlens=packed)
    for m in range(n):
        here = slice(edges[m], edges[m + 1])
        alone = u[here], *turning, S0[m]
        expected = bounded(in_frame, *constants(*alone), chunk, precision=Precision("float32"))
        demand((y[:, here], states[m : m + 1]), expected, parts(*s5.recurrent(*alone)))


@few
@given(inputs.seeds, st.sampled_from([1, 7, 20]))
def test_gradients_of_the_model_are_exact_for_integrators(fast, seed, T):
    """At a rate of 0 and steps of 1: e^z and (e^z - 1) / z have slopes of 1 and 1/2, all else is linear. Derivatives are carried along."""
    rng = np.random.default_rng(seed)
    u, dy = rng.integers(-1, 2, (2, T, 2)) + 0.0
    Lam, B, C, D, dt, S0 = np.zeros(3, complex), whole(rng, 3, 2), whole(rng, 2, 3), np.ones(2), np.ones(3), whole(rng, 3)
    leaves = [x.requires_grad_() for x in model_tensors(Lam, B, C, D, dt)]
    y, _ = fast.scan(inputs.tensor(u[None], "float32"), *leaves, complex_tensor(S0[None]), chunk=16)
    gradients = [back(x) for x in torch.autograd.grad(y, leaves, inputs.tensor(dy[None], "float32"))]
    dLam, dB, dC, dD, ddt = whole(rng, 3), whole(rng, 3, 2), whole(rng, 2, 3), np.array([1.0, 2.0]), np.array([1.0, -1.0, 2.0])
    state, moved, expected = S0, [0.0, 0.0, 0.0], np.zeros(5)
    for x, weight in zip(u, dy):
        added = dLam * state + dLam / 2 * (B @ x), dB @ x, ddt * (B @ x)
        state, moved = state + B @ x, [before + new for before, new in zip(moved, added)]
        of_Lam, of_B, of_dt = (2 * np.real(C @ z) for z in moved)
        expected = expected + [weight @ slope for slope in (of_Lam, of_B, 2 * np.real(dC @ state), dD * x, of_dt)]
    for name, gradient, other, value in zip(("Lam", "B", "C", "D", "dt"), gradients, (dLam, dB, dC, dD, ddt), expected, strict=True):
        exactly(np.real(np.sum(np.conj(gradient) * other)), value, f"d{name}")


def test_gradients_of_rates_and_steps_are_what_differences_approach(fast):
    """Central differences of the definition come closer four times with half the distance: the gradient is their limit.

    Of the scan where it takes float64, which the kernels of a GPU do not.
    """
    u, *model, S0 = real(0, 19)
    rng = np.random.default_rng(0)
    dy, dS = rng.standard_normal((19, 3)), rng.standard_normal(5) + 1j * rng.standard_normal(5)
    others = [rng.standard_normal(x.shape) + (1j * rng.standard_normal(x.shape) if np.iscomplexobj(x) else 0) for x in model]
    others[-1] = 0.01 * others[-1]

    def value(h):
        y, state = s5.recurrent(u, *(x + h * other for x, other in zip(model, others)), S0)
        return np.sum(dy * y) + np.real(np.sum(np.conj(dS) * state))

    for form in [fast.recurrent, fast.scan] if getattr(fast, "side", "torch") == "torch" else [fast.recurrent]:
        leaves = [x.requires_grad_() for x in model_tensors(*model, "float64")]
        found = form(inputs.tensor(u[None], "float64"), *leaves, complex_tensor(S0[None], "complex128"))
        gradients = torch.autograd.grad(found, leaves, (inputs.tensor(dy[None], "float64"), complex_tensor(dS[None], "complex128")))
        slope = sum(np.real(np.sum(np.conj(back(g)) * x)) for g, x in zip(gradients, others, strict=True))
        errors = [abs((value(h) - value(-h)) / (2 * h) - slope) for h in (2.0**-5, 2.0**-6, 2.0**-7)]
        assert all(3.5 < a / b < 4.5 for a, b in zip(errors, errors[1:])), errors


def test_a_slow_oscillator_writes_the_length_of_its_step(fast):
    """From both sides of the place where a series takes over, beside a longer one, whose rest is below 1e-18."""
    size = np.exp2(np.arange(-16.0, -8.0, 0.25))
    Lam, ones = size * np.exp(1j * np.linspace(1.6, 4.6, len(size))), np.ones((len(size), 1))
    model = model_tensors(Lam, ones + 0j, ones.T + 0j, np.zeros(1), ones[:, 0], "float64")
    _, state = fast.step(complex_tensor(0 * Lam[None], "complex128"), inputs.tensor(np.ones((1, 1)), "float64"), *model)
    series = 1 + Lam / 2 * (1 + Lam / 3 * (1 + Lam / 4 * (1 + Lam / 5 * (1 + Lam / 6))))
    assert np.all(np.abs(back(state)[0] - series) <= 8 * 2.0**-53)


def some(**changes):
    pairs = lambda *shape: torch.ones(shape, dtype=torch.complex64)
    arguments = {"u": torch.ones(2, 5, 3), "Lam": -pairs(4), "B": pairs(4, 3), "C": pairs(3, 4), "D": torch.ones(3), "dt": torch.ones(4)}
    arguments |= {"S0": pairs(2, 4)} | changes
    return {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"Lam": torch.ones(4)}, TypeError, "Lam must"),
        ({"Lam": torch.ones(2, 4, dtype=torch.complex64)}, ValueError, "Lam must"),
        ({"B": torch.ones(3, 4, dtype=torch.complex64)}, ValueError, "B must"),
        ({"B": torch.ones(4, 3)}, TypeError, "B must"),
        ({"C": torch.ones(3, 5, dtype=torch.complex64)}, ValueError, "C must"),
        ({"C": torch.ones(3, 4, dtype=torch.complex128)}, TypeError, "C must"),
        ({"D": torch.ones(4)}, ValueError, "D must"),
        ({"dt": torch.ones(1)}, ValueError, "dt must"),
        ({"dt": torch.ones(4, dtype=torch.float16)}, TypeError, "dt must"),
        ({"S0": torch.ones(1, 4, dtype=torch.complex64)}, ValueError, "S0 must"),
        ({"S0": torch.ones(2, 4)}, TypeError, "S0 must"),
        ({"u": torch.ones(2, 5, 3, dtype=torch.int32)}, TypeError, "u must"),
        ({"u": torch.ones(2, 5, 4)}, ValueError, "must"),
        ({"chunk": 0}, ValueError, "chunk must"),
        ({"Lam": torch.ones(4, dtype=torch.complex64), "check": True}, ValueError, "g must"),
        ({"cu_seqlens": torch.tensor([0, 3, 5])}, ValueError, "cu_seqlens must"),
        ({"cu_seqlens": torch.zeros(0, dtype=torch.int32)}, ValueError, "cu_seqlens must"),
        ({"u": torch.ones(1, 5, 3), "S0": None, "cu_seqlens": torch.tensor([0, 4]), "check": True}, ValueError, "cu_seqlens must"),
        ({"u": torch.ones(1, 5, 3), "S0": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    with pytest.raises(error, match=message):
        fast.scan(**some(**wrong))


def test_bad_states_are_named(fast):
    arguments = some()
    state, u = arguments.pop("S0"), arguments.pop("u")[:, 0]
    with pytest.raises(ValueError, match="state must"):
        fast.step(state[:1], u, **arguments)
    with pytest.raises(TypeError, match="state must"):
        fast.step(state.real, u, **arguments)


def test_it_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    u, *model, S0 = real(0, 19)
    arguments = inputs.tensor(u[None], "float32"), *model_tensors(*model), complex_tensor(S0[None])
    compiled = torch.compile(lambda *x: fast.scan(*x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(*arguments), fast.scan(*arguments), strict=True):
        exactly(back(actual), back(expected), "compiled")
