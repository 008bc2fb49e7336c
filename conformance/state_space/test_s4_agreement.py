"""S4 on real values: recurrences and convolutions within derived bounds, packing, gradients, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import UNIT, Precision, Rounded, bounded
from twofold.conformance.state_space.test_s4_kernels import along, dense, doubled, low_rank, pairs_of, reads, transform
from twofold.conformance.state_space.test_s4d import back, complex_tensor
from twofold.spec.state_space import s4


def convolved(u, K, D, dtype):
    """What three transforms in this format may be off: a product of two that are wrong, transformed back (norms by Young and Parseval)."""
    unit = UNIT["float64" if dtype == "float64" else "float32"]
    T = len(u)
    n = 2 ** (T + len(K)).bit_length()
    full = np.convolve(u, K)
    off = transform(n, unit)
    error = (2 * off + 4 * unit) * np.linalg.norm(u) * np.linalg.norm(K) + off * (1 + off) * np.linalg.norm(full)
    y = full[:T] + D * u
    bound = Rounded(y, error + 2 * unit * (np.abs(full[:T]) + error + 2 * np.abs(D * u)), precision=Precision(dtype, "float32"))
    return bound.rounded_to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@few
@given(inputs.seeds, st.sampled_from([1, 7, 35]), st.sampled_from(["bilinear", "zero_order_hold"]))
def test_outputs_and_states_agree_with_the_definition(fast, dtype, seed, T, rule):
    Lam, p, B, C, dt = low_rank(seed)
    rng = np.random.default_rng(seed)
    A, S0, u = pairs_of(dense(Lam, p)), pairs_of(rng.standard_normal(6) + 1j * rng.standard_normal(6)), rng.standard_normal(T)
    u = inputs.rounded(u, dtype)
    system = [complex_tensor(x[None]) for x in (A, B, C)]
    numbers = [inputs.tensor(np.array([x]), "float32") for x in (0.5, dt)]
    found = fast.recurrent(inputs.tensor(u[None, :, None], dtype), *system, *numbers, complex_tensor(S0[None, None]), getattr(fast, rule))
    text = lambda u, move, write, *rest: along(u, move * (1 + 2.0**-50), write * (1 + 2.0**-50), *rest)  # stored: one rounding
    given_ = *doubled(*getattr(s4, rule)(A, B, dt)), reads(C), np.array(0.5), np.concatenate([S0.real, S0.imag])
    expected = bounded(text, u, *given_, precision=Precision("float32"), outputs=(dtype, "float32"))
    y, state = s4.recurrent(u, A, B, C, 0.5, dt, S0, getattr(s4, rule))
    expected[0].value, expected[1].value = y, np.concatenate([state.real, state.imag])
    agree(found[0][0, :, 0], expected[0], "outputs")
    agree(np.concatenate([back(found[1])[0, 0].real, back(found[1])[0, 0].imag]), expected[1], "final state")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@few
@given(inputs.seeds, st.sampled_from([1, 7, 64, 65]), st.sampled_from([1, 33, 100]))
@example(0, 64, 64)
def test_convolutions_agree_and_nothing_comes_round(fast, dtype, seed, T, L):
    """Two channels, two sequences, loud at the end: whatever came round would be heard at the start."""
    rng = np.random.default_rng(seed)
    u, K, D = rng.standard_normal((2, T, 2)), rng.standard_normal((2, L)), rng.standard_normal(2)
    u[:, -1] *= 30
    wide = "float64" if dtype == "float64" else "float32"
    u, K, D = inputs.rounded(u, dtype), inputs.rounded(K, wide), inputs.rounded(D, wide)
    y = fast.convolve(inputs.tensor(u, dtype, "transposed"), inputs.tensor(K, wide), inputs.tensor(D, wide))
    for b, h in np.ndindex(2, 2):
        agree(y[b, :, h], convolved(u[b, :, h], K[h], D[h], dtype), f"outputs in {dtype}")
        agree(s4.convolve(u[b, :, h], K[h], D[h]), convolved(u[b, :, h], K[h], D[h], "float64"), "outputs of the spec")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=4))
def test_packed_sequences_and_channels_do_not_meet(fast, seed, lengths):
    """Two channels with systems of their own; sequences go on from their own states; of whole numbers, exactly."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    A = np.tril(rng.integers(-1, 2, (2, 3, 3)), -1) - np.eye(3) * rng.integers(0, 2, (2, 1, 3))
    u, B, C = (rng.integers(-3, 4, shape) + 0.0 for shape in ((T, 2), (2, 3), (2, 3)))
    S0, D = rng.integers(-3, 4, (len(lengths), 2, 3)) + 0.0, np.array([1.0, 2.0])
    edges = np.concatenate([[0], np.cumsum(lengths)])
    packed = inputs.tensor(edges, "int32")
    given_ = [inputs.tensor(x, "float64") for x in (u[None], A, B, C, D, 0 * D + 2)]
    y, states = fast.recurrent(*given_, inputs.tensor(S0, "float64"), cu_seqlens=packed)
    K = inputs.tensor(rng.standard_normal((2, 30)), "float64")
    z = fast.convolve(given_[0], K, given_[4], cu_seqlens=packed)
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        output, state = s4.recurrent(u[here, h], A[h], B[h], C[h], D[h], 2.0, S0[n, h])
        exactly(y[0, here, h], output, f"outputs of sequence {n}, channel {h}, of lengths {lengths}")
        exactly(states[n, h], state, f"final state of sequence {n}, channel {h}")
        exactly(z[:, here], fast.convolve(given_[0][:, here], K, given_[4]), f"convolution of sequence {n}")


