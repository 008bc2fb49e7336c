"""The arithmetic of speculation: exact laws of the spec, and the vectorized form within its few roundings of them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.inputs import array, tensor
from twofold.spec.speculative import cost

alphas = st.integers(0, 64).map(lambda n: Fraction(n, 64))
costs = st.sampled_from([Fraction(0), Fraction(1, 64), Fraction(1, 10), Fraction(1, 3), Fraction(1), Fraction(5, 4)])


@given(alphas, st.integers(0, 12))
def test_the_sum_is_the_papers_closed_form(alpha, gamma):
    closed = (1 - alpha ** (gamma + 1)) / (1 - alpha) if alpha < 1 else gamma + 1
    assert cost.expected_tokens(alpha, gamma) == closed


@given(alphas, st.integers(0, 8))
def test_tokens_per_call_are_the_mean_of_the_run_of_successes(alpha, gamma):
    stops = [alpha**kept * (1 - alpha if kept < gamma else 1) for kept in range(gamma + 1)]
    assert sum(stops) == 1 and cost.expected_tokens(alpha, gamma) == sum((kept + 1) * p for kept, p in enumerate(stops))


@given(alphas, costs)
def test_one_draft_gains_where_alpha_exceeds_its_cost(alpha, c):
    assert cost.speedup(alpha, 1, c) == (1 + alpha) / (1 + c)
    assert (cost.best_gamma(alpha, c, 12) > 0) == (alpha > c)


@given(alphas, costs, st.integers(0, 12))
def test_the_best_gamma_is_the_first_of_the_best(alpha, c, gamma_max):
    best = cost.best_gamma(alpha, c, gamma_max)
    gains = [cost.speedup(alpha, gamma, c) for gamma in range(gamma_max + 1)]
    assert gains[best] == max(gains) and best == gains.index(max(gains))


@given(alphas.filter(lambda a: a < 1), st.integers(0, 40))
def test_a_free_drafter_never_passes_its_limit(alpha, gamma):
    assert cost.speedup(alpha, gamma, 0) <= 1 / (1 - alpha)
    assert cost.operations(alpha, gamma, alpha) * cost.speedup(alpha, gamma, 0) == gamma * alpha + gamma + 1


@pytest.mark.parametrize(("alpha", "gamma", "tokens"), [("0.394", 2, 1.55), ("0.602", 4, 2.31), ("0.781", 8, 4.08)])
def test_values_of_the_formula(alpha, gamma, tokens):
    assert abs(float(cost.expected_tokens(Fraction(alpha), gamma)) - tokens) < 0.01


near = st.sampled_from([0.0, 2.0**-30, 0.1, 0.5, 0.75, 1 - 2.0**-10, 1 - 2.0**-24, 1.0])


@given(near, st.integers(0, 64), costs, st.sampled_from(["float32", "float64"]))
def test_tensors_agree_to_a_few_roundings(fast, alpha, gamma, c, dtype):
    """log, expm1 (two units in the last place each), two products, a difference, two quotients: the composition amplifies none of them."""
    unit = 2.0**-24 if dtype == "float32" else 2.0**-53
    exactly, c = Fraction(alpha), Fraction(float(c) if dtype == "float64" else float(np.float32(c)))
    given_ = tensor(np.array([alpha]), dtype), gamma, tensor(np.array([float(c)]), dtype)
    for form in ("expected_tokens", "speedup", "operations"):
        expected = getattr(cost, form)(*((exactly, gamma) if form == "expected_tokens" else (exactly, gamma, c)))
        actual = getattr(fast, form)(*(given_[:2] if form == "expected_tokens" else given_))
        assert actual.dtype == getattr(torch, dtype)
        assert abs(Fraction(array(actual)[0]) - expected) <= 12 * unit * expected, form


@given(alphas, costs, st.integers(0, 12))
def test_tensors_choose_a_best_gamma(fast, alpha, c, gamma_max):
    chosen = int(fast.best_gamma(tensor(np.array([float(alpha)])), tensor(np.array([float(c)])), gamma_max)[0])
    best = cost.best_gamma(alpha, c, gamma_max)
    assert cost.speedup(alpha, chosen, c) >= cost.speedup(alpha, best, c) * (1 - Fraction(1, 2**48))
    assert chosen <= gamma_max and (alpha not in (0, 1) or chosen == best)


def test_numbers_and_shapes_broadcast(fast):
    alpha = torch.tensor([[0.25], [0.5]], dtype=torch.float64)
    assert fast.expected_tokens(alpha, torch.tensor([0, 1, 2])).tolist() == [[1, 1.25, 1.3125], [1, 1.5, 1.75]]
    assert fast.best_gamma(0.8, 0.1, 20).item() == 6 and fast.best_gamma(alpha, torch.zeros(3), 2).shape == (2, 3)


@pytest.mark.parametrize(("form", "arguments", "message"), [
    ("expected_tokens", (1.5, 2), "alpha must lie in"), ("expected_tokens", (torch.tensor([1]), 2), "alpha must have a floating"),
    ("speedup", (0.5, -1, 0.1), "gamma must be at least 0"), ("operations", (0.5, 1, -0.1), "c must be at least 0"),
    ("best_gamma", (0.5, 0.1, -1), "gamma_max must be at least 0"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, form, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(fast, form)(*arguments)


def test_it_compiles(fast):
    compiled = torch.compile(fast.expected_tokens, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([0.5, 1.0]), 3), fast.expected_tokens(torch.tensor([0.5, 1.0]), 3))
