"""HiPPO: the system solves the equation that projections obey, its steps approach the projections, and its low-rank form is the system."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import hippo

sizes = st.integers(1, 12)


def shifted_legendre(N):
    """Coefficients, in powers of u, of P_n(2u - 1), as fractions, by Bonnet's recurrence."""
    rows = [[Fraction(1)], [Fraction(-1), Fraction(2)]]
    for n in range(1, N):
        upper = [Fraction(0)] * (n + 2)
        for power, x in enumerate(rows[n]):
            upper[power] -= Fraction(2 * n + 1, n + 1) * x
            upper[power + 1] += Fraction(2 * (2 * n + 1), n + 1) * x
        for power, x in enumerate(rows[n - 1]):
            upper[power] -= Fraction(n, n + 1) * x
        rows.append(upper)
    return rows[:N]


def projection(m, N):
    """Integrals of u^m P_n(2u - 1) over [0, 1]: the coefficients of f(s) = s^m at time 1, divided by sqrt(2n + 1)."""
    return [sum(x / (power + m + 1) for power, x in enumerate(row)) for row in shifted_legendre(N)]


@given(sizes, st.integers(0, 12))
def test_projections_of_powers_solve_the_system(N, m):
    """Of f(s) = s^m they grow as t^m, so that m c = A c + B at time 1. In units of sqrt(2n + 1) all is rational, and holds exactly."""
    A, B = hippo.legs(N)
    squares = np.rint(A**2), np.rint(B**2)
    for found, square in zip((A, B), squares, strict=True):
        exactly(np.abs(found), np.sqrt(square), "the root of a whole number, correctly rounded")
    assert np.all(np.sign(A) == -np.tri(N)) and np.all(B > 0)
    c = projection(m, N)
    for i in range(N):  # A_ij sqrt(2j + 1) / sqrt(2i + 1) is the whole number -(2j + 1), on the diagonal -(i + 1)
        entries = [Fraction(int(squares[0][i, j]), 2 * i + 1) if j < i else i + 1 for j in range(i + 1)]
        assert squares[0][i, i] == (i + 1) ** 2 and squares[1][i] == 2 * i + 1
        assert m * c[i] == 1 - sum(entry * x for entry, x in zip(entries, c))


@few
@given(inputs.seeds, st.integers(1, 4), st.sampled_from([1, 17, 70]), st.sampled_from([("float64", 8), ("float32", 4)]))
def test_coefficients_agree_with_the_definition(fast, seed, N, T, contract):
    """Every signal of a batch by itself; worst cases grow fast with N, so that N is small here."""
    dtype, most = contract
    (f,) = inputs.values("normal", [(2, T, 3)], seed, dtype)
    c = fast.legs_project(inputs.tensor(f, dtype), min(2 * N, most))
    for b, d in np.ndindex(2, 3):
        expected = bounded(hippo.legs_project, f[b, :, d], min(2 * N, most), precision=Precision(dtype, dtype))
        agree(c[b, :, d], expected, "coefficients")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_signals_of_16_bits_are_read_as_they_are(fast, dtype):
    (f,) = inputs.values("normal", [(1, 19, 2)], 0, dtype)
    exactly(fast.legs_project(inputs.tensor(f, dtype), 4), fast.legs_project(inputs.tensor(f, "float32"), 4), "coefficients")


@given(st.integers(1, 40))
def test_the_mean_of_a_constant_comes_as_it_must(T):
    """The lowest coefficient of ones after k samples is 2k / (2k + 1): the product of (1 - 1/2j) / (1 + 1/2j) telescopes."""
    k = np.arange(1, T + 1)
    agree(2 * k / (2 * k + 1), bounded(hippo.legs_project, np.ones(T), 1, precision=Precision("float64", "float64"))[:, 0], "mean")


def test_twice_the_samples_have_half_the_error():
    """Steps of the rule approach the integrals, in the first order; and no length of a step was ever named."""
    exact = np.array([float(x) for x in projection(3, 5)]) * np.sqrt(2 * np.arange(5) + 1)
    errors = [np.max(np.abs(hippo.legs_project(np.arange(1, T + 1) ** 3 / T**3, 5)[-1] - exact)) for T in (200, 400, 800)]
    assert 1.9 < errors[0] / errors[1] < 2.1 and 1.95 < errors[1] / errors[2] < 2.05


@few
@given(inputs.seeds, st.integers(1, 69))
def test_the_future_and_other_signals_do_not_matter(fast, seed, at):
    (f,) = inputs.values("normal", [(2, 70, 3)], seed, "float32")
    changed = f.copy()
    changed[1, at:, 2] = np.nan
    one, two = (inputs.array(fast.legs_project(inputs.tensor(x, "float32"), 4)) for x in (f, changed))
    exactly(two[1, :at], one[1, :at], f"coefficients before sample {at}")
    exactly(two[0], one[0], "another sequence's")
    exactly(two[1, :, :2], one[1, :, :2], "another channel's")


def low_rank(fast, N):
    yield "spec", hippo.legs_low_rank(N)
    yield "fast", tuple(x.numpy(force=True) for x in fast.legs_low_rank(N))


@given(sizes)
def test_the_low_rank_form_is_the_system(fast, N):
    """Up to what eigensolvers promise: a residual of the order of N roundoffs of the norm of what is decomposed."""
    A, B = hippo.legs(N)
    for whose, (Lam, P, b, V) in low_rank(fast, N):
        slack = 8 * N * 2.0**-53 * (np.linalg.norm(A) + np.linalg.norm(P) ** 2)
        assert np.linalg.norm(V.conj().T @ V - np.eye(N)) <= 8 * N * 2.0**-53, f"{whose}: V is not unitary"
        assert np.linalg.norm(V @ (np.diag(Lam) - np.outer(P, P.conj())) @ V.conj().T - A) <= slack, whose
        assert np.linalg.norm(V @ b - B) <= slack, whose
        assert np.all(Lam.real == -0.5), f"{whose}: real parts are -1/2, all of them"
        assert np.all(np.abs(Lam - Lam[::-1].conj()) <= slack), f"{whose}: frequencies come in pairs"


def test_gradients_flow_to_every_sample(fast):
    """The last coefficients are linear in the samples: their gradient is the response to unit samples."""
    responses = lambda units: np.stack([hippo.legs_project(unit, 3)[-1] for unit in units])
    expected = bounded(responses, np.eye(7), precision=Precision("float64", "float64"))
    f = inputs.tensor(np.zeros((1, 7, 1)), "float64").requires_grad_()
    c = fast.legs_project(f, 3)[0, -1, 0]
    for n in range(3):
        (gradient,) = torch.autograd.grad(c[n], f, retain_graph=True)
        agree(gradient[0, :, 0], expected[:, n], f"gradient of coefficient {n}")


@pytest.mark.parametrize("call, error, message", [
    (lambda fast: fast.legs(0), ValueError, "N must"),
    (lambda fast: fast.legs_low_rank(0), ValueError, "N must"),
    (lambda fast: fast.legs_project(torch.zeros(2, 3), 4), ValueError, "f must"),
    (lambda fast: fast.legs_project(torch.zeros(2, 3, 1, dtype=torch.int32), 4), TypeError, "f must"),
])  # fmt: skip
def test_bad_input_is_named(fast, call, error, message):
    with pytest.raises(error, match=message):
        call(fast)
