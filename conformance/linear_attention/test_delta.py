"""The delta rule: the laws of every causal recurrence and of erasing, exactly, and what it can compute that decays cannot."""

import itertools

import numpy as np
import pytest
from hypothesis import given

from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery, erasing
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.erasing_laws import (  # noqa: F401  the laws that hold here
    test_it_counts_modulo_two,
    test_it_exchanges,
    test_it_is_a_row_of_the_core,
    test_keys_and_strengths_scale_against_each_other,
    test_reflections_keep_lengths_and_undo_themselves,
    test_strength_zero_writes_nothing_and_one_replaces,
    test_the_drawn_tokens_are_exact,
    test_the_future_does_not_change_a_bit,
)
from twofold.conformance.linear_attention.laws import (  # noqa: F401
    test_a_run_resumes_at_any_token,
    test_a_silent_token_is_passed_over,
    test_every_form_is_the_definition,
    test_outputs_and_state_are_linear_in_values_and_state,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_the_matrix_is_lower_triangular,
    test_two_runs_give_the_same_bits,
)
from twofold.spec.linear_attention import affine, delta, linear


def row(tokens):
    q, k, v, beta = (tokens[name] for name in ("q", "k", "v", "beta"))
    return q, beta[:, None] * k, v, np.zeros(len(q)), k


def chain(tokens, dq, dw, dv, dg, da):
    k, beta = tokens["k"], tokens["beta"]
    return {"q": dq, "k": beta[:, None] * dw + da, "v": dv, "beta": np.sum(k * dw, axis=1)}


def without_gate(make):
    return lambda *arguments: {name: x for name, x in make(*arguments).items() if name != "g"}


MODEL = erasing.Model(
    delta, ("q", "k", "v", "beta"), row, chain, without_gate(erasing.exact_tokens), without_gate(erasing.real_tokens)
)


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    sides = erasing.operation_of(MODEL), erasing.operation_of_fast(MODEL)
    with battery.side(request.param, "linear_attention.delta", *sides) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = operation.tokens_of(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
def test_with_orthonormal_keys_it_is_linear_attention(case):
    """Every key is new, so there is nothing to take out: the sums of linear attention, before it divides."""
    T = min(case.T, case.K)
    tokens, S0, *_ = battery.run_of(case._replace(T=T), MODEL.exact)
    k = np.eye(case.K)[np.random.default_rng(case.seed).permutation(case.K)[:T]]
    o, state = delta.recurrent(tokens["q"], k, tokens["v"], np.ones(T))
    (S, z), zero = linear.recurrent(tokens["q"], k, tokens["v"])[1], np.zeros((T, case.K))
    exactly(state, S, "the state of linear attention")
    exactly(z, k.sum(axis=0), "its sum of keys")
    exactly(o, affine.recurrent(tokens["q"], k, tokens["v"], zero, zero, zero)[0], "its outputs, not divided")


def transition(tokens):
    """What a run of tokens does to a state of three numbers, as a matrix."""
    return delta.recurrent(0 * tokens, tokens, np.zeros((len(tokens), 3)), np.ones(len(tokens)), np.eye(3))[1]


def test_a_circle_of_three_needs_two_reflections():
    """A step differs from the identity by rank one, a circle by rank two; a diagonal transition never moves anything."""
    exchanges = [np.eye(3)[i] - np.eye(3)[j] for i, j in itertools.combinations(range(3), 2)]
    circle = np.roll(np.eye(3), 1, axis=0)
    assert np.linalg.matrix_rank(circle - np.eye(3)) == 2
    for k in exchanges:
        assert np.linalg.matrix_rank(transition(k[None]) - np.eye(3)) == 1
    words = {tuple(transition(np.array(word)).ravel()) for word in itertools.product(exchanges, repeat=2)}
    assert tuple(circle.ravel()) in words and tuple(circle.T.ravel()) in words
    reached = words | {tuple(transition(k[None]).ravel()) for k in exchanges}
    assert len(reached) == 6  # all permutations of three things
    assert np.count_nonzero(circle * np.eye(3)) == 0  # and no product of diagonal matrices has such entries only


def test_keys_too_long_make_the_state_explode():
    """beta |k|² = 3: the error at the key doubles with every token, where 2 keeps it and 1 removes it."""
    k = np.ones((20, 1))
    at = lambda beta: abs(delta.recurrent(k, k, 0 * k, np.full(20, beta), np.ones((1, 1)))[1].item())
    assert at(3.0) == 2.0**20 and at(2.0) == 1 and at(1.0) == 0
