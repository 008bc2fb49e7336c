"""Kimi delta attention: the laws of every causal recurrence and of erasing, exactly; its place among them; its gates."""

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
from twofold.spec.linear_attention import gated_delta, gla, kda

NAMES = ("q", "k", "v", "g", "beta")


def row(tokens):
    q, k, v, g, beta = (tokens[name] for name in NAMES)
    return q, beta[:, None] * k, v, g, np.exp(g) * k


def chain(tokens, dq, dw, dv, dg, da):
    k, g, beta = tokens["k"], tokens["g"], tokens["beta"]
    faded = np.exp(g) * da
    return {"q": dq, "k": beta[:, None] * dw + faded, "v": dv, "g": dg + faded * k, "beta": np.sum(k * dw, axis=1)}


def exact_tokens(rng, T, K, V, keys=None):
    return erasing.exact_tokens(rng, T, K, V, keys) | {"g": np.where(rng.random((T, K)) < 0.1, -np.inf, 0.0)}


def real_tokens(rng, gates, keys, T, K, V, dtype):
    g = inputs.rounded(erasing.GATES[gates](rng, (T, K)), "float32")
    return erasing.real_tokens(rng, gates, keys, T, K, V, dtype) | {"g": g}


MODEL = erasing.Model(kda, NAMES, row, chain, exact_tokens, real_tokens)


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    sides = erasing.operation_of(MODEL), erasing.operation_of_fast(MODEL)
    with battery.side(request.param, "linear_attention.kda", *sides) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = operation.tokens_of(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
def test_with_equal_channels_it_is_the_gated_delta_rule(case):
    tokens, S0, *_ = battery.run_of(case, erasing.exact_tokens)
    q, k, v, g, beta = MODEL.arguments(tokens)
    spread = erasing.spread(g, case.K)
    for one, two, what in zip(
        kda.recurrent(q, k, v, spread, beta, S0), gated_delta.recurrent(q, k, v, g, beta, S0), ("outputs", "final state"), strict=True
    ):
        exactly(one, two, what)


@few
@given(battery.cases())
def test_with_keys_that_are_new_it_is_gated_linear_attention(case):
    """Orthonormal keys on an empty memory, as long as nothing but whole channels fades: there is nothing to take out."""
    T = min(case.T, case.K)
    tokens, *_ = battery.run_of(case._replace(T=T), MODEL.exact)
    q, v, g, k = tokens["q"], tokens["v"], tokens["g"], np.eye(case.K)[:T]
    for one, two, what in zip(kda.recurrent(q, k, v, g, np.ones(T)), gla.recurrent(q, k, v, g), ("outputs", "final state"), strict=True):
        exactly(one, two, what)


@few
@given(inputs.seeds, erasing.gates, st.sampled_from([1, 3, 16]), st.sampled_from([5, 32]))
def test_sub_chunks_change_nothing(seed, gates, sub, chunk):
    """Real tokens, in float64, strong gates among them: where the anchors stand is a question of rounding only."""
    rng = np.random.default_rng(seed)
    tokens, S0 = MODEL.real(rng, gates, "drawn", 35, 5, 3, "float64"), rng.standard_normal((5, 3))
    run = lambda form, *more: bounded(form, *MODEL.arguments(tokens), S0, *more, precision=Precision("float64", "float64"))
    for a, b, what in zip(run(kda.chunked, chunk, sub), run(kda.recurrent), ("outputs", "final state"), strict=True):
        coincide(a, b, what)


@few
@given(inputs.seeds)
def test_gates_are_those_of_the_definition_and_keep_their_bounds(fast, seed):
    x, A_log, dt_bias = inputs.values("large", [(9, 2, 5), (2,), (2, 5)], seed, "float32")
    A_log = A_log / 16
    given_ = [inputs.tensor(y, "float32") for y in (x, A_log, dt_bias)]
    g, between = fast.gate(*given_), fast.bounded_gate(*given_, -4.0)
    assert bool((g <= 0).all()) and bool(((between <= 0) & (between >= -4)).all())
    for h in range(2):
        parameters = x[:, h], A_log[h : h + 1], dt_bias[h]
        agree(g[:, h], bounded(kda.gate, *parameters, precision=Precision("float32")), f"log-decays of head {h}")
        bound = bounded(kda.bounded_gate, *parameters, -4.0, precision=Precision("float32"))
        agree(between[:, h], bound, f"bounded log-decays of head {h}")
    with pytest.raises(ValueError, match="lowest must"):
        fast.bounded_gate(*given_, 1.0)


def test_a_bounded_gate_bounds_the_exponents_of_a_chunk():
    """Fully shut, 16 tokens of it fade to e^{-80}, which float32 still tells from 0; the plain gate has no such end."""
    x = np.full((16, 1), 1e4)
    assert kda.bounded_gate(x, 0.0, 0.0).sum() == -80 and np.float32(np.exp(-80.0)) > 0
    assert kda.gate(x, 0.0, 0.0).sum() == -160000
