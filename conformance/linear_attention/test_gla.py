"""Gated linear attention: the laws of every causal recurrence, exactly, on the spec and on every implementation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery
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
from twofold.spec.linear_attention import gla

NAMES = ("q", "k", "v", "g")


def definition(tokens, S0):
    return gla.recurrent(*(tokens[name] for name in NAMES), S0)


def of_spec():
    run = lambda form, *options: lambda tokens, S0: form(*(tokens[name] for name in NAMES), S0, *options)
    sizes = [(1, 1), (2, 1), (3, 2), (7, 3), (16, 16), (64, 16), (64, 5)]
    forms = {f"chunked in {chunk} by {sub}": run(gla.chunked, chunk, sub) for chunk, sub in sizes}
    step = lambda state, token: gla.step(state, *(token[name] for name in NAMES))
    return battery.Operation(definition, {"parallel": run(gla.parallel)} | forms, step, battery.exact_tokens)


def of_fast(fast):
    """On the side of the kernels, one chunk size per law: the interpreter takes its time."""
    forms = {"chunked": battery.on_tensors(fast.chunked, NAMES, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {f"chunked in {chunk}": battery.on_tensors(fast.chunked, NAMES, chunk=chunk) for chunk in (16, 64)}
        forms |= {"recurrent": battery.on_tensors(fast.recurrent, NAMES), "parallel": battery.on_tensors(fast.parallel, NAMES)}
    return battery.Operation(definition, forms, battery.one_token(fast.step, NAMES), battery.exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.gla", of_spec, of_fast) as operation:
        yield operation


@given(st.sampled_from([1, 2, 9, 33]), inputs.seeds)
def test_distant_blocks_have_the_rank_of_the_keys(T, seed):
    """The lower left block of the matrix goes through a state with K rows."""
    rng = np.random.default_rng(seed)
    q, k, g = rng.standard_normal((3, T, 2))
    W = gla.parallel(q, k, np.eye(T), -np.abs(g))[0]
    assert np.linalg.matrix_rank(W[T // 2 :, : T // 2], tol=1e-9) <= 2


@given(inputs.seeds, st.sampled_from(["mild", "strong", "mixed"]), st.sampled_from([(1, 1), (5, 2), (16, 5), (64, 16)]))
def test_forms_of_the_spec_are_equal_on_real_values(seed, gates, sizes):
    """Within 1e-13 of the sum of what is added, which the same form gives on absolute values."""
    rng = np.random.default_rng(seed)
    T, K, V = int(rng.integers(0, 70)), 5, 3
    q, k, v, S0 = (rng.standard_normal(shape) for shape in ((T, K), (T, K), (T, V), (K, V)))
    g = {"mild": -0.1, "strong": -30.0, "mixed": np.where(rng.random((T, K)) < 0.5, -1e-6, -20.0)}[gates] * np.ones((T, K))
    expected, size = gla.recurrent(q, k, v, g, S0), gla.recurrent(*map(np.abs, (q, k, v)), g, np.abs(S0))
    for actual in (gla.parallel(q, k, v, g, S0), gla.chunked(q, k, v, g, S0, *sizes)):
        for a, e, s in zip(actual, expected, size, strict=True):
            assert np.all(np.abs(a - e) <= 1e-13 * s)


@given(inputs.seeds)
def test_gate_is_a_bounded_log_decay(fast, seed):
    """At most 0; log(sigmoid(0)) / tau = -log(2) / tau where the input is zero; halved by twice the tau."""
    x, W1, W2, b = inputs.values("normal", [(7, 4), (4, 2), (2, 5), (5,)], seed, "float32")
    g, half = gla.gate(x, W1, W2, b, 16.0), gla.gate(x, W1, W2, b, 32.0)
    assert np.all(g <= 0)
    exactly(half, g / 2, "gate with twice the tau")
    exactly(gla.gate(0 * x, W1, W2, 0 * b, 1.0), np.full((7, 5), -np.log(2.0)), "gate of nothing")
    tensors = [inputs.tensor(y, "float32") for y in (x, W1, W2, b)]
    size = (np.abs(x) @ np.abs(W1)) @ np.abs(W2) + np.abs(b) + 1
    error = np.abs(inputs.array(fast.gate(*tensors, 16.0)) - g)
    assert np.all(error <= 16 * 2.0**-24 * size)  # sums of 4, 2 and 1 terms, a product each, the logarithm
