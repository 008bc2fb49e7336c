"""The gated delta rule: the laws of every causal recurrence and of erasing, exactly; what the paper prints; its gate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
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
    test_a_log_decay_of_minus_infinity_begins_anew,
    test_a_run_resumes_at_any_token,
    test_a_silent_token_is_passed_over,
    test_every_form_is_the_definition,
    test_outputs_and_state_are_linear_in_values_and_state,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_the_matrix_is_lower_triangular,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import comba, delta, gated_delta, simple_gla
from twofold.spec.linear_attention.affine import decays

NAMES = ("q", "k", "v", "g", "beta")


def row(tokens):
    q, k, v, g, beta = (tokens[name] for name in NAMES)
    return q, beta[:, None] * k, v, g, np.exp(g)[:, None] * k


def chain(tokens, dq, dw, dv, dg, da):
    k, g, beta = tokens["k"], tokens["g"], tokens["beta"]
    faded = np.exp(g)[:, None] * da
    return {"q": dq, "k": beta[:, None] * dw + faded, "v": dv, "g": np.sum(dg + faded * k, axis=1), "beta": np.sum(k * dw, axis=1)}


MODEL = erasing.Model(gated_delta, NAMES, row, chain, erasing.exact_tokens, erasing.real_tokens)


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    sides = erasing.operation_of(MODEL, chunked_factored=gated_delta.chunked_factored), erasing.operation_of_fast(MODEL)
    with battery.side(request.param, "linear_attention.gated_delta", *sides) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = operation.tokens_of(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
def test_without_decay_it_is_the_delta_rule_and_without_strength_it_is_simple_gated_linear_attention(case):
    """What fades without being written to is a state of simple gated linear attention whose keys are zeros."""
    tokens, S0, *_ = battery.run_of(case, MODEL.exact)
    q, k, v, g, beta = MODEL.arguments(tokens)
    pairs = (
        (gated_delta.recurrent(q, k, v, 0 * beta, beta, S0), delta.recurrent(q, k, v, beta, S0)),
        (gated_delta.recurrent(q, k, v, g, 0 * beta, S0), simple_gla.recurrent(q, 0 * k, v, g, S0)),
    )
    for ours, other in pairs:
        for one, two, what in zip(ours, other, ("outputs", "final state"), strict=True):
            exactly(one, two, what)


@few
@given(battery.cases())
def test_the_memory_fades_before_it_is_looked_up(case):
    """The error is taken against the faded memory. Against the memory as it was is another model, Comba's."""
    tokens, S0, *_ = battery.run_of(case, MODEL.exact)
    q, k, v, g, beta = MODEL.arguments(tokens)
    ours = gated_delta.recurrent(q, k, v, g, beta, S0)
    faded = comba.recurrent(q, k, v, g, beta, np.exp(g)[:, None] * k, 0.0, S0)
    for one, two, what in zip(ours, faded, ("outputs", "final state"), strict=True):
        exactly(one, two, what)


def test_looking_up_before_fading_is_another_model():
    """One number, 4, fading to 2 and overwritten by 6: what is missing is 4, not 2, and only then it becomes 6."""
    one = np.ones((1, 1))
    arguments = one, one, 6 * one, np.log([0.5]), np.ones(1)
    assert gated_delta.recurrent(*arguments, 4 * one)[1].item() == 6
    assert comba.recurrent(*arguments, one, 0.0, 4 * one)[1].item() == 4


def printed(q, k, v, g, beta, S0):
    """The chunk of the paper's text, whose output has the 0/1 mask where the decays of the scores belong."""
    write, between = beta[:, None] * k, decays(g[:, None])[:, :, 0]
    since = np.exp(np.cumsum(g))[:, None]
    D = delta.substitute(np.tril(k @ write.T, -1) * between, v - since * (k @ S0))
    return since * (q @ S0) + np.tril(q @ write.T) @ D


@few
@given(inputs.seeds)
def test_the_mask_of_the_output_holds_decays(seed):
    """With the printed mask the outputs are right as long as nothing fades, and wrong otherwise."""
    rng = np.random.default_rng(seed)
    tokens, S0 = MODEL.exact(rng, 12, 5, 3), rng.integers(-2, 3, (5, 3)).astype(float)
    q, k, v, g, beta = MODEL.arguments(tokens)
    exactly(printed(q, k, v, 0 * beta, beta, S0), gated_delta.recurrent(q, k, v, 0 * beta, beta, S0)[0], "nothing fades")
    one = np.ones((2, 1))
    fading = one, one, np.array([[8.0], [0.0]]), np.log([1.0, 0.5]), np.array([1.0, 0.0]), 0 * one[:1]
    assert printed(*fading).ravel().tolist() == [8, 8] and gated_delta.recurrent(*fading)[0].ravel().tolist() == [8, 4]


@few
@given(inputs.seeds, erasing.gates, st.sampled_from(["drawn", "the same"]))
def test_both_factorizations_are_one_function(seed, gates, keys):
    """Real tokens, in float64: the decayed system with its decay on the right side, and the undecayed one faded afterwards."""
    rng = np.random.default_rng(seed)
    tokens, S0 = MODEL.real(rng, gates, keys, 20, 5, 3, "float64"), rng.standard_normal((5, 3))
    forms = gated_delta.chunked, gated_delta.chunked_factored
    one, two = (bounded(form, *MODEL.arguments(tokens), S0, 8, precision=Precision("float64", "float64")) for form in forms)
    for a, b, what in zip(one, two, ("outputs", "final state"), strict=True):
        coincide(a, b, what)


@few
@given(inputs.seeds)
def test_the_gate_is_never_positive_and_that_of_the_definition(fast, seed):
    x, A_log, dt_bias = inputs.values("large", [(9, 2), (2,), (2,)], seed, "float32")
    g = fast.gate(*(inputs.tensor(y, "float32") for y in (x, A_log / 8, dt_bias)))
    assert bool((g <= 0).all())
    for h in range(2):
        parameters = A_log[h : h + 1] / 8, dt_bias[h : h + 1]
        agree(g[:, h], bounded(gated_delta.gate, x[:, h], *parameters, precision=Precision("float32")), f"log-decays of head {h}")
