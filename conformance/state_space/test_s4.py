"""S4: a recurrence that is a convolution. Laws, exactly, with triangular systems of whole numbers; what two rules for a step must be."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.conformance.state_space.test_s4d import back, complex_tensor
from twofold.spec.state_space import hippo, s4, s4d

FLOAT64 = Precision("float64", "float64")
DT = 2.0  # with which the bilinear rule inverts I - A


class Case(NamedTuple):
    T: int
    N: int
    at: int
    seed: int
    paired: bool


@st.composite
def cases(draw):
    T = draw(st.sampled_from([0, 1, 7, 17, 35]))
    return Case(T, draw(st.sampled_from([1, 2, 3])), draw(st.integers(0, T)), draw(inputs.seeds), draw(st.booleans()))


ACROSS = Case(T=35, N=3, at=5, seed=0, paired=True)


class Run(NamedTuple):
    u: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: float
    S0: np.ndarray


def run(case):
    """Triangular, with -1 (which forgets in one step of the bilinear rule) or 0 (which keeps) on the diagonal: all is exact in float64."""
    rng = np.random.default_rng(case.seed)
    A = np.tril(rng.integers(-1, 2, (case.N, case.N)), -1) - np.diag(rng.integers(0, 2, case.N)) + 0.0
    whole = lambda: rng.integers(-3, 4, case.N) + (1j * rng.integers(-3, 4, case.N) if case.paired else 0.0)
    return Run(rng.integers(-3, 4, case.T) + 0.0, A + 0j if case.paired else A, whole(), whole(), 2.0, whole())


class Side(NamedTuple):
    recurrent: Callable  # of Run
    step: Callable  # of (state, u, A, B, C, D)
    kernel: Callable  # of (A, B, C, L)
    rules: dict[str, Callable]  # of (A, B, dt)


def of_spec():
    rules = {"bilinear": s4.bilinear, "zero_order_hold": s4.zero_order_hold}
    kernel = lambda *x: s4.kernel_powers(*x[:3], DT, x[3])
    return Side(lambda u, A, B, C, D, S0: s4.recurrent(u, A, B, C, D, DT, S0), lambda *x: s4.step(*x, DT), kernel, rules)


def one(x):
    return inputs.tensor(np.array([x]), "float64")


def tensor(x):
    return complex_tensor(x[None], "complex128") if np.iscomplexobj(x) else inputs.tensor(x[None], "float64")


def of_fast(fast):
    def recurrent(u, A, B, C, D, S0):
        y, state = fast.recurrent(one(u).mT.reshape(1, -1, 1), *map(tensor, (A, B, C)), one(D), one(DT), tensor(S0)[None])
        return back(y)[0, :, 0], back(state)[0, 0]

    def step(state, u, A, B, C, D):
        y, after = fast.step(tensor(state)[None], one(u)[None], *map(tensor, (A, B, C)), one(D), one(DT))
        return back(y)[0, 0], back(after)[0, 0]

    rule = lambda form: lambda A, B, dt: tuple(back(x)[0] for x in form(tensor(A), tensor(B), one(dt)))
    rules = {name: rule(getattr(fast, name)) for name in ("bilinear", "zero_order_hold")}
    return Side(recurrent, step, lambda A, B, C, L: back(fast.kernel_powers(*map(tensor, (A, B, C)), one(DT), L))[0], rules)


@pytest.fixture(scope="module", params=battery.SIDES)
def side(request):
    with battery.side(request.param, "state_space.s4", of_spec, of_fast) as side:
        yield side


@few
@given(cases())
@example(ACROSS)
def test_it_is_the_definition_and_resumes_at_any_sample(side, case):
    given_ = run(case)
    before = [np.copy(x) for x in given_]
    expected = s4.recurrent(*given_[:5], DT, given_.S0)
    whole = side.recurrent(*given_)
    first, state = side.recurrent(*given_._replace(u=given_.u[: case.at]))
    second, state = side.recurrent(*given_._replace(u=given_.u[case.at :], S0=state))
    for actual, what in ((whole, "outputs"), ((np.concatenate([first, second]), state), f"resumed at sample {case.at}")):
        exactly(actual[0], expected[0], what)
        exactly(actual[1], expected[1], f"final state, {what}")
    for x, y in zip(given_, before, strict=True):
        exactly(x, y, "an input after the calls")


@few
@given(cases())
@example(ACROSS)
def test_steps_are_the_prefill(side, case):
    u, *system, S0 = run(case)
    expected, state = s4.recurrent(u, *system, DT, S0)[0], S0
    for t in range(min(len(u), 7)):
        output, state = side.step(state, u[t], *system)
        exactly(output, expected[t], f"output of step {t}")
        exactly(state, s4.recurrent(u[: t + 1], *system, DT, S0)[1], f"state after {t + 1} steps")


@few
@given(cases())
@example(ACROSS)
def test_it_is_a_convolution_with_its_response_to_an_impulse(side, case):
    """By NumPy's own convolution; the kernel is what an impulse gives; what begins later gives the same, later."""
    given_ = run(case)
    u, A, B, C, D, S0 = given_
    K = side.kernel(A, B, C, case.T + 1)
    exactly(side.recurrent(*given_._replace(S0=0 * S0))[0], np.convolve(u, K)[: case.T] + D * u if case.T else u, "outputs")
    impulse = np.zeros(case.T + 1)
    impulse[case.at] = 1.0
    answer = side.recurrent(impulse, A, B, C, 0.0, 0 * S0)[0]
    exactly(answer, np.concatenate([np.zeros(case.at), K])[: case.T + 1], f"response to an impulse at sample {case.at}")
    exactly(side.kernel(A, B, C, 0), np.zeros(0), "no kernel")


