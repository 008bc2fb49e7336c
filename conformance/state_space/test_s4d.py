"""S4D: a recurrence that is a convolution. Laws, exactly, with decays of 1 and 0; complex values within derived bounds."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.spec.linear_attention import gla
from twofold.spec.state_space import hippo, s4d


class Case(NamedTuple):
    T: int
    N: int
    at: int
    seed: int


@st.composite
def cases(draw):
    T = draw(st.sampled_from([0, 1, 7, 16, 17, 35]))
    return Case(T, draw(st.sampled_from([1, 2, 5])), draw(st.integers(0, T)), draw(inputs.seeds))


ACROSS = Case(T=35, N=5, at=5, seed=0)


def run(case):
    """u, Lam, C, D, S0: oscillators of rate 0, which add, and of -1024, which forget at once and write 1/1024; all is exact."""
    rng = np.random.default_rng(case.seed)
    rate = np.where(rng.random(case.N) < 0.5, -1024.0, 0.0)
    whole = lambda *shape: rng.integers(-3, 4, shape) + 1j * rng.integers(-3, 4, shape)
    return rng.integers(-3, 4, case.T).astype(float), rate + 0j, whole(case.N) * np.where(rate, 1024, 1), 2.0, whole(case.N)


class Side(NamedTuple):
    forms: dict[str, Callable]  # of (u, Lam, C, D, S0), with dt = 1
    step: Callable  # of (state, u, Lam, C, D)
    kernel: Callable  # of (Lam, C, L)


def of_spec():
    forms = {f"chunked in {chunk}": lambda *x, chunk=chunk: s4d.chunked(*x[:4], 1.0, x[4], chunk) for chunk in (1, 3, 16, 64)}
    forms |= {"recurrent": lambda *x: s4d.recurrent(*x[:4], 1.0, x[4])}
    return Side(forms, lambda *x: s4d.step(*x, 1.0), lambda Lam, C, L: s4d.kernel(Lam, C, 1.0, L))


def complex_tensor(x, dtype="complex64"):
    return torch.from_numpy(np.ascontiguousarray(x)).to(inputs.target.device(), getattr(torch, dtype))


def back(x):
    return x.detach().cpu().to(torch.complex128).numpy() if x.is_complex() else inputs.array(x)


def of_fast(fast):
    one = lambda x: inputs.tensor(np.array([x]), "float32")

    def on_arrays(form, *options):
        def call(u, Lam, C, D, S0):
            rows = inputs.tensor(u[None, :, None], "float32"), complex_tensor(Lam[None]), complex_tensor(C[None]), one(D), one(1.0)
            y, state = form(*rows, complex_tensor(S0[None, None]), *options)
            return back(y)[0, :, 0], back(state)[0, 0]

        return call

    def step(state, u, Lam, C, D):
        rows = one(u)[None], complex_tensor(Lam[None]), complex_tensor(C[None]), one(D), one(1.0)
        y, after = fast.step(complex_tensor(state[None, None]), *rows)
        return back(y)[0, 0], back(after)[0, 0]

    forms = {f"chunked in {chunk}": on_arrays(fast.chunked, chunk) for chunk in (1, 3, 16, 64)} | {"recurrent": on_arrays(fast.recurrent)}
    return Side(forms, step, lambda Lam, C, L: back(fast.kernel(complex_tensor(Lam[None]), complex_tensor(C[None]), one(1.0), L))[0])


@pytest.fixture(scope="module", params=battery.SIDES)
def side(request):
    with battery.side(request.param, "state_space.s4d", of_spec, of_fast) as side:
        yield side


@few
@given(cases())
@example(ACROSS)
def test_every_form_is_the_definition_and_resumes_at_any_sample(side, case):
    u, Lam, C, D, S0 = run(case)
    before = [x.copy() for x in (u, Lam, C, S0)]
    expected = s4d.recurrent(u, Lam, C, D, 1.0, S0)
    for name, form in side.forms.items():
        whole = form(u, Lam, C, D, S0)
        first, state = form(u[: case.at], Lam, C, D, S0)
        second, state = form(u[case.at :], Lam, C, D, state)
        for actual, what in ((whole, "outputs"), ((np.concatenate([first, second]), state), f"resumed at sample {case.at}")):
            exactly(actual[0], expected[0], f"{name}: {what}")
            exactly(actual[1], expected[1], f"{name}: final state, {what}")
    for x, y in zip((u, Lam, C, S0), before, strict=True):
        exactly(x, y, "an input after the calls")


@few
@given(cases())
@example(Case(T=7, N=5, at=2, seed=0))
def test_steps_are_the_prefill(side, case):
    u, Lam, C, D, state = run(case)
    expected, start = s4d.recurrent(u, Lam, C, D, 1.0, state)[0], state
    for t in range(min(len(u), 7)):
        output, state = side.step(state, u[t], Lam, C, D)
        exactly(output, expected[t], f"output of step {t}")
        exactly(state, s4d.recurrent(u[: t + 1], Lam, C, D, 1.0, start)[1], f"state after {t + 1} steps")


@few
@given(cases())
@example(ACROSS)
def test_it_is_a_convolution_with_its_response_to_an_impulse(side, case):
    """By NumPy's own convolution; the kernel is what an impulse gives; what begins later gives the same, later."""
    u, Lam, C, D, S0 = run(case)
    K = side.kernel(Lam, C, case.T + 1)
    impulse = np.zeros(case.T + 1)
    impulse[case.at] = 1.0
    for name, form in side.forms.items():
        exactly(form(u, Lam, C, D, 0 * S0)[0], np.convolve(u, K)[: case.T] + D * u if case.T else u, f"outputs of {name}")
        answer = form(impulse, Lam, C, 0.0, 0 * S0)[0]
        exactly(answer, np.concatenate([np.zeros(case.at), K])[: case.T + 1], f"{name}: response to an impulse at sample {case.at}")


