"""DeltaFormer: the laws of every causal operation, exactly, on softmaxes that have one winner; a cache to share; its neighbors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery, paths
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    ACROSS,
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense
from twofold.spec.linear_attention import delta, deltaformer

exact64 = Precision("float64", "float64")


def exact_tokens(rng, T, K, V):
    """Whole numbers; what a token asks first has one winner, too, and strengths are -1, 0 and 1, so that nothing grows."""
    tokens = paths.exact_tokens(rng, T, K, V)
    return tokens | {"w": tokens["q"][rng.permutation(T)], "beta": rng.integers(-1, 2, T).astype(float)}


def forms_of(module, *blocks):
    """Functions of (tokens, state)."""
    forms = {f"blocks of {n}": lambda x, S0, n=n: module.blockwise(**x, S0=S0, block=n) for n in blocks}
    return forms | {name: lambda x, S0, name=name: getattr(module, name)(**x, S0=S0) for name in ("recurrent", "parallel")}


def stepped(state, token):
    o, state = deltaformer.step(paths.apart(state, token), **token)
    return o, paths.together(state)


def of_spec():
    forms = {name: paths.joined(form) for name, form in forms_of(deltaformer, 1, 2, 3, 7, 16, 64).items()}
    return battery.Operation(forms["recurrent"], forms, stepped, exact_tokens, paths.state_without_gates)


def of_fast(fast):
    forms = {name: paths.on_arrays(form) for name, form in forms_of(fast, 7, 16, 64).items()}
    return replace(of_spec(), forms=forms, step=paths.one_token(fast.step))


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.deltaformer", of_spec, of_fast) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
@pytest.mark.parametrize("cached", [False, True])
def test_no_token_no_cache_one_token_and_three_blocks(operation, T, cached):
    """A first token has nobody to ask: it stores its value and reads it."""
    tokens, S0, *_ = operation.run(battery.Case(T, K=5, V=4, at=0, seed=T))
    S0 = S0 if cached else S0[:0]
    output, state = operation.demand(tokens, S0, f"T = {T}, {len(S0)} cached")
    assert output.shape == tokens["v"].shape and len(state) == len(S0) + T
    if T and not cached:
        exactly(output[0], tokens["v"][0], "output of the first token")


@few
@given(battery.cases())
@example(ACROSS)
def test_a_cache_is_only_appended_to(operation, case):
    """So prefixes share it, and a rejected draft is undone by cutting its rows off."""
    tokens, S0, at, *_ = operation.run(case)
    prefix = operation.definition({name: x[:at] for name, x in tokens.items()}, S0)[1]
    for name, form in operation.forms.items():
        state = form(tokens, S0)[1]
        exactly(state[: len(S0)], S0, f"{name}: the cache that was given")
        exactly(state[: len(S0) + at], prefix, f"{name}: the cache, cut back to {at} tokens")
        exactly(state[len(S0) :, : case.K], tokens["k"], f"{name}: keys in the cache")


@few
@given(battery.cases())
@example(ACROSS)
def test_strength_zero_is_softmax_attention(operation, case):
    tokens, *_ = operation.run(case)
    expected, _ = dense.attention(tokens["q"], tokens["k"], tokens["v"], mask=np.tri(case.T, dtype=bool), scale=1.0)
    for name, form in operation.forms.items():
        output, state = form(tokens | {"beta": np.zeros(case.T)}, np.zeros((0, case.K + case.V + 1)))
        exactly(output, expected, f"{name}: outputs where nothing is taken off")
        exactly(state[:, case.K : -1], tokens["v"], f"{name}: what is stored")


@few
@given(battery.cases())
@example(ACROSS)
def test_outputs_and_cache_are_linear_in_values(operation, case):
    """Jointly in the values and in what the cache holds."""
    tokens, S0, _, others, _ = operation.run(case)
    values = np.append(np.zeros(case.K), np.ones(case.V + 1))  # columns of the cache
    S1 = np.where(values, np.roll(S0, 1, axis=0), S0)
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(tokens | {"v": others["v"]}, S1)
        both = form(tokens | {"v": tokens["v"] + 2 * others["v"]}, S0 + 2 * values * S1)
        exactly(both[0], first[0] + 2 * second[0], f"{name}: outputs of v + 2 v'")
        exactly(both[1], first[1] + 2 * values * second[1], f"{name}: cache of v + 2 v'")


@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]))
def test_it_keeps_the_parity_of_a_text(operation, seed, T):
    """Every token asks the one before: a zero takes its answer over, a one takes it off 1."""
    bits = np.random.default_rng(seed).integers(0, 2, T).astype(float)
    k, one = paths.APART * np.arange(T)[:, None], np.ones((T, 1))
    tokens = {"q": one, "k": k, "v": bits[:, None], "w": one, "beta": 2 * bits - 1}
    for name, form in operation.forms.items():
        exactly(form(tokens, np.zeros((0, 3)))[0][:, 0], np.cumsum(bits) % 2, f"{name}: parity of {T} bits")


@few
@given(battery.cases())
@example(ACROSS)
def test_with_products_for_softmaxes_it_is_the_delta_rule(case):
    """The same triangular system; values there are weighted, here they are not."""
    rng, T = np.random.default_rng(case.seed), min(case.T, 9)
    q, k, v = (rng.integers(-1, 2, (T, n)).astype(float) for n in (3, 3, case.V))
    beta = rng.integers(0, 2, T).astype(float)
    u = deltaformer.stored(np.tril(k @ k.T, -1), beta[:, None] * v, beta)
    exactly(np.tril(q @ k.T) @ u, delta.recurrent(q, k, v, beta)[0], "outputs of the delta rule")


@given(inputs.seeds, st.integers(0, 40), st.sampled_from([1, 5, 16, 64]), st.integers(0, 9))
def test_forms_of_the_spec_are_equal_on_real_values(seed, T, block, cached):
    rng = np.random.default_rng(seed)
    q, k, v, w = (rng.standard_normal((T, n)) for n in (5, 5, 3, 5))
    keys, u, beta = rng.standard_normal((cached, 5)), rng.standard_normal((cached, 3)), 2 * rng.random(T)
    flat = lambda form, *options: lambda *x: (lambda o, state: (o, *state))(*form(*x[:5], x[5:], *options))
    forms = flat(deltaformer.recurrent), flat(deltaformer.parallel), flat(deltaformer.blockwise, block)
    first, *others = (bounded(form, q, k, v, w, beta, keys, u, precision=exact64) for form in forms)
    for other in others:
        for one, two, what in zip(first, other, ("outputs", "keys", "stored"), strict=True):
            coincide(one, two, what)
