"""Log-linear attention: the laws of every causal recurrence, exactly; what a Fenwick tree holds; and its place among its neighbors."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_no_token_one_token_two_and_three_chunks,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import log_linear, simple_gla

exact64 = Precision("float64", "float64")
LEVELS = 8  # for places up to 127


def exact_tokens(rng, T, K, V):
    """Small integers, weights of 0, 1 and 2, gates that are open or shut."""
    g = np.where(rng.random(T) < 0.05, -np.inf, 0.0)
    return battery.exact_tokens(rng, T, K, V) | {"g": g, "lam": rng.integers(0, 3, (T, LEVELS)).astype(float)}


def together(state):
    """States (L, K, V) and how many tokens there were as one array (L K + 1, V)."""
    S, t = state
    return np.concatenate([S.reshape(-1, S.shape[2]), np.full((1, S.shape[2]), float(t))])


def apart(state, K):
    return state[:-1].reshape(-1, K, state.shape[1]), int(state[-1, 0])


def state_of(rng, K, V):
    """After up to 80 tokens: a level for every bit of the last one, and the last one."""
    t = int(rng.integers(0, 81))
    live = np.array([t > 0, *(bool((t - 1) >> p & 1) and t > 0 for p in range(LEVELS - 1))])
    return together((rng.integers(-2, 3, (LEVELS, K, V)) * live[:, None, None], t))


def joined(form, *options):
    def run(tokens, S0):
        o, state = form(*tokens.values(), apart(S0, tokens["k"].shape[1]), *options)
        return o, together(state)

    return run


def stepped(state, token):
    o, after = log_linear.step(apart(state, len(token["k"])), *token.values())
    return o, together(after)


def on_arrays(form, *options):
    def run(tokens, S0):
        S, t = apart(S0, tokens["k"].shape[1])
        rows = [inputs.tensor(x[None, :, None], "float32") for x in tokens.values()]
        o, (S, t) = form(*rows, (inputs.tensor(S[None, None], "float32"), inputs.tensor(np.array([t]))), *options)
        return inputs.array(o)[0, :, 0], together((inputs.array(S)[0, 0], int(t)))

    return run


def one_token(step):
    def run(state, token):
        S, t = apart(state, len(token["k"]))
        rows = [inputs.tensor(x[None, None], "float32") for x in token.values()]
        o, (S, t) = step((inputs.tensor(S[None, None], "float32"), inputs.tensor(np.array([t]))), *rows)
        return inputs.array(o)[0, 0], together((inputs.array(S)[0, 0], int(t)))

    return run


def of_spec():
    forms = {f"chunked in {n}": joined(log_linear.chunked, n) for n in (1, 2, 3, 7, 16, 64)}
    forms["recurrent"] = joined(log_linear.recurrent)
    return battery.Operation(joined(log_linear.parallel), forms, stepped, exact_tokens, state_of)


def of_fast(fast):
    forms = {f"chunked in {n}": on_arrays(fast.chunked, n) for n in (7, 16, 64)}
    forms |= {"recurrent": on_arrays(fast.recurrent), "parallel": on_arrays(fast.parallel)}
    return battery.Operation(joined(log_linear.parallel), forms, one_token(fast.step), exact_tokens, state_of)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.log_linear", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_outputs_and_states_are_linear_in_values_and_states(operation, case):
    tokens, S0, _, others, S1 = operation.run(case)
    S1[:-1], S1[-1] = S1[:-1] * (S0[:-1] != 0), S0[-1]  # no level of its own
    sum_of = lambda a, b: np.concatenate([a[:-1] + 2 * b[:-1], a[-1:]])
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(tokens | {"v": others["v"]}, S1)
        both = form(tokens | {"v": tokens["v"] + 2 * others["v"]}, sum_of(S0, S1))
        exactly(both[0], first[0] + 2 * second[0], f"{name}: outputs of v + 2 v'")
        exactly(both[1], sum_of(first[1], second[1]), f"{name}: final state of v + 2 v'")


@few
@given(battery.cases())
def test_with_all_weights_one_it_is_simple_gated_linear_attention(operation, case):
    """And its state is the sum over all levels, whatever the weights are."""
    tokens, S0, *_ = operation.run(case)
    total = lambda state: apart(state, case.K)[0].sum(0)
    expected, after = simple_gla.recurrent(*(tokens[name] for name in "qkvg"), total(S0))
    for name, form in operation.forms.items():
        exactly(form(tokens | {"lam": np.ones((case.T, LEVELS))}, S0)[0], expected, f"{name}: outputs with equal weights")
        exactly(total(form(tokens, S0)[1]), after, f"{name}: sum of the states")


@few
@given(battery.cases())
@example(battery.Case(T=35, K=5, V=3, at=5, seed=0))
def test_a_level_sees_its_block_and_no_other(operation, case):
    """Tomography from an empty memory: keys that name their token, one level at a time; blocks peeled off from the lowest bit."""
    T = case.T
    tokens = {"q": np.ones((T, 1)), "k": np.ones((T, 1)), "v": np.eye(T), "g": np.zeros(T)}
    for name, form in operation.forms.items():
        for level, one in enumerate(np.eye(LEVELS)):
            seen = form(tokens | {"lam": np.tile(one, (T, 1))}, np.zeros((LEVELS + 1, T)))[0]
            expected = np.array([np.isin(np.arange(T), blocks(t)[level]) for t in range(T)], dtype=float)
            exactly(seen, expected, f"{name}: tokens seen at level {level}")


def blocks(t):
    """The paper's partition of the tokens up to t, as lists: the token, then a block for every bit of t, the lowest first."""
    parts, end = [[t], *([] for _ in range(LEVELS - 1))], t
    for p in range(LEVELS - 1):
        if t >> p & 1:
            parts[p + 1] = list(range(end - 2**p, end))
            end -= 2**p
    assert end == 0
    return parts


@given(st.integers(1, 100))
def test_there_are_as_many_states_as_bits_and_one(t):
    """At most the logarithm of the number of tokens and one."""
    one = np.ones((t, 1))
    S, seen = log_linear.recurrent(one, one, one, np.zeros(t), np.ones((t, LEVELS)))[1]
    assert seen == t and np.count_nonzero(S) == 1 + (t - 1).bit_count() <= np.ceil(np.log2(max(t, 2))) + 1
    exactly(S[:, 0, 0], np.array([float(len(part)) for part in blocks(t - 1)]), "tokens in each state")


@given(inputs.seeds, st.integers(0, 40), st.sampled_from([1, 5, 16, 64]), st.sampled_from([0.1, 30.0]), st.integers(0, 40))
def test_forms_of_the_spec_are_equal_on_real_values(seed, T, chunk, forget, before):
    """Gates around -0.1 and -30, from the state that some tokens before have left."""
    rng = np.random.default_rng(seed)

    def draw(T):
        q, k, v, lam = (rng.standard_normal((T, n)) for n in (5, 5, 3, LEVELS))
        return q, k, v, -forget * np.abs(rng.standard_normal(T)), lam

    S, t = log_linear.recurrent(*draw(before))[1]
    tokens = draw(T)
    flat = lambda form, *options: lambda *x: (lambda o, state: (o, state[0]))(*form(*x[:5], (x[5], t), *options))
    forms = flat(log_linear.parallel), flat(log_linear.recurrent), flat(log_linear.chunked, chunk)
    first, *others = (bounded(form, *tokens, S, precision=exact64) for form in forms)
    for other in others:
        for one, two, what in zip(first, other, ("outputs", "states"), strict=True):
            coincide(one, two, what)
