"""S4D with oscillators that turn: derived bounds, by the same steps in real numbers; gradients, packing, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.conformance.state_space.test_s4d import back, complex_tensor
from twofold.spec.state_space import s4d

FLOAT64 = Precision("float64", "float64")
lengths, kinds = st.sampled_from([1, 7, 16, 35]), st.sampled_from(["legs", "inv", "lin"])


def real(seed, kind, T, N=8, dtype="float32"):
    """u, Lam, C, D, dt, S0, all of them float32 numbers or pairs of such."""
    rng = np.random.default_rng(seed)
    pair = lambda x: inputs.rounded(x.real, "float32") + 1j * inputs.rounded(x.imag, "float32")
    C, S0 = (pair(x[0] + 1j * x[1]) for x in rng.standard_normal((2, 2, N // 2)))
    dt = float(inputs.rounded(np.exp2(rng.uniform(-6, -3, 1)), "float32")[0])
    return inputs.rounded(rng.standard_normal(T), dtype), pair(s4d.lambdas(N, kind)), C, 0.5, dt, S0


def parts(u, Lam, C, D, dt, S0):
    """The same as real arrays."""
    split = lambda x: (np.ascontiguousarray(x.real), np.ascontiguousarray(x.imag))
    return u, *split(Lam), *split(C), np.array(D), np.array(dt), *split(S0)


def product(a, b):
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def powers(Lr, Li, dt, j):
    """e^{Lam dt j}, `(N, j)`, by a size and an angle."""
    size, angle = np.exp((Lr * dt)[:, None] * j), (Li * dt)[:, None] * j
    return size * np.cos(angle), size * np.sin(angle)


def held(Lr, Li, dt):
    (wr, wi), square = powers(Lr, Li, dt, np.ones(1)), Lr * Lr + Li * Li
    over = product((wr[:, 0] - 1, wi[:, 0]), (Lr, -Li))
    return over[0] / square, over[1] / square


def response(mixed, near, far):
    """The kernel at near + far, `(len(far) len(near),)`: powers of a sum are products of powers, and only the real part is asked for."""
    mixed = product([x[:, None] for x in mixed], far)
    return 2 * np.sum(product([x[:, :, None] for x in mixed], [x[:, None] for x in near])[0], axis=0).reshape(-1)


def in_chunks(u, Lr, Li, Cr, Ci, D, dt, Sr, Si, chunk):
    """The chunks of the spec in real numbers: outputs, and the final state as two arrays."""
    turns, written = powers(Lr, Li, dt, np.arange(chunk + 1.0)), held(Lr, Li, dt)
    K = response(product((Cr, Ci), written), [y[:, :chunk] for y in turns], (np.ones((len(Lr), 1)), np.zeros((len(Lr), 1))))
    outputs, state = [u[:0]], (Sr, Si)
    for start in range(0, len(u), chunk):
        x = u[start : start + chunk]
        n = len(x)
        lag = np.arange(n)[:, None] - np.arange(n)
        inside = np.where(lag >= 0, K[np.maximum(lag, 0)], 0.0) @ x
        ringing = product([y[:, None] for y in product((Cr, Ci), state)], [y[:, 1 : n + 1] for y in turns])[0]
        outputs.append(inside + 2 * np.sum(ringing, axis=0) + D * x)
        new = product(written, [np.sum(y[:, :n][:, ::-1] * x, axis=1) for y in turns])
        kept = product([y[:, n] for y in turns], state)
        state = kept[0] + new[0], kept[1] + new[1]
    return np.concatenate(outputs), *state


def tensors(u, Lam, C, D, dt, S0, dtype="float32"):
    wide, pairs = ("float64", "complex128") if dtype == "float64" else ("float32", "complex64")
    one = lambda x: inputs.tensor(np.array([x]), wide)
    return [
        inputs.tensor(u[None, :, None], dtype), complex_tensor(Lam[None], pairs), complex_tensor(C[None], pairs), one(D), one(dt),
        complex_tensor(S0[None, None], pairs),
    ]  # fmt: skip


@given(inputs.seeds, kinds, lengths)
def test_forms_of_the_spec_coincide(seed, kind, T):
    """In float64, within what their steps round: sample by sample is chunk by chunk with chunks of one."""
    arguments = real(seed, kind, T)
    y, state = s4d.recurrent(*arguments)
    one = bounded(in_chunks, *parts(*arguments), 1, precision=FLOAT64)
    for chunk in (3, 16, 64):
        other = bounded(in_chunks, *parts(*arguments), chunk, precision=FLOAT64)
        found = s4d.chunked(*arguments, chunk)
        pairs = (found[0], y), (found[1].real, state.real), (found[1].imag, state.imag)
        for (a, b), first, second, what in zip(pairs, other, one, ("outputs", "real parts", "imaginary parts"), strict=True):
            coincide(
                Rounded(a, first.error, precision=FLOAT64), Rounded(b, second.error, precision=FLOAT64), f"{what} in chunks of {chunk}"
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@few
@given(inputs.seeds, kinds, lengths)
def test_outputs_and_states_agree_with_the_definition(fast, dtype, seed, kind, T):
    arguments = real(seed, kind, T, dtype=dtype)
    y, state = s4d.recurrent(*arguments)
    for form, chunk in ((fast.chunked, 16), (fast.recurrent, 1)):
        options = (chunk,) if chunk > 1 else ()
        found = form(*tensors(*arguments, dtype), *options)
        ours = inputs.array(found[0])[0, :, 0], back(found[1])[0, 0].real, back(found[1])[0, 0].imag
        expected = bounded(in_chunks, *parts(*arguments), chunk, precision=Precision("float32"), outputs=(dtype, "float32", "float32"))
        for actual, bound, value, what in zip(ours, expected, (y, state.real, state.imag), ("output", "real", "imaginary"), strict=True):
            bound.value = value
            agree(actual, bound, what)


@few
@given(inputs.seeds, kinds, st.sampled_from([1, 64, 1000]))
def test_the_kernel_agrees_with_the_definition(fast, seed, kind, L):
    """At any distance: powers are rounded once, after the exponential. A phase in float32 would be lost at the far end."""
    _, Lam, C, D, dt, S0 = real(seed, kind, 0)
    _, given_Lam, given_C, _, given_dt, _ = tensors(np.zeros(0), Lam, C, D, dt, S0)
    K = fast.kernel(given_Lam, given_C, given_dt, L)
    split = lambda x: (x.real, x.imag)
    near, far = (split(np.exp(np.outer(Lam * dt, j))) for j in (np.arange(64), 64 * np.arange(-(-L // 64))))
    stored = lambda real, imag: response((real * 1.0, imag * 1.0), near, far)  # one rounding of each
    bound = bounded(stored, *split(C * s4d.held(Lam, dt)), precision=Precision("float32"))[:L]
    bound.value = s4d.kernel(Lam, C, dt, L)
    agree(K[0], bound, "kernel")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=4))
def test_packed_sequences_and_channels_do_not_meet(fast, seed, lengths):
    """Two channels; sequences go on from their own states."""
    rng, T, N = np.random.default_rng(seed), sum(lengths), 3
    u = rng.integers(-3, 4, (T, 2)).astype(float)
    rate = np.where(rng.random((2, N)) < 0.5, -1024.0, 0.0)
    C, D = rng.integers(-3, 4, (2, N)) * np.where(rate, 1024, 1) + 0j, np.array([1.0, 2.0])
    S0 = rng.integers(-3, 4, (len(lengths), 2, N)) + 1j * rng.integers(-3, 4, (len(lengths), 2, N))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    given_ = (
        inputs.tensor(u[None], "float32"),
        complex_tensor(rate + 0j),
        complex_tensor(C),
        *(inputs.tensor(x, "float32") for x in (D, D / D)),
    )
    y, states = fast.chunked(*given_, complex_tensor(S0), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        output, state = s4d.recurrent(u[here, h], rate[h] + 0j, C[h], D[h], 1.0, S0[n, h])
        exactly(y[0, here, h], output, f"outputs of sequence {n}, channel {h}, of lengths {lengths}")
        exactly(back(states)[n, h], state, f"final state of sequence {n}, channel {h}")


@few
@given(inputs.seeds, st.sampled_from([1, 7, 35]))
def test_gradients_of_what_is_linear_are_exact(fast, seed, T):
    """The adjoint of a convolution is the convolution run backwards; of the mix, a sum that integers make exact."""
    rng = np.random.default_rng(seed)
    u, dy = rng.integers(-3, 4, (2, T)).astype(float)
    rate = np.array([-1024.0, 0.0, 0.0])
    C, other = ((rng.integers(-3, 4, 3) + 1j * rng.integers(-3, 4, 3)) * np.where(rate, 1024, 1) for _ in range(2))
    given_ = tensors(u, rate + 0j, C, 2.0, 1.0, np.zeros(3, complex))
    given_[0].requires_grad_(), given_[2].requires_grad_()
    y, _ = fast.chunked(*given_, 16)
    du, dC = torch.autograd.grad(y, (given_[0], given_[2]), inputs.tensor(dy[None, :, None], "float32"))
    exactly(du[0, :, 0], s4d.recurrent(dy[::-1], rate + 0j, C, 2.0, 1.0)[0][::-1], "du")
    exactly(np.real(np.sum(np.conj(back(dC)[0]) * other)), np.sum(dy * s4d.recurrent(u, rate + 0j, other, 0.0, 1.0)[0]), "dC")


@pytest.mark.parametrize("still", [False, True], ids=["all turn", "one stands still"])
def test_gradients_of_rates_and_steps_are_what_differences_approach(fast, still):
    """Central differences of the definition come closer four times with half the distance: the gradient is their limit."""
    u, Lam, C, D, dt, S0 = real(0, "inv", 19)
    Lam = Lam * (np.arange(4) > 0) if still else Lam
    rng = np.random.default_rng(0)
    dy, ddt, dLam = rng.standard_normal(19), 0.01, rng.standard_normal(4) + 1j * rng.standard_normal(4)
    given_ = tensors(u, Lam, C, D, dt, S0, "float64")
    given_[1].requires_grad_(), given_[4].requires_grad_()
    y, _ = fast.chunked(*given_, 16)
    of_Lam, of_dt = torch.autograd.grad(y, (given_[1], given_[4]), inputs.tensor(dy[None, :, None], "float64"))
    slope = np.real(np.sum(np.conj(back(of_Lam)[0]) * dLam)) + float(of_dt[0]) * ddt
    value = lambda h: np.sum(dy * s4d.recurrent(u, Lam + h * dLam, C, D, dt + h * ddt, S0)[0])
    errors = [abs((value(h) - value(-h)) / (2 * h) - slope) for h in (2.0**-5, 2.0**-6, 2.0**-7)]
    assert all(3.5 < a / b < 4.5 for a, b in zip(errors, errors[1:]))


def some(**changes):
    complex_ones = lambda *shape: torch.ones(shape, dtype=torch.complex64)
    arguments = {"u": torch.ones(2, 5, 3), "Lam": -complex_ones(3, 4), "C": complex_ones(3, 4), "D": torch.ones(3), "dt": torch.ones(3)}
    arguments |= {"S0": complex_ones(2, 3, 4)} | changes
    return {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"Lam": torch.ones(3, 4)}, TypeError, "Lam must"),
        ({"Lam": torch.ones(2, 4, dtype=torch.complex64)}, ValueError, "Lam must"),
        ({"C": torch.ones(3, 5, dtype=torch.complex64)}, ValueError, "C must"),
        ({"C": torch.ones(3, 4, dtype=torch.complex128)}, TypeError, "C must"),
        ({"dt": torch.ones(1)}, ValueError, "dt must"),
        ({"dt": torch.ones(3, dtype=torch.float16)}, TypeError, "dt must"),
        ({"D": torch.ones(4)}, ValueError, "D must"),
        ({"S0": torch.ones(1, 3, 4, dtype=torch.complex64)}, ValueError, "S0 must"),
        ({"u": torch.ones(2, 5, 3, dtype=torch.int32)}, TypeError, "u must"),
        ({"chunk": 0}, ValueError, "chunk must"),
        ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, "cu_seqlens must"),
        ({"u": torch.ones(1, 5, 3), "S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"u": torch.ones(1, 5, 3), "cu_seqlens": torch.tensor([0, 2, 4, 5])}, ValueError, "S0 must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    with pytest.raises(error, match=message):
        fast.chunked(**some(**wrong))


def test_a_spectrum_that_is_not_known_is_named(fast):
    with pytest.raises(ValueError, match="kind must"):
        fast.lambdas(8, "random")
    with pytest.raises(ValueError, match="N must"):
        fast.lambdas(7, "lin")
