"""Comba: the laws of every causal recurrence and of erasing, exactly; what is looked up is the memory before it fades."""

import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.conformance import inputs
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
from twofold.spec.linear_attention import comba, delta, gated_delta

NAMES = ("q", "k", "v", "g", "beta", "p")
D = 1.0  # so that q - d p are integers


def row(tokens):
    q, k, v, g, beta, p = (tokens[name] for name in NAMES)
    return q - D * p, beta[:, None] * k, v, g, p


def chain(tokens, dq, dw, dv, dg, da):
    k, beta = tokens["k"], tokens["beta"]
    return {
        "q": dq, "k": beta[:, None] * dw, "v": dv, "g": np.sum(dg, axis=1), "beta": np.sum(k * dw, axis=1), "p": da - D * dq,
    }  # fmt: skip


def exact_tokens(rng, T, K, V, keys=None):
    """p is k or nothing, which keeps integers small, but for three tokens that look up another key."""
    tokens = erasing.exact_tokens(rng, T, K, V, keys)
    p = tokens["k"] * rng.integers(0, 2, (T, 1))
    return tokens | {"p": np.where((rng.permutation(T) < 3)[:, None], erasing.exact_keys(rng, T, K), p)}


def real_tokens(rng, gates, keys, T, K, V, dtype):
    """p is a part of k, and beta stays below what the precondition allows with the strongest gate."""
    tokens = erasing.real_tokens(rng, gates, keys, T, K, V, dtype)
    return tokens | {"p": inputs.rounded(tokens["k"] * rng.uniform(0.3, 0.9), dtype), "beta": tokens["beta"] / 2}


def with_d(form):
    """A form of fast as a function of tokens and S0; `step` has its state in front."""

    def run(*arguments, **options):
        *rows, last = arguments
        d = torch.full((rows[2].shape[-2],), D, device=last.device)
        return form(*arguments, d) if form.__name__ == "step" else form(*rows, d, last, **options)

    return run


MODEL = erasing.Model(comba, NAMES, row, chain, exact_tokens, real_tokens, (D,), with_d)


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    sides = erasing.operation_of(MODEL), erasing.operation_of_fast(MODEL)
    with battery.side(request.param, "linear_attention.comba", *sides) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = operation.tokens_of(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
def test_it_is_the_gated_delta_rule_and_the_delta_rule(case):
    """Looking up e^g k without correcting the query; and without gates."""
    tokens, S0, *_ = battery.run_of(case, MODEL.exact)
    q, k, v, g, beta, _ = MODEL.arguments(tokens)
    pairs = (
        (comba.recurrent(q, k, v, g, beta, np.exp(g)[:, None] * k, 0.0, S0), gated_delta.recurrent(q, k, v, g, beta, S0)),
        (comba.recurrent(q, k, v, 0 * beta, beta, k, 0.0, S0), delta.recurrent(q, k, v, beta, S0)),
    )
    for ours, other in pairs:
        for one, two, what in zip(ours, other, ("outputs", "final state"), strict=True):
            exactly(one, two, what)


@few
@given(inputs.seeds)
def test_the_memory_is_looked_up_before_it_fades(seed):
    """Whoever looks up the faded memory has the gated delta rule's look-up: another model wherever something is stored and fades."""
    rng = np.random.default_rng(seed)
    k, S0 = erasing.exact_keys(rng, 1, 5), np.ones((5, 3))
    S0 = S0 * np.arange(1.0, 6)[:, None]  # no two of its rows cancel
    tokens = k, k, rng.integers(-2, 3, (1, 3)).astype(float), np.array([-np.inf]), np.ones(1)
    undecayed, decayed = (comba.recurrent(*tokens, p, 0.0, S0)[1] for p in (k, np.exp(tokens[3])[:, None] * k))
    exactly(undecayed - decayed, -np.outer(k[0], k[0] @ S0), "the difference is the whole of what was stored")
    assert np.any(undecayed != decayed)


@few
@given(battery.cases())
def test_the_query_is_corrected_by_what_is_looked_up(operation, case):
    """Outputs with d are those without, less d times the outputs to the queries p; states do not depend on it."""
    tokens, S0, *_ = operation.run(case)
    q, k, v, g, beta, p = MODEL.arguments(tokens)
    (plain, state), (looked_up, _) = (comba.recurrent(x, k, v, g, beta, p, 0.0, S0) for x in (q, p))
    for name, form in operation.forms.items():
        output, after = form(tokens, S0)
        exactly(output, plain - D * looked_up, f"{name}: outputs")
        exactly(after, state, f"{name}: final state")