@few
@given(cases())
@example(ACROSS)
def test_the_future_does_not_matter_and_all_is_linear(side, case):
    given_, other = run(case), run(case._replace(seed=case.seed ^ 1))
    u, S0 = given_.u, given_.S0
    first, second = side.recurrent(*given_), side.recurrent(*given_._replace(u=other.u, S0=other.S0))
    both = side.recurrent(*given_._replace(u=u + 2 * other.u, S0=S0 + 2 * other.S0))
    exactly(both[0], first[0] + 2 * second[0], "outputs of u + 2 u'")
    exactly(both[1], first[1] + 2 * second[1], "final state of u + 2 u'")
    poisoned = np.concatenate([u[: case.at], np.full(case.T - case.at, np.nan)])
    exactly(side.recurrent(*given_._replace(u=poisoned))[0][: case.at], first[0][: case.at], f"outputs before NaN at sample {case.at}")


@few
@given(cases())
@example(ACROSS)
def test_the_bilinear_rule_is_trapezoidal(side, case):
    """(I - A dt / 2) [move, write] = [I + A dt / 2, B dt]: the mean of both ends moves the state."""
    _, A, B, *_ = run(case)
    move, write = side.rules["bilinear"](A, B, DT)
    eye = np.eye(case.N)
    exactly((eye - A) @ move, eye + A, "move")
    exactly((eye - A) @ write, DT * B, "write")


@few
@given(inputs.seeds, st.sampled_from([1, 3, 6]), st.sampled_from([0.01, 0.5, 3.0]))
def test_a_held_input_is_exact_for_any_step(side, seed, N, dt):
    """With no coupling, the exponentials of S4D; and two halves of a step are the step, which no rule that approximates can say."""
    rng = np.random.default_rng(seed)
    rate, B = -rng.uniform(0, 2, N) * (rng.random(N) < 0.8), rng.standard_normal(N)
    rule = side.rules["zero_order_hold"]
    error = [x.error for x in bounded(s4.zero_order_hold, np.diag(rate), B, dt, precision=FLOAT64)]
    for found, value, slack, what in zip(
        rule(np.diag(rate), B, dt), (np.diag(np.exp(rate * dt)), s4d.held(rate, dt) * B), error, ("move", "write"), strict=True
    ):
        agree(found, Rounded(value, slack + 4 * 2.0**-52 * np.abs(value), precision=FLOAT64), what)
    A = rng.standard_normal((N, N))
    move, write = bounded(s4.zero_order_hold, A, B, dt, precision=FLOAT64)
    half = bounded(s4.zero_order_hold, A, B, dt / 2, precision=FLOAT64)
    for rounded, found in zip((move, write, *half), (*rule(A, B, dt), *rule(A, B, dt / 2)), strict=True):
        agree(found, rounded, "against the series")
    coincide(half[0] @ half[0], move, "two halves of a step, moved")
    coincide(half[0] @ half[1] + half[1], write, "two halves of a step, written")


@pytest.mark.parametrize("N", [1, 4])
def test_the_rules_meet_as_steps_become_short(side, N):
    """They differ in the third order, by A³ dt³ / 12 in the move and A² B dt³ / 12 in the write: half the step, an eighth of that."""
    A, B = hippo.legs(N)
    near = [[side.rules[name](A, B, dt) for name in ("bilinear", "zero_order_hold")] for dt in (2.0**-8, 2.0**-9, 2.0**-10)]
    apart = np.array([[np.linalg.norm(one - other) for one, other in zip(*pair)] for pair in near])
    assert np.all(np.abs(apart[:-1] / apart[1:] - 8) < 0.5)
    expected = [np.linalg.norm(A @ A @ x) * 2.0**-30 / 12 for x in (A, B)]
    assert np.all(np.abs(apart[-1] / expected - 1) < 0.1)