@few
@given(cases())
@example(ACROSS)
def test_the_future_does_not_matter_and_all_is_linear(side, case):
    u, Lam, C, D, S0 = run(case)
    other, _, _, _, S1 = run(case._replace(seed=case.seed ^ 1))
    for name, form in side.forms.items():
        one, two = form(u, Lam, C, D, S0), form(other, Lam, C, D, S1)
        both = form(u + 2 * other, Lam, C, D, S0 + 2 * S1)
        exactly(both[0], one[0] + 2 * two[0], f"{name}: outputs of u + 2 u'")
        exactly(both[1], one[1] + 2 * two[1], f"{name}: final state of u + 2 u'")
        mixed = form(np.concatenate([u[: case.at], other[case.at :]]), Lam, C, D, S0)[0]
        exactly(mixed[: case.at], one[0][: case.at], f"{name}: outputs before sample {case.at}, from which on all changed")


@few
@given(cases())
def test_real_rates_are_gated_linear_attention(case):
    """q = 2 C, k what a step writes, v = u, g = the rate: a row of the table of models. Real parts suffice where rates are real."""
    u, Lam, C, D, S0 = run(case)
    C, S0 = C.real, S0.real
    ones = np.ones((case.T, 1))
    y, state = gla.recurrent(ones * 2 * C, ones * s4d.held(Lam, 1.0).real, u[:, None], ones * Lam.real, S0[:, None])
    expected = s4d.recurrent(u, Lam, C, D, 1.0, S0)
    exactly(y[:, 0] + D * u, expected[0], "outputs")
    exactly(state[:, 0], expected[1].real, "final state")


@given(st.floats(2.0**-40, 2.0**-4), st.floats(-3.2, 3.2))
def test_a_slow_oscillator_writes_the_length_of_its_step(size, angle):
    """(e^z - 1) / z is 1 + z / 2 and at most |z|² / 4 more where |z| <= 1 / 4 (Taylor), and 1 at 0; a plain difference loses all digits."""
    Lam = size * np.exp(1j * np.array([angle]))
    assert abs(s4d.held(Lam, 1.0)[0] - 1 - Lam[0] / 2) <= abs(Lam[0]) ** 2 / 4 + 8 * 2.0**-52
    assert s4d.held(0 * Lam, 0.5)[0] == 0.5


def test_starting_points(fast):
    """Pairs are whole with their conjugates: of "legs" the spectrum of HiPPO's normal part. The side under test has the same three."""
    for N in (2, 8, 64):
        whole = hippo.legs_low_rank(N)[0]
        half = s4d.lambdas(N, "legs")
        assert np.all(half.imag > 0)
        slack = 16 * N * 2.0**-53 * np.linalg.norm(hippo.legs(N)[0])  # of two eigensolvers
        assert np.all(np.abs(np.concatenate([-half.imag[::-1], half.imag]) - whole.imag) <= slack)
        for kind in ("legs", "inv", "lin"):
            expected = s4d.lambdas(N, kind)
            found = back(fast.lambdas(N, kind, dtype=torch.complex128))
            assert np.all(np.abs(found - expected) <= (slack if kind == "legs" else 4 * 2.0**-52 * np.abs(expected))), kind
            assert np.all(expected.real == -0.5) and len(expected) == N // 2
