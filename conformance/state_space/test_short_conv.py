"""The short convolution: its laws, exactly, on the spec and on every implementation."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.spec.state_space import short_conv


class Case(NamedTuple):
    T: int
    W: int
    D: int
    at: int
    seed: int


class Side(NamedTuple):
    """`causal` and `step` of one side, on arrays without a batch."""

    causal: Callable
    step: Callable


@st.composite
def cases(draw):
    """Lengths from none through less than a tail to around a kernel's 64 rows; channels below, at and above its tiles of 16 and 32."""
    T = draw(st.sampled_from([0, 1, 2, 5, 61, 64, 65, 70]))
    W, D = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.sampled_from([1, 3, 16, 37]))
    return Case(T, W, D, draw(st.integers(0, T)), draw(inputs.seeds))


ACROSS = Case(T=70, W=4, D=3, at=2, seed=0)  # cut inside the tail of a sequence that takes two programs
SHORT = Case(T=2, W=8, D=3, at=1, seed=0)  # shorter than the tail


def run(case):
    """x, w, b, tail of small integers: every order of summing them gives the same bits."""
    rng = np.random.default_rng(case.seed)
    shapes = (case.T, case.D), (case.W, case.D), (case.D,), (case.W - 1, case.D)
    return [rng.integers(-3, 4, shape).astype(float) for shape in shapes]


def of_fast(fast):
    batched = lambda x: None if x is None else inputs.tensor(x[None], "float32")
    plain = lambda x: None if x is None else inputs.tensor(x, "float32")
    back = lambda results: tuple(inputs.array(x)[0] for x in results)
    causal = lambda x, w, b=None, tail=None: back(fast.causal(batched(x), plain(w), plain(b), batched(tail)))
    step = lambda tail, x, w, b=None: back(fast.step(batched(tail), batched(x), plain(w), plain(b)))
    return Side(causal, step)


@pytest.fixture(scope="module", params=battery.SIDES)
def side(request):
    with battery.side(request.param, "state_space.short_conv", lambda: Side(short_conv.causal, short_conv.step), of_fast) as side:
        yield side


@few
@given(cases())
@example(ACROSS)
@example(SHORT)
def test_it_is_a_convolution_channel_by_channel(side, case):
    """NumPy's own convolution of the tail and the tokens, by the reversed weights, where they overlap fully."""
    x, w, b, tail = run(case)
    y, new = side.causal(x, w, b, tail)
    rows = np.concatenate([tail, x])
    for d in range(case.D) if case.T else ():
        exactly(y[:, d] - b[d], np.convolve(rows[:, d], w[::-1, d], mode="valid"), f"channel {d}")
    assert y.shape == x.shape
    exactly(new, rows[case.T :], "new tail")


@few
@given(cases())
@example(ACROSS)
@example(SHORT)
def test_a_run_resumes_at_any_token(side, case):
    """The tail is all that a run hands over: inputs, and as many as the filter looks back."""
    x, w, b, tail = run(case)
    expected = short_conv.causal(x, w, b, tail)
    first, between = side.causal(x[: case.at], w, b, tail)
    second, last = side.causal(x[case.at :], w, b, between)
    exactly(np.concatenate([first, second]), expected[0], f"outputs resumed at token {case.at}")
    exactly(last, expected[1], f"tail of a run resumed at token {case.at}")


@few
@given(cases())
@example(Case(T=5, W=4, D=3, at=2, seed=0))
@example(SHORT)
def test_steps_are_the_prefill(side, case):
    """Token by token gives the outputs of the whole; the state after j of n drafted tokens is that of the prefix of j."""
    x, w, b, tail = run(case._replace(T=min(case.T, 5)))
    expected, start = short_conv.causal(x, w, b, tail)[0], tail
    for t in range(len(x)):
        output, tail = side.step(tail, x[t], w, b)
        exactly(output, expected[t], f"output of step {t}")
        exactly(tail, short_conv.causal(x[: t + 1], w, b, start)[1], f"tail after {t + 1} steps")


@few
@given(cases())
@example(ACROSS)
def test_the_tail_is_of_inputs_and_no_weight_enters_it(side, case):
    x, w, b, tail = run(case)
    new = side.causal(x, w, b, tail)[1]
    exactly(side.causal(x, 2 * w, -b, tail)[1], new, "tail under other weights")
    exactly(new, np.concatenate([tail, x])[case.T :], "tail")


