"""Lightning attention: the laws of every causal recurrence where nothing fades, retention where something does, and both schedules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
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
from twofold.spec.linear_attention import affine, lightning, retnet

NAMES = ("q", "k", "v")


def exact_tokens(rng, T, K, V):
    tokens = battery.exact_tokens(rng, T, K, V)
    return {name: tokens[name] for name in NAMES}


def definition(tokens, S0):
    return lightning.recurrent(*tokens.values(), 1.0, S0)


def of_spec():
    forms = {f"blocks of {n}": lambda tokens, S0, n=n: lightning.chunked(*tokens.values(), 1.0, S0, n) for n in (1, 2, 3, 7, 16, 64)}
    return battery.Operation(definition, forms, lambda state, token: lightning.step(state, *token.values(), 1.0), exact_tokens)


def of_fast(fast):
    rate = inputs.tensor(np.ones(1), "float32")
    on = lambda form, **options: battery.on_tensors(lambda q, k, v, S0, **o: form(q, k, v, rate, S0, **o), NAMES, **options)
    forms = {"blocks of 32": on(fast.chunked, block=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"blocks of 64": on(fast.chunked), "recurrent": on(fast.recurrent)}
    return battery.Operation(definition, forms, battery.one_token(lambda s, q, k, v: fast.step(s, q, k, v, rate), NAMES), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    """Linear attention without a denominator: then all sums are exact."""
    with battery.side(request.param, "linear_attention.lightning", of_spec, of_fast) as operation:
        yield operation


@given(inputs.seeds, st.integers(0, 70), st.sampled_from([1, 5, 16, 64]), st.sampled_from([0.5, 0.01, 31 / 32, 1.0]))
def test_blocks_are_the_recurrence_and_retention_without_rotations(seed, T, block, lam):
    """In float64, within 1e-13 of the sum of what is added, which the same form gives on absolute values; and a row of the table."""
    rng = np.random.default_rng(seed)
    q, k, v, S0 = (rng.standard_normal(shape) for shape in ((T, 5), (T, 5), (T, 3), (5, 3)))
    size = lightning.recurrent(*map(np.abs, (q, k, v)), lam, np.abs(S0))
    g, zero = np.full((T, 5), np.log(lam)), np.zeros((T, 5))
    expected = lightning.recurrent(q, k, v, lam, S0)
    others = lightning.chunked(q, k, v, lam, S0, block), retnet.parallel(q, k, v, lam, S0), affine.recurrent(q, k, v, g, zero, zero, S0)
    for other in others:
        for a, e, s in zip(other, expected, size, strict=True):
            assert np.all(np.abs(a - e) <= 1e-13 * s)


def test_a_strong_decay_and_a_long_block_do_not_overflow():
    """0.01^-64 would be 1e128; the paper's quotient of two such powers is what the sum of exponents avoids."""
    ones = np.ones((400, 1))
    for block in (64, 400):
        output, state = lightning.chunked(ones, ones, ones, 1e-3, None, block)
        assert np.abs(output[-1] - 1 / (1 - 1e-3)) <= 1e-15 and np.isfinite(state).all()


@pytest.mark.parametrize("schedule", ["slopes_exponential", "slopes_alibi"])
def test_schedules_forget_less_in_later_layers_and_agree_on_both_sides(fast, schedule):
    """For any number of heads; every rate lies in (0, 1]."""
    for H in (1, 2, 3, 4, 6, 8, 12):
        table = np.stack([getattr(lightning, schedule)(H, layer, 5) for layer in range(5)])
        assert np.all(table >= 0) and np.all((np.diff(table, axis=0) < 0) | (table[:-1] == 0))
        for layer in range(5):
            exactly(getattr(fast, schedule)(H, layer, 5), table[layer].astype(np.float32), f"{H} heads, layer {layer}")
    assert getattr(lightning, schedule)(8, 0, 1).shape == (8,)
