"""Linear attention: the laws of every causal recurrence that a quotient keeps, and weights that are weights."""

from fractions import Fraction

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
    test_no_token_one_token_two_and_three_chunks,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.spec.linear_attention import affine, linear, retnet

NAMES = ("q", "k", "v")


def exact_tokens(rng, T, K, V):
    """Features of at least 0: with eps = 1 every denominator is a small whole number, and its quotient is rounded once."""
    v = battery.exact_tokens(rng, T, K, V)["v"]
    return {"q": rng.integers(0, 3, (T, K)).astype(float), "k": rng.integers(0, 3, (T, K)).astype(float), "v": v}


def joined(form, round_to=np.float64):
    """A form whose state is one array (K, V + 1), as the laws hand it on."""

    def run(tokens, S0):
        o, (S, z) = form(tokens["q"], tokens["k"], tokens["v"], 1.0, (S0[:, :-1], S0[:, -1]))
        return o.astype(round_to).astype(float), np.concatenate([S, z[:, None]], axis=1)

    return run


def of_spec():
    forms = {f"chunked in {n}": joined(lambda *a, n=n: linear.chunked(*a, n)) for n in (1, 2, 3, 7, 16, 64)}
    forms["parallel"] = joined(linear.parallel)
    return battery.Operation(joined(linear.recurrent), forms, stepped(linear.step), tokens_and_state)


def stepped(step, round_to=np.float64):
    def run(state, token):
        o, (S, z) = step((state[:, :-1], state[:, -1]), token["q"], token["k"], token["v"], 1.0)
        return o.astype(round_to).astype(float), np.concatenate([S, z[:, None]], axis=1)

    return run


def tokens_and_state(rng, T, K, V):
    """One value column less than the state has: the last is that of the denominator, which a state may bring to 0."""
    return exact_tokens(rng, T, K, V - 1)


def of_fast(fast):
    """The quotient of two whole numbers, rounded to float32."""

    def on_arrays(form, **options):
        def run(q, k, v, eps, S0):
            rows = [inputs.tensor(x[None, :, None], "float32") for x in (q, k, v)]
            o, (S, z) = form(*rows, eps, tuple(inputs.tensor(x[None, None], "float32") for x in S0), **options)
            return inputs.array(o)[0, :, 0], (inputs.array(S)[0, 0], inputs.array(z)[0, 0])

        return joined(run)

    def one(state, q, k, v, eps):
        rows = [inputs.tensor(x[None, None], "float32") for x in (q, k, v)]
        o, (S, z) = fast.step(tuple(inputs.tensor(x[None, None], "float32") for x in state), *rows, eps)
        return inputs.array(o)[0, 0], (inputs.array(S)[0, 0], inputs.array(z)[0, 0])

    forms = {"chunked": on_arrays(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {name: on_arrays(getattr(fast, name)) for name in ("recurrent", "parallel")}
        forms["chunked in 16"] = on_arrays(fast.chunked, chunk=16)
    return battery.Operation(joined(linear.recurrent, np.float32), forms, stepped(one), tokens_and_state)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.linear", of_spec, of_fast) as operation:
        yield operation


@given(st.integers(1, 9), inputs.seeds)
def test_it_is_a_weighted_mean(T, seed):
    """In fractions: weights add up to 1, so a constant comes back, and no output leaves the range of the values."""
    fractions = lambda x: np.array([[Fraction(int(y)) for y in row] for row in x], dtype=object)
    tokens = exact_tokens(np.random.default_rng(seed), T, 3, 2)
    q, k, v = fractions(tokens["q"] + 1), fractions(tokens["k"] + 1), fractions(tokens["v"])
    nothing = lambda width: (fractions(np.zeros((3, width))), fractions(np.zeros((1, 3)))[0])
    o, _ = linear.parallel(q, k, v, Fraction(0), nothing(2))
    assert all((v[: t + 1].min(0) <= o[t]).all() and (o[t] <= v[: t + 1].max(0)).all() for t in range(T))
    sevens = fractions(np.full((T, 1), 7))
    assert (linear.parallel(q, k, sevens, Fraction(0), nothing(1))[0] == 7).all()


@given(st.integers(0, 20), inputs.seeds)
def test_it_is_the_core_and_retention_that_never_fades_with_a_column_of_ones(T, seed):
    """A row of the table of models, to the bit."""
    tokens = exact_tokens(np.random.default_rng(seed), T, 5, 3)
    q, k, v = tokens.values()
    zero = np.zeros((T, 5))
    both, state = affine.recurrent(q, k, np.concatenate([v, np.ones((T, 1))], axis=1), zero, zero, zero)
    for one, two in zip(retnet.recurrent(q, k, np.concatenate([v, np.ones((T, 1))], axis=1), 1.0), (both, state), strict=True):
        exactly(one, two, "retention that never fades")
    o, (S, z) = linear.recurrent(q, k, v, 1.0)
    exactly(o, both[:, :-1] / (both[:, -1:] + 1.0), "outputs")
    exactly(np.concatenate([S, z[:, None]], axis=1), state, "both sums")
