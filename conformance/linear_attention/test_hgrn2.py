"""HGRN2: the laws of every causal recurrence with gates that are open or shut, and a state that stays in the range of what was written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_log_decay_of_minus_infinity_begins_anew,
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_no_token_one_token_two_and_three_chunks,
    test_outputs_and_state_are_linear_in_values_and_state,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine, gla, hgrn2

exact64 = Precision("float64", "float64")
NAMES = ("q", "g", "v")  # as the laws call them: the forget gates stand for g, the inputs for v


def exact_tokens(rng, T, K, V):
    """Gates of plus and minus infinity: a channel keeps everything and takes nothing in, or the other way round."""
    tokens = battery.exact_tokens(rng, T, K, V)
    return {"q": tokens["q"], "g": np.where(rng.random((T, K)) < 0.3, -np.inf, np.inf), "v": tokens["v"]}


def definition(tokens, S0):
    return hgrn2.recurrent(*tokens.values(), 0.0, S0)


def of_spec():
    forms = {f"chunked in {n}": lambda tokens, S0, n=n: hgrn2.chunked(*tokens.values(), 0.0, S0, n) for n in (1, 2, 7, 16, 64)}
    return battery.Operation(definition, forms, lambda state, token: hgrn2.step(state, *token.values()), exact_tokens)


def of_fast(fast):
    on = lambda form, **options: battery.on_tensors(lambda q, f, i, S0, **o: form(q, f, i, None, S0, **o), NAMES, **options)
    forms = {"chunked": on(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"chunked in 16": on(fast.chunked, chunk=16), "recurrent": on(fast.recurrent)}
    return battery.Operation(definition, forms, battery.one_token(fast.step, NAMES), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.hgrn2", of_spec, of_fast) as operation:
        yield operation


@given(inputs.seeds, st.integers(0, 20), st.sampled_from([0.0, 0.25, 0.9]))
def test_it_is_gated_linear_attention_and_the_core_with_keys_of_one_minus_the_gate(seed, T, lb):
    """Rows of the table of models, in float64; and the gate written out is the gate in logarithms."""
    rng = np.random.default_rng(seed)
    q, f, i, S0 = rng.standard_normal((T, 5)), 3 * rng.standard_normal((T, 5)), rng.standard_normal((T, 3)), rng.standard_normal((5, 3))

    def by_hand(q, f, i, S0, recurrent, *more):
        alpha = lb + (1 - lb) / (1 + np.exp(-f))
        return recurrent(q, 1 - alpha, i, np.log(alpha), *more, S0)

    zero = np.zeros((T, 5))
    own = bounded(hgrn2.recurrent, q, f, i, lb, S0, precision=exact64)
    for form in ((gla.recurrent,), (affine.recurrent, zero, zero)):
        other = bounded(by_hand, q, f, i, S0, *form, precision=exact64)
        for one, two, what in zip(own, other, ("outputs", "state"), strict=True):
            coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 30), st.sampled_from([0.0, 0.5]))
def test_a_channel_stays_between_what_it_was_and_what_was_written(seed, T, lb):
    """A mean of the old and the new: no gate lets a state grow."""
    rng = np.random.default_rng(seed)
    f, i, S0 = 5 * rng.standard_normal((T, 4)), rng.standard_normal((T, 3)), rng.standard_normal((4, 3))
    state = hgrn2.recurrent(np.zeros((T, 4)), f, i, lb, S0)[1]
    least, most = np.minimum(S0, i.min(0)), np.maximum(S0, i.max(0))
    assert np.all(state >= least - 1e-12) and np.all(state <= most + 1e-12)