@few
@given(inputs.seeds, st.sampled_from([1, 7, 20]))
def test_gradients_of_a_recurrence_are_exact(fast, seed, T):
    """What is linear in u and S0 is, at other u and S0, their product with its gradient: of outputs and final state together."""
    rng = np.random.default_rng(seed)
    whole = lambda *shape: inputs.tensor(rng.integers(-3, 4, shape) + 0.0, "float64")
    A = inputs.tensor(np.tril(rng.integers(-1, 2, (1, 3, 3)), -1) - np.eye(3) * rng.integers(0, 2, 3), "float64")
    B, C, D, dt = whole(1, 3), whole(1, 3), whole(1), whole(1) * 0 + 2
    u, S0, dy, dS = whole(1, T, 1).requires_grad_(), whole(1, 1, 3).requires_grad_(), whole(1, T, 1), whole(1, 1, 3)
    du, dS0 = torch.autograd.grad(fast.recurrent(u, A, B, C, D, dt, S0), (u, S0), (dy, dS))
    u, S0 = whole(1, T, 1), whole(1, 1, 3)
    y, state = s4.recurrent(*(inputs.array(x) for x in (u[0, :, 0], A[0], B[0], C[0], D[0])), 2.0, inputs.array(S0[0, 0]))
    exactly((du * u).sum() + (dS0 * S0).sum(), np.sum(inputs.array(dy[0, :, 0]) * y) + np.sum(inputs.array(dS[0, 0]) * state), "gradient")


@few
@given(inputs.seeds, st.sampled_from([1, 7, 35]))
def test_the_gradient_of_a_convolution_is_one_run_backwards(fast, seed, T):
    rng = np.random.default_rng(seed)
    u, dy, K = (inputs.rounded(x, "float32") for x in rng.standard_normal((3, T)))
    leaves = [inputs.tensor(x, "float32").requires_grad_() for x in (u[None, :, None], K[None], np.array([0.5]))]
    du, dK, dD = torch.autograd.grad(fast.convolve(*leaves), leaves, inputs.tensor(dy[None, :, None], "float32"))
    agree(du[0, :, 0], convolved(dy[::-1], K, 0.5, "float32")[::-1], "du")
    agree(dK[0], convolved(dy[::-1], u, 0.0, "float32")[::-1], "dK")
    agree(dD, bounded(lambda u, dy: np.sum(u * dy)[None], u, dy, precision=Precision("float32")), "dD")


def some(**changes):
    pairs = lambda *shape: torch.ones(shape, dtype=torch.complex64)
    arguments = {"u": torch.ones(2, 5, 3), "A": -pairs(3, 4, 4), "B": pairs(3, 4), "C": pairs(3, 4), "D": torch.ones(3)}
    arguments |= {"dt": torch.ones(3), "S0": pairs(2, 3, 4)} | changes
    return {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"A": torch.ones(3, 4)}, ValueError, "A must"),
        ({"A": torch.ones(3, 4, 4, dtype=torch.float16)}, TypeError, "A must"),
        ({"A": torch.ones(3, 4, 5, dtype=torch.complex64)}, ValueError, "A must"),
        ({"B": torch.ones(3, 5, dtype=torch.complex64)}, ValueError, "B must"),
        ({"B": torch.ones(3, 4)}, TypeError, "B must"),
        ({"C": torch.ones(3, 4, dtype=torch.complex128)}, TypeError, "C must"),
        ({"dt": torch.ones(1)}, ValueError, "dt must"),
        ({"dt": torch.ones(3, dtype=torch.float64)}, TypeError, "dt must"),
        ({"D": torch.ones(4)}, ValueError, "D must"),
        ({"D": torch.ones(3, dtype=torch.float64)}, TypeError, "D must"),
        ({"S0": torch.ones(1, 3, 4, dtype=torch.complex64)}, ValueError, "S0 must"),
        ({"S0": torch.ones(2, 3, 4)}, TypeError, "S0 must"),
        ({"u": torch.ones(2, 5, 3, dtype=torch.int32)}, TypeError, "u must"),
        ({"u": torch.ones(2, 5, 3, dtype=torch.float64)}, TypeError, "A must"),
        ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, "cu_seqlens must"),
        ({"u": torch.ones(1, 5, 3), "S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"u": torch.ones(1, 5, 3), "cu_seqlens": torch.tensor([0, 2, 4, 5])}, ValueError, "S0 must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    with pytest.raises(error, match=message):
        fast.recurrent(**some(**wrong))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda fast, z: fast.kernel_cauchy(z, z, z, z, torch.ones(2), 0), ValueError, "L must"),
        (lambda fast, z: fast.kernel_cauchy(z, z, z, z[:, :2], torch.ones(2), 5), ValueError, "C must"),
        (lambda fast, z: fast.kernel_cauchy(z.real, z, z, z, torch.ones(2), 5), TypeError, "Lam must"),
        (lambda fast, z: fast.kernel_powers(z[..., None] * z[:, None], z, z, torch.ones(2), -1), ValueError, "L must"),
        (lambda fast, z: fast.bilinear(z, z, torch.ones(2)), ValueError, "A must"),
        (lambda fast, z: fast.convolve(torch.ones(1, 5, 2), z, torch.ones(2)), TypeError, "K must"),
        (lambda fast, z: fast.convolve(torch.ones(1, 5, 3), z.real, torch.ones(2)), ValueError, "K must"),
        (
            lambda fast, z: fast.step(z[None], torch.ones(2, 2), z[..., None] * z[:, None], z, z, *torch.ones(2, 2)),
            ValueError,
            "state must",
        ),
    ],
)
def test_bad_input_of_other_forms_is_named(fast, call, error, message):
    with pytest.raises(error, match=message):
        call(fast, torch.ones((2, 3), dtype=torch.complex64))
