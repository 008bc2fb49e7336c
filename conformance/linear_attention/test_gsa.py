"""Gated slot attention: the laws of every causal recurrence where a softmax is exact, and what its slots are at their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention import battery, slots
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_log_decay_of_minus_infinity_begins_anew,
    test_a_run_resumes_at_any_token,
    test_a_silent_token_is_passed_over,
    test_every_form_is_the_definition,
    test_no_token_one_token_two_and_three_chunks,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense
from twofold.spec.linear_attention import gsa, simple_gla

exact64 = Precision("float64", "float64")


def exact_tokens(rng, T, K, V):
    """Writes of -1, 0, 1; gates that are open or shut."""
    s = rng.integers(-1, 2, (T, slots.SLOTS)).astype(float)
    return slots.exact_tokens(rng, T, K, V) | {"s": s, "g": np.where(rng.random((T, slots.SLOTS)) < 0.1, -np.inf, 0.0)}


def state_of(rng, K, V):
    return battery.whole_numbers(rng, K + V, slots.SLOTS)


def of_spec():
    sizes = [(1, 1), (2, 1), (3, 2), (7, 3), (16, 16), (64, 16), (64, 5)]
    forms = {f"chunked in {chunk} by {sub}": slots.joined(gsa.chunked, chunk, sub) for chunk, sub in sizes}
    return battery.Operation(slots.joined(gsa.recurrent), forms, slots.stepped(gsa.step), exact_tokens, state_of)


def of_fast(fast):
    forms = {"chunked": slots.on_arrays(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {f"chunked in {chunk}": slots.on_arrays(fast.chunked, chunk=chunk) for chunk in (16, 64)}
        forms["recurrent"] = slots.on_arrays(fast.recurrent)
    return battery.Operation(slots.joined(gsa.recurrent), forms, slots.one_token(fast.step), exact_tokens, state_of)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.gsa", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_outputs_and_values_of_slots_are_linear_in_values(operation, case):
    """Jointly in v and the slots' values, while keys, writes and gates stay."""
    tokens, S0, _, others, S1 = operation.run(case)
    K = tokens["k"].shape[1]
    S1[:K] = S0[:K]
    sum_of = lambda a, b: np.concatenate([a[:K], a[K:] + 2 * b[K:]])
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(tokens | {"v": others["v"]}, S1)
        both = form(tokens | {"v": tokens["v"] + 2 * others["v"]}, sum_of(S0, S1))
        exactly(both[0], first[0] + 2 * second[0], f"{name}: outputs of v + 2 v'")
        exactly(both[1], sum_of(first[1], second[1]), f"{name}: final state of v + 2 v'")


@few
@given(battery.cases())
def test_slots_have_no_order(operation, case):
    tokens, S0, *_ = operation.run(case)
    swapped = tokens | {name: tokens[name][:, ::-1] for name in ("s", "g")}
    for name, form in operation.forms.items():
        expected, actual = form(tokens, S0), form(swapped, S0[:, ::-1])
        exactly(actual[0], expected[0], f"{name}: outputs with slots exchanged")
        exactly(actual[1], expected[1][:, ::-1], f"{name}: final state with slots exchanged")


@few
@given(battery.cases())
def test_one_slot_that_takes_in_everything_is_a_decayed_sum_of_values(operation, case):
    """A softmax over one slot is 1: no query and no key matters."""
    tokens, S0, *_ = operation.run(case)
    one, S0 = np.ones((case.T, 1)), S0[:, :1]
    expected, after = simple_gla.recurrent(one, one, tokens["v"], tokens["g"][:, 0], S0[case.K :].T)
    for name, form in operation.forms.items():
        output, state = form(tokens | {"s": one, "g": tokens["g"][:, :1]}, S0)
        exactly(output, expected, f"{name}: outputs of one slot")
        exactly(state[case.K :].T, after, f"{name}: its value")


@given(inputs.seeds, st.integers(1, 20), st.sampled_from([(1, 1), (7, 3), (64, 16)]))
def test_with_a_slot_for_every_token_it_is_attention_over_zeros_for_those_to_come(seed, T, sizes):
    """Each token writes to a slot of its own and nothing fades; the last one sees no zeros."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, T, 5))

    def attention(q, k, v):
        seen = np.tri(T, dtype=bool)[:, :, None]
        rows = [dense.attention(q[t][None], np.where(seen[t], k, 0.0), np.where(seen[t], v, 0.0), scale=1.0)[0] for t in range(T)]
        return np.concatenate(rows)

    expected = bounded(attention, q, k, v, precision=exact64)
    for form, *options in ((gsa.recurrent,), (gsa.chunked, None, *sizes)):
        outputs = lambda q, k, v, form=form, options=options: form(q, k, v, np.eye(T), np.zeros((T, T)), *options)[0]
        coincide(bounded(outputs, q, k, v, precision=exact64), expected, form.__name__)


@given(inputs.seeds, st.integers(0, 40), st.sampled_from([(1, 1), (5, 2), (16, 5), (64, 16)]), st.sampled_from([0.1, 2.0, 30.0]))
def test_forms_of_the_spec_are_equal_on_real_values(seed, T, sizes, forget):
    """Gates around -0.1, -2 and -30, writes of any size."""
    rng = np.random.default_rng(seed)
    K, V, M = 5, 3, 4
    tokens = [rng.standard_normal((T, n)) for n in (K, K, V, M)] + [-forget * np.abs(rng.standard_normal((T, M)))]
    state = rng.standard_normal((K, M)), rng.standard_normal((M, V))
    flat = lambda form, *options: lambda *x: (lambda o, S: (o, *S))(*form(*x[:5], x[5:], *options))
    own, other = (bounded(form, *tokens, *state, precision=exact64) for form in (flat(gsa.recurrent), flat(gsa.chunked, *sizes)))
    for one, two, what in zip(own, other, ("outputs", "keys of the slots", "their values"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.sampled_from([1.0, 8.0]))
def test_gates_take_in_what_they_forget(fast, seed, tau):
    """Writes and what is kept add up to one; twice the tau is half the log-decay."""
    (x,) = inputs.values("normal", [(9, 4)], seed, "float32")
    s, g = bounded(gsa.gate, 8 * x, tau, precision=Precision("float32"))
    assert np.all(g.value <= 0)
    exactly(gsa.gate(8 * x, 2 * tau)[1], g.value / 2, "twice the tau")
    one, two = (bounded(f, 8 * x, precision=exact64) for f in (lambda x: gsa.gate(x, tau)[0], lambda x: 1 - np.exp(gsa.gate(x, tau)[1])))
    coincide(one, two, "one minus what is kept")
    for actual, expected, what in zip(fast.gate(inputs.tensor(8 * x, "float32"), tau), (s, g), ("writes", "log-decays"), strict=True):
        agree(actual, expected, what)
