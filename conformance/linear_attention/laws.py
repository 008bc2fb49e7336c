"""The laws of a causal recurrence over tokens, each a test of every chapter of which it is true.

A chapter's test file imports the laws that hold for it and provides the fixture `operation`, a `battery.Operation`; the laws then run on
its spec and on every implementation of it.
"""

import numpy as np
import pytest
from hypothesis import example, given

from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention.battery import Case, Tokens, cases, few

ACROSS = Case(T=35, K=5, V=3, at=5, seed=0)  # what happens in one sub-chunk is read in another of its chunk, and in other chunks


@few
@given(cases())
@example(ACROSS)
def test_every_form_is_the_definition(operation, case):
    tokens, S0, *_ = operation.run(case)
    operation.demand(tokens, S0, "forms")


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    """An output for each token, and a state of the shape that it had; chunks are counted in 16 tokens."""
    tokens, S0, *_ = operation.run(Case(T, K=5, V=4, at=0, seed=T))
    output, state = operation.demand(tokens, S0, f"T = {T}")
    assert output.shape == tokens["v"].shape and state.shape == S0.shape


@few
@given(cases())
@example(ACROSS)
def test_two_runs_give_the_same_bits(operation, case):
    tokens, S0, *_ = operation.run(case)
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(tokens, S0)
        exactly(second[0], first[0], f"a second run of {name}")
        exactly(second[1], first[1], f"final state of a second run of {name}")


@few
@given(cases())
@example(ACROSS)
def test_a_run_resumes_at_any_token(operation, case):
    """Run to any token, hand the state over, go on."""
    tokens, S0, at, *_ = operation.run(case)
    expected = operation.definition(tokens, S0)
    for name, form in operation.forms.items():
        first, state = form(_cut(tokens, slice(0, at)), S0)
        second, state = form(_cut(tokens, slice(at, None)), state)
        exactly(np.concatenate([first, second]), expected[0], f"{name} resumed at token {at}")
        exactly(state, expected[1], f"final state of {name} resumed at token {at}")


@few
@given(cases())
@example(ACROSS)
def test_steps_are_the_prefill(operation, case):
    """Token by token gives the outputs of the whole, and the state after j tokens is that of the prefix of j tokens."""
    tokens, S0, accepted, *_ = operation.run(case)
    expected, state = operation.definition(tokens, S0), S0
    prefix = operation.definition(_cut(tokens, slice(0, accepted)), S0)[1]
    for t in range(len(tokens["v"])):
        if t == accepted:
            exactly(state, prefix, f"state after {accepted} steps")
        output, state = operation.step(state, {name: x[t] for name, x in tokens.items()})
        exactly(output, expected[0][t], f"output of step {t}")
    exactly(state, expected[1], "state after all steps")


@few
@given(cases())
@example(ACROSS)
def test_the_future_does_not_matter(operation, case):
    """Whatever replaces the tokens from `at` on, earlier outputs do not change."""
    tokens, S0, at, others, _ = operation.run(case)
    changed = {name: np.concatenate([x[:at], others[name][at:]]) for name, x in tokens.items()}
    for name, form in operation.forms.items():
        exactly(form(changed, S0)[0][:at], form(tokens, S0)[0][:at], f"{name}: outputs before token {at}, which changed")


@few
@given(cases())
@example(ACROSS)
def test_outputs_and_state_are_linear_in_values_and_state(operation, case):
    """Jointly in (v, S0); and columns of v do not meet."""
    tokens, S0, _, others, S1 = operation.run(case)
    v = others["v"]
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(tokens | {"v": v}, S1)
        both = form(tokens | {"v": tokens["v"] + 2 * v}, S0 + 2 * S1)
        for what, a, b, c in zip(("outputs", "final state"), first, second, both, strict=True):
            exactly(c, a + 2 * b, f"{name}: {what} of v + 2 v'")
        column = form(tokens | {"v": v[:, :1]}, S1[:, :1])
        exactly(column[0], second[0][:, :1], f"{name}: outputs of the first column alone")
        exactly(column[1], second[1][:, :1], f"{name}: final state of the first column alone")


@few
@given(cases())
@example(ACROSS)
def test_a_log_decay_of_minus_infinity_begins_anew(operation, case):
    """Where the log-decay is -inf, a sequence begins anew."""
    tokens, S0, at, *_ = operation.run(case)
    cut = tokens | {"g": tokens["g"].copy()}
    cut["g"][at] = -np.inf
    expected = operation.definition(_cut(cut, slice(at, None)), np.zeros_like(S0))
    for name, form in operation.forms.items():
        output, state = form(cut, S0)
        exactly(output[at:], expected[0], f"{name}: outputs after everything was forgotten")
        exactly(state, expected[1], f"{name}: final state after everything was forgotten")


@few
@given(cases())
@example(ACROSS)
def test_a_silent_token_is_passed_over(operation, case):
    """A token of zeros changes neither the state nor the others' outputs."""
    tokens, S0, at, *_ = operation.run(case)
    expected = operation.definition(tokens, S0)
    silent = {name: np.concatenate([x[:at], np.zeros_like(x[:1]), x[at:]]) for name, x in tokens.items()}
    for name, form in operation.forms.items():
        output, state = form(silent, S0)
        exactly(np.delete(output, at, axis=0), expected[0], f"{name}: outputs around a silent token")
        exactly(state, expected[1], f"{name}: final state with a silent token")


@few
@given(cases())
@example(ACROSS)
def test_the_matrix_is_lower_triangular(operation, case):
    """The identity as values shows the matrix, and the matrix gives the outputs."""
    tokens, *_ = operation.run(case)
    count, width = tokens["k"].shape
    for name, form in operation.forms.items():
        W = form(tokens | {"v": np.eye(count)}, np.zeros((width, count)))[0]
        exactly(np.triu(W, 1), np.zeros_like(W), f"{name}: the matrix above its diagonal")
        v = tokens["v"][:, :1]
        exactly(W @ v, form(tokens | {"v": v}, np.zeros((width, 1)))[0], f"{name}: the matrix times the values")


@few
@given(cases())
@example(ACROSS)
def test_keys_and_queries_scale_against_each_other(operation, case):
    """Keys and state twice as large, queries half: the same outputs."""
    tokens, S0, *_ = operation.run(case)
    expected = operation.definition(tokens, S0)
    for name, form in operation.forms.items():
        output, state = form(tokens | {"q": tokens["q"] / 2, "k": tokens["k"] * 2}, S0 * 2)
        exactly(output, expected[0], f"{name}: outputs with twice the keys and half the queries")
        exactly(state, expected[1] * 2, f"{name}: final state with twice the keys")


def _cut(tokens: Tokens, where: slice) -> Tokens:
    return {name: x[where] for name, x in tokens.items()}
