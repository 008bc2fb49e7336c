"""HGRN: the laws of every causal recurrence, exactly, its maps and their composition, its gates, and its place among the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention import battery, channels
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_log_decay_of_minus_infinity_begins_anew,
    test_a_run_resumes_at_any_token,
    test_a_silent_token_is_passed_over,
    test_every_form_is_the_definition,
    test_keys_and_queries_scale_against_each_other,
    test_outputs_and_state_are_linear_in_values_and_state,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_the_matrix_is_lower_triangular,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine, gla, hgrn, hgrn2

exact64 = Precision("float64", "float64")
definition = channels.read(hgrn.recurrent)


def of_spec():
    forms = {f"scan in {n}": channels.read(lambda x, g, S0, n=n: hgrn.scan(x, g, S0, n)) for n in (1, 2, 3, 7, 16, 64)}
    return battery.Operation(definition, forms, channels.one_of_many(hgrn.step), battery.exact_tokens)


def of_fast(fast):
    on = lambda form, **options: channels.read(channels.on_tensors(form, **options))
    forms = {"scan": on(fast.scan), "scan in 16": on(fast.scan, chunk=16)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {f"scan in {chunk}": on(fast.scan, chunk=chunk) for chunk in (1, 7, 64)} | {"recurrent": on(fast.recurrent)}
    return battery.Operation(definition, forms, channels.one_of_many(channels.on_tensors(fast.step)), battery.exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.hgrn", of_spec, of_fast) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = battery.exact_tokens(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
def test_it_is_gated_linear_attention_and_the_core_channel_by_channel(case):
    """Read and written by keys and queries outside the recurrence or inside it: the same bits."""
    tokens, S0, *_ = battery.run_of(case, battery.exact_tokens)
    q, k, v, g = (tokens[name] for name in ("q", "k", "v", "g"))
    for other in (gla.recurrent(q, k, v, g, S0), affine.recurrent(q, k, v, g, 0 * k, 0 * k, S0)):
        for one, two, what in zip(definition(tokens, S0), other, ("outputs", "final state"), strict=True):
            exactly(one, two, what)


@given(inputs.seeds, st.integers(0, 20), st.sampled_from([0.0, 0.25, 0.9]))
def test_hgrn2_with_one_key_channel_is_hgrn(seed, T, lb):
    rng = np.random.default_rng(seed)
    f, c, S0 = 3 * rng.standard_normal((T, 1)), rng.standard_normal((T, 4)), rng.standard_normal(4)

    def ours(f, c, S0):
        g = np.repeat(hgrn.log_forget(f, lb), 4, axis=1)
        return hgrn.recurrent(-np.expm1(g) * c, g, S0)

    def theirs(f, c, S0):
        o, state = hgrn2.recurrent(np.ones((T, 1)), f, c, lb, S0[None])
        return o, state[0]

    pair = (bounded(text, f, c, S0, precision=exact64) for text in (ours, theirs))
    for one, two, what in zip(*pair, ("outputs", "state"), strict=True):
        coincide(one, two, what)


@few
@given(battery.cases())
def test_maps_compose(case):
    """Maps of neighboring runs compose to the map of both, in any grouping; applied to a state, they give the state behind them."""
    rng = np.random.default_rng(case.seed)
    x, S0 = rng.integers(-2, 3, (case.T, case.K)).astype(float), rng.integers(-2, 3, case.K).astype(float)
    g = np.where(rng.random(x.shape) < 0.1, -np.inf, 0.0)
    compose = lambda first, second: (first[0] + second[0], np.exp(second[0]) * first[1] + second[1])
    a, b = sorted(rng.integers(0, case.T + 1, 2))
    whole, first, second, third = (hgrn.summary(x[i:j], g[i:j]) for i, j in ((0, None), (0, a), (a, b), (b, None)))
    for maps in (compose(compose(first, second), third), compose(first, compose(second, third))):
        for one, two in zip(maps, whole, strict=True):
            exactly(one, two, f"map of {case.T} tokens, cut at {a} and {b}")
    exactly(np.exp(whole[0]) * S0 + whole[1], hgrn.recurrent(x, g, S0)[1], "the state behind the map")


@given(inputs.seeds, st.integers(0, 20))
def test_the_adjoint_is_that_of_gated_linear_attention(seed, T):
    """One value channel of ones, keys that hold what is written, queries that hold d outputs: dk is dx."""
    rng = np.random.default_rng(seed)
    x, do = rng.standard_normal((2, T, 5))
    g, (S0, dS) = -np.abs(rng.standard_normal((T, 5))), rng.standard_normal((2, 5))
    ones = np.ones((T, 1))

    def theirs(x, g, do, dS, S0):
        _, dk, _, dg, dS0 = gla.backward(do, x, ones, g, ones, dS[:, None], S0[:, None])
        return dk, dg, dS0[:, 0]

    pair = (bounded(text, x, g, do, dS, S0, precision=exact64) for text in (hgrn.backward, theirs))
    for one, two, what in zip(*pair, ("dx", "dg", "dS0"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 30), st.sampled_from([0.0, 0.5]))
def test_a_channel_stays_between_what_it_was_and_its_candidates(seed, T, lb):
    """A mean of the old and the new: no gate lets a state grow."""
    rng = np.random.default_rng(seed)
    f, c, S0 = 5 * rng.standard_normal((T, 4)), rng.standard_normal((T, 4)), rng.standard_normal(4)
    g = hgrn.log_forget(f, lb)
    h = bounded(lambda g, c: hgrn.recurrent(-np.expm1(g) * c, g, S0)[0], g, c, precision=exact64)
    least, most = np.minimum(S0, c.min(0)), np.maximum(S0, c.max(0))
    assert np.all(h.value >= least - h.error) and np.all(h.value <= most + h.error)


@given(inputs.seeds, st.integers(1, 6))
def test_lower_bounds_rise_from_nothing(fast, seed, layers):
    """None in the first layer, more in each, less than 1 in the last; and never less is kept."""
    (gamma,) = inputs.values("normal", [(layers, 4)], seed, "float32")
    bounds = hgrn.lower_bounds(gamma)
    assert np.all(bounds[0] == 0) and np.all(np.diff(bounds, axis=0) > 0) and np.all(bounds < 1)
    agree(fast.lower_bounds(inputs.tensor(gamma, "float32")), bounded(hgrn.lower_bounds, gamma, precision=Precision("float32")))
    f = np.random.default_rng(seed).standard_normal((50, 4)) * 20
    for bound in bounds:
        kept = bounded(lambda f, bound: np.exp(hgrn.log_forget(f, bound)), f, bound.tolist(), precision=exact64)
        assert np.all(kept.value >= bound - kept.error)
    exactly(hgrn.log_forget(f, 0.0), hgrn.log_forget(f, np.zeros(4)), "no bound")


@given(inputs.seeds, st.sampled_from(["none", "zero", "mixed"]), inputs.dtypes())
def test_log_decays_agree_with_the_definition(fast, seed, bound, dtype):
    """In float32 whatever the format, also of gates that are wide open or shut; a bound of 0 is none."""
    f = inputs.rounded(8 * np.random.default_rng(seed).standard_normal((9, 4)), dtype)
    f[0] = 60, -60, 500, -500
    lb = {"none": None, "zero": np.zeros(4), "mixed": np.array([0.0, 0.25, 0.5, 0.875])}[bound]
    g = fast.log_forget(inputs.tensor(f, dtype), None if lb is None else inputs.tensor(lb, "float32"))
    agree(g, bounded(lambda f: hgrn.log_forget(f, 0.0 if lb is None else lb), f, precision=Precision("float32")), "log-decays")
