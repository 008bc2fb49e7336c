"""RWKV-6: the laws of every causal recurrence, exactly, for one that reads before it writes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
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
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine, gla, rwkv6

exact64 = Precision("float64", "float64")
NAMES = ("q", "k", "v", "g")  # as the laws call them: receptances stand for q


def own_share(K):
    return np.arange(K) % 4 - 1.0  # -1, 0, 1, 2


def definition(tokens, S0):
    return rwkv6.recurrent(*(tokens[name] for name in NAMES), own_share(tokens["k"].shape[1]), S0)


def of_spec():
    forms = {
        f"chunked in {n}": lambda tokens, S0, n=n: rwkv6.chunked(*(tokens[x] for x in NAMES), own_share(tokens["k"].shape[1]), S0, n)
        for n in (1, 2, 3, 7, 16, 64)
    }
    step = lambda state, token: rwkv6.step(state, *(token[name] for name in NAMES), own_share(len(token["k"])))
    return battery.Operation(definition, forms, step, battery.exact_tokens)


def of_fast(fast):
    share = lambda k: inputs.tensor(own_share(k.shape[-1])[None], "float32")
    on = lambda form, **options: battery.on_tensors(lambda r, k, v, g, S0, **o: form(r, k, v, g, share(k), S0, **o), NAMES, **options)
    forms = {"chunked": on(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"chunked in 16": on(fast.chunked, chunk=16), "recurrent": on(fast.recurrent)}
    step = battery.one_token(lambda state, r, k, v, g: fast.step(state, r, k, v, g, share(k)), NAMES)
    return battery.Operation(definition, forms, step, battery.exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.rwkv6", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_it_is_the_core_read_early_and_gated_linear_attention_one_place_later(case):
    """A row of the table of models; and what a token finds is what a query of the token before would have read."""
    tokens, S0, *_ = battery.run_of(case, battery.exact_tokens)
    r, k, v, g = (tokens[name] for name in NAMES)
    u = own_share(case.K)
    own = rwkv6.recurrent(r, k, v, g, u, S0)
    for one, two in zip(own, affine.recurrent_pre(r, k, v, g, 0 * k, 0 * k, u, S0), strict=True):
        exactly(one, two, "the core")
    found = gla.recurrent(np.concatenate([r[1:], r[:1]]), k, v, g, S0)[0][:-1]
    exactly(own[0], np.concatenate([(r[0] @ S0)[None], found]) + np.sum(r * u * k, axis=1)[:, None] * v, "one place later")


@few
@given(battery.cases())
def test_no_decay_touches_a_tokens_own_pair_and_a_bonus_of_one_is_linear_attention(case):
    tokens, S0, at, *_ = battery.run_of(case, battery.exact_tokens)
    r, k, v, g = (tokens[name] for name in NAMES)
    u, changed = own_share(case.K), g.copy()
    changed[at:] = -np.inf
    until = [rwkv6.recurrent(r, k, v, gates, u, S0)[0][: at + 1] for gates in (changed, g)]
    exactly(*until, "outputs up to the gate")
    still = np.zeros_like(g)
    for one, two in zip(rwkv6.recurrent(r, k, v, still, np.ones(case.K), S0), gla.recurrent(r, k, v, still, S0), strict=True):
        exactly(one, two, "nothing fades, and the bonus is one")


@given(inputs.seeds, st.integers(0, 6), st.booleans())
def test_mixes_agree_with_the_definition_and_resume(fast, seed, T, continued):
    """Shares of 1 give the row before, shares of 0 the row itself; a run that is cut hands on its last row."""
    D, R = 4, 3
    x, last, mu_x = inputs.values("normal", [(T, D), (D,), (D,)], seed, "float32")
    mu, A, B = inputs.values("normal", [(5, D), (D, 5 * R), (5, R, D)], seed + 1, "float32")
    before = last if continued else np.zeros(D)
    expected = bounded(rwkv6.mix, x, mu_x, mu, A, B, before, precision=Precision("float32"))
    tensors = [inputs.tensor(y, "float32") for y in (x[None], mu_x, mu, A, B)]
    actual = fast.mix(*tensors, inputs.tensor(last[None], "float32") if continued else None)
    agree(actual[:, 0], expected, "mixes")
    rows = np.concatenate([before[None], x])
    for share in (0.0, 1.0):
        exactly(rwkv6.mix(x, mu_x, np.full((5, D), share), 0 * A, B, before)[2], x + (rows[:-1] - x) * share, f"a share of {share}")
    for cut in range(T + 1):
        parts = rwkv6.mix(x[:cut], mu_x, mu, A, B, before), rwkv6.mix(x[cut:], mu_x, mu, A, B, rows[cut])
        agree(np.concatenate(parts, axis=1), bounded(rwkv6.mix, x, mu_x, mu, A, B, before, precision=exact64), f"cut at {cut}")
