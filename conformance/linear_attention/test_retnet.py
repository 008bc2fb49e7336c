"""Retention: the laws of every causal recurrence at the ends of its range, and its place among them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_keys_and_queries_scale_against_each_other,
    test_no_token_one_token_two_and_three_chunks,
    test_outputs_and_state_are_linear_in_values_and_state,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_the_matrix_is_lower_triangular,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine, retnet, simple_gla

exact64 = Precision("float64", "float64")
NAMES = ("q", "k", "v")


def exact_tokens(rng, T, K, V):
    tokens = battery.exact_tokens(rng, T, K, V)
    return {name: tokens[name] for name in NAMES}


def of_spec(gamma):
    definition = lambda tokens, S0: retnet.recurrent(*tokens.values(), gamma, S0)
    forms = {f"chunked in {n}": lambda tokens, S0, n=n: retnet.chunked(*tokens.values(), gamma, S0, n) for n in (1, 2, 3, 7, 16, 64)}
    forms["parallel"] = lambda tokens, S0: retnet.parallel(*tokens.values(), gamma, S0)
    return battery.Operation(definition, forms, lambda state, token: retnet.step(state, *token.values(), gamma), exact_tokens)


def of_fast(fast, gamma):
    rate = inputs.tensor(np.array([gamma]), "float32")
    on = lambda form, **options: battery.on_tensors(lambda q, k, v, S0, **o: form(q, k, v, rate, S0, **o), NAMES, **options)
    forms = {"chunked": on(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {f"chunked in {chunk}": on(fast.chunked, chunk=chunk) for chunk in (16, 64)}
        forms |= {"recurrent": on(fast.recurrent), "parallel": on(fast.parallel)}
    step = battery.one_token(lambda state, q, k, v: fast.step(state, q, k, v, rate), NAMES)
    return battery.Operation(lambda tokens, S0: retnet.recurrent(*tokens.values(), gamma, S0), forms, step, exact_tokens)


@pytest.fixture(scope="module", params=[(side, gamma) for side in battery.SIDES for gamma in (1.0, 0.0)], ids=str)
def operation(request):
    """Nothing is forgotten, or everything: then all sums are exact."""
    name, gamma = request.param
    with battery.side(name, "linear_attention.retnet", lambda: of_spec(gamma), lambda fast: of_fast(fast, gamma)) as operation:
        yield operation


@few
@given(battery.cases())
def test_it_is_the_core_and_simple_gated_linear_attention_with_constant_decay(case):
    """Two rows of the table of models, within the rounding of exp(log gamma)."""
    tokens, S0, *_ = battery.run_of(case, exact_tokens)
    gamma = 1 - 2.0 ** -(1 + case.seed % 9)
    g = np.full(case.T, np.log(gamma))
    spread = np.repeat(g[:, None], case.K, axis=1)
    own = bounded(retnet.recurrent, *tokens.values(), gamma, S0, precision=exact64)
    zero = 0 * tokens["k"]
    for form, *more in ((simple_gla.recurrent, g, S0), (affine.recurrent, spread, zero, zero, S0)):
        for one, two, what in zip(own, bounded(form, *tokens.values(), *more, precision=exact64), ("outputs", "state"), strict=True):
            coincide(one, two, what)


def divided(scores, fading, by):
    """Rows of scores, divided as the paper divides them: by the root of K, by that of their decays' sum, by their own sum if above 1."""
    if "K" in by:
        scores = scores / np.sqrt(5)
    if "decays" in by:
        scores = scores / np.sqrt(np.sum(fading, axis=1))[:, None]
    if "sums" in by:
        scores = scores / np.maximum(np.abs(np.sum(scores, axis=1)), 1)[:, None]
    return scores


def normed(o, eps):
    """A head's outputs, each row with mean 0 and variance 1."""
    centered = o - np.mean(o, axis=1)[:, None]
    return centered / np.sqrt(np.mean(centered * centered, axis=1) + eps)[:, None]


@given(inputs.seeds, st.sampled_from(["K", "decays", "sums", "K, decays, sums"]))
def test_divisors_of_rows_hide_behind_a_norm_per_head_that_has_no_epsilon(seed, by):
    """The matrix is what retention makes of the identity, its decays are what it makes of ones. An epsilon of 1e-5 shows every divisor."""
    q, k, v = np.random.default_rng(seed).standard_normal((3, 12, 5))
    one, gamma, eye = np.ones((12, 1)), 15 / 16, np.eye(12)

    def head(q, k, v, eps):
        scores, fading = (retnet.parallel(*pair, eye, gamma)[0] for pair in ((q, k), (one, one)))
        return normed(divided(scores, fading, by) @ v, eps)

    plain = lambda q, k, v, eps: normed(retnet.recurrent(q, k, v, gamma)[0], eps)
    for eps in (0.0, 1e-5):
        here, there = (bounded(form, q, k, v, eps, precision=exact64) for form in (head, plain))
        if eps == 0:
            coincide(here, there, f"rows divided by {by}")
        else:
            assert np.any(np.abs(here.value - there.value) > here.error + there.error), f"an epsilon does not show rows divided by {by}"


def test_horizons_double_from_head_to_head():
    exactly(1 / (1 - retnet.decays(6)), 2.0 ** np.arange(5, 11), "tokens after which a head has forgotten most")
