"""Simple gated linear attention: the laws of every causal recurrence, exactly, and its place among them."""

import numpy as np
import pytest
from hypothesis import given

from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_log_decay_of_minus_infinity_begins_anew,
    test_a_run_resumes_at_any_token,
    test_a_silent_token_is_passed_over,
    test_every_form_is_the_definition,
    test_keys_and_queries_scale_against_each_other,
    test_no_token_one_token_two_and_three_chunks,
    test_outputs_and_state_are_linear_in_values_and_state,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_the_matrix_is_lower_triangular,
    test_two_runs_give_the_same_bits,
)
from twofold.spec.linear_attention import affine, gla, simple_gla

NAMES = ("q", "k", "v", "g")


def exact_tokens(rng, T, K, V):
    return battery.exact_tokens(rng, T, K, V) | {"g": np.where(rng.random(T) < 0.1, -np.inf, 0.0)}


def definition(tokens, S0):
    return simple_gla.recurrent(*(tokens[name] for name in NAMES), S0)


def of_spec():
    run = lambda form, *options: lambda tokens, S0: form(*(tokens[name] for name in NAMES), S0, *options)
    forms = {f"chunked in {chunk}": run(simple_gla.chunked, chunk) for chunk in (1, 2, 3, 7, 16, 64)}
    step = lambda state, token: simple_gla.step(state, *(token[name] for name in NAMES))
    return battery.Operation(definition, {"parallel": run(simple_gla.parallel)} | forms, step, exact_tokens)


def of_fast(fast):
    forms = {"chunked": battery.on_tensors(fast.chunked, NAMES, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {f"chunked in {chunk}": battery.on_tensors(fast.chunked, NAMES, chunk=chunk) for chunk in (16, 64)}
        forms |= {"recurrent": battery.on_tensors(fast.recurrent, NAMES), "parallel": battery.on_tensors(fast.parallel, NAMES)}
    return battery.Operation(definition, forms, battery.one_token(fast.step, NAMES), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.simple_gla", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_it_is_the_core_with_one_decay_and_gated_linear_attention_with_equal_channels(case):
    """Two rows of the table of models, to the bit."""
    tokens, S0, *_ = battery.run_of(case, exact_tokens)
    q, k, v, g = (tokens[name] for name in NAMES)
    spread = np.repeat(g[:, None], case.K, axis=1)
    for other in (gla.recurrent(q, k, v, spread, S0), affine.recurrent(q, k, v, spread, 0 * k, 0 * k, S0)):
        for one, two, what in zip(definition(tokens, S0), other, ("outputs", "final state"), strict=True):
            exactly(one, two, what)