@few
@given(cases(), st.sampled_from([np.nan, 1e30]))
@example(ACROSS, np.nan)
def test_the_future_and_other_channels_do_not_matter(side, case, poison):
    """Whatever stands at token `at` and later, in one channel: earlier outputs, and all other channels, keep their bits."""
    x, w, b, tail = run(case)
    x = inputs.rounded(x + np.random.default_rng(case.seed).standard_normal(x.shape), "float32")
    changed = x.copy()
    changed[case.at :, case.D // 2] = poison
    before, after = side.causal(x, w, b, tail), side.causal(changed, w, b, tail)
    exactly(after[0][: case.at], before[0][: case.at], f"outputs before token {case.at}")
    for one, two, what in zip(before, after, ("outputs", "tail"), strict=True):
        exactly(np.delete(two, case.D // 2, axis=1), np.delete(one, case.D // 2, axis=1), f"{what} of other channels")


@few
@given(cases())
@example(ACROSS)
def test_the_response_to_an_impulse_is_the_reversed_filter(side, case):
    _, w, *_ = run(case)
    x = np.zeros((case.T + 1, case.D))
    x[case.at] = 1.0
    expected = np.concatenate([np.zeros((case.at, case.D)), w[::-1], np.zeros((case.T + 1, case.D))])[: case.T + 1]
    exactly(side.causal(x, w)[0], expected, f"response to an impulse at token {case.at}")


@few
@given(cases())
@example(ACROSS)
def test_a_later_sequence_gives_later_outputs(side, case):
    """Shift equivariance; and no tail is a tail of zeros."""
    x, w, b, _ = run(case)
    y, tail = side.causal(x, w, b)
    later = side.causal(np.concatenate([np.zeros((case.at, case.D)), x]), w, b)
    exactly(later[0][case.at :], y, f"outputs of a sequence that begins {case.at} tokens later")
    exactly(later[1], tail, "its tail")
    exactly(side.causal(x, w, b, np.zeros((case.W - 1, case.D)))[0], y, "outputs after a tail of zeros")


@few
@given(cases())
@example(ACROSS)
def test_it_is_linear_in_inputs_tail_and_weights(side, case):
    x, w, b, tail = run(case)
    others = run(case._replace(seed=case.seed ^ 1))
    together = side.causal(x + 2 * others[0], w, b + 2 * others[2], tail + 2 * others[3])
    for one, two, both, what in zip(
        side.causal(x, w, b, tail), side.causal(others[0], w, others[2], others[3]), together, ("outputs", "tail"), strict=True
    ):
        exactly(both, one + 2 * two, f"{what} of x + 2 x'")
    summed = side.causal(x, w + 2 * others[1], None, tail)[0]
    exactly(summed, side.causal(x, w, None, tail)[0] + 2 * side.causal(x, others[1], None, tail)[0], "outputs of w + 2 w'")


@given(inputs.seeds)
def test_a_filter_of_width_one_is_a_scaling(side, seed):
    x, w, b, _ = run(Case(T=5, W=1, D=3, at=0, seed=seed))
    y, tail = side.causal(x, w, b)
    exactly(y, w[0] * x + b, "outputs")
    assert tail.shape == (0, 3)
    exactly(side.step(tail, x[0], w, b)[0], w[0] * x[0] + b, "a step")


@few
@given(cases())
@example(SHORT)
def test_the_adjoint_moves_to_the_other_side(case):
    """<dy, y(x', tail')> + <dtail, tail(x', tail')> = <dx, x'> + <dtail0, tail'>, and the same in w and b: on integers, to the bit."""
    x, w, b, tail = run(case)
    dy, others = run(case._replace(seed=case.seed ^ 1))[0], run(case._replace(seed=case.seed ^ 2))
    dtail = others[3]
    dx, dw, db, dtail0 = short_conv.backward(x, w, dy, dtail, tail)
    y, new = short_conv.causal(others[0], w, None, dtail + 1)
    assert np.sum(dy * y) + np.sum(dtail * new) == np.sum(dx * others[0]) + np.sum(dtail0 * (dtail + 1))
    assert np.sum(dy * short_conv.causal(x, others[1], others[2], tail)[0]) == np.sum(dw * others[1]) + np.sum(db * others[2])
