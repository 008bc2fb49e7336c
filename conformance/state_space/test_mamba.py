"""Mamba: the laws of every causal recurrence, exactly, and its place among the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery
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
from twofold.spec.linear_attention import affine
from twofold.spec.state_space import mamba, mamba2

exact64 = Precision("float64", "float64")


def exact_tokens(rng, T, K, V):
    """K states for each of V channels; a token's gate is one for all of them."""
    return battery.exact_tokens(rng, T, K, V) | {"g": np.where(rng.random(T) < 0.1, -np.inf, 0.0)}


def selected(form):
    """A form as the laws call it: keys are B, queries C, values inputs. Rates are so small that a step of 1 keeps every bit, and one of
    2^70 forgets everything: its input is made as much smaller, so that what is written stays a small integer."""

    def run(tokens, S0):
        q, k, v, g = (tokens[name] for name in ("q", "k", "v", "g"))
        length = np.where(g < 0, 2.0**70, 1.0)[:, None] * np.ones(v.shape)
        rates, direct = np.full(S0.T.shape, -(2.0**-60)), np.zeros(v.shape[1])
        y, state = form(v / length, length, rates, k, q, direct, S0.T)
        return y, state.T

    return run


def on_tensors(form, **options):
    def run(x, delta, A, B, C, D, S0):
        x, delta, B, C, S0 = (inputs.tensor(y[None], "float32") for y in (x, delta, B, C, S0))
        y, state = form(x, delta, inputs.tensor(A, "float32"), B, C, inputs.tensor(D, "float32"), S0, **options)
        return inputs.array(y)[0], inputs.array(state)[0]

    return run


def one_token(step):
    """`step` takes its state first, and a token without time."""
    one = selected(lambda x, delta, A, B, C, D, S0: (lambda y, state: (y[None], state))(*step(S0, x[0], delta[0], A, B[0], C[0], D)))

    def law(state, token):
        output, after = one({name: np.asarray(row)[None] for name, row in token.items()}, state)
        return output[0], after

    return law


definition = selected(mamba.recurrent)


def of_spec():
    forms = {f"scan in {n}": selected(lambda *given, n=n: mamba.scan(*given, n)) for n in (1, 2, 3, 7, 16, 64)}
    return battery.Operation(definition, forms, one_token(mamba.step), exact_tokens)


def of_fast(fast):
    forms = {"scan": selected(on_tensors(fast.scan)), "scan in 16": selected(on_tensors(fast.scan, chunk=16))}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"scan in 7": selected(on_tensors(fast.scan, chunk=7)), "recurrent": selected(on_tensors(fast.recurrent))}

    def step(state, x, delta, A, B, C, D):
        state, x, delta, B, C = (inputs.tensor(y[None], "float32") for y in (state, x, delta, B, C))
        y, state = fast.step(state, x, delta, inputs.tensor(A, "float32"), B, C, inputs.tensor(D, "float32"))
        return inputs.array(y)[0], inputs.array(state)[0]

    return battery.Operation(definition, forms, one_token(step), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "state_space.mamba", of_spec, of_fast) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = exact_tokens(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


def real(seed, T, D=4, N=3):
    """x, delta, A, B, C, D, S0."""
    rng = np.random.default_rng(seed)
    x, (B, C), delta = rng.standard_normal((T, D)), rng.standard_normal((2, T, N)), rng.exponential(size=(T, D))
    return x, delta, -rng.exponential(size=(D, N)), B, C, rng.standard_normal(D), rng.standard_normal((D, N))


@given(inputs.seeds, st.integers(0, 20), st.sampled_from([1, 4, 64]))
def test_the_scan_is_the_recurrence_on_real_values(seed, T, chunk):
    arguments = real(seed, T)
    pair = bounded(mamba.scan, *arguments, chunk, precision=exact64), bounded(mamba.recurrent, *arguments, precision=exact64)
    for one, two, what in zip(*pair, ("outputs", "state"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(0, 20))
def test_each_channel_is_the_core(seed, T):
    """With keys Delta B, queries C, the channel's input as its only value, and decays Delta A; in float64."""
    arguments = real(seed, T)

    def by_core(x, delta, A, B, C, D, S0):
        runs = []
        for d in range(4):
            k, g = delta[:, d, None] * B, delta[:, d, None] * A[d]
            runs.append(affine.recurrent(C, k, x[:, d, None], g, 0 * k, 0 * k, S0[d][:, None]))
        return np.concatenate([o for o, _ in runs], axis=1) + D * x, np.concatenate([state for _, state in runs], axis=1).T

    pair = bounded(mamba.recurrent, *arguments, precision=exact64), bounded(by_core, *arguments, precision=exact64)
    for one, two, what in zip(*pair, ("outputs", "state"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(0, 20))
def test_with_one_rate_and_one_step_for_all_channels_it_is_mamba2(seed, T):
    x, delta, A, B, C, D, S0 = real(seed, T)

    def ours(x, step, B, C, S0):
        y, state = mamba.recurrent(x, np.repeat(step[:, None], 4, axis=1), np.full((4, 3), -0.7), B, C, np.full(4, 0.3), S0)
        return y, state.T

    def theirs(x, step, B, C, S0):
        return mamba2.recurrent(x, step, -0.7, B, C, 0.3, S0.T)

    pair = (bounded(text, x, delta[:, 0], B, C, S0, precision=exact64) for text in (ours, theirs))
    for one, two, what in zip(*pair, ("outputs", "state"), strict=True):
        coincide(one, two, what)


def test_without_decay_and_with_steps_of_one_it_is_a_running_sum(operation):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (20, 3)).astype(float)
    tokens = {"q": np.ones((20, 1)), "k": np.ones((20, 1)), "v": x, "g": np.zeros(20)}
    for name, form in operation.forms.items():
        exactly(form(tokens, np.zeros((1, 3)))[0], np.cumsum(x, axis=0), name)


def test_a_step_of_nothing_is_passed_over(fast):
    """Whatever the token holds: nothing fades, nothing enters; to the bit."""
    x, delta, A, B, C, D, S0 = (inputs.rounded(y, "float32") for y in real(0, 9))
    delta = np.where(np.arange(9)[:, None] % 3 == 1, 0.0, delta)
    kept = np.arange(9) % 3 != 1
    for form in (mamba.recurrent, on_tensors(fast.scan, chunk=64)):
        y, state = form(x, delta, A, B, C, D, S0)
        alone = form(x[kept], delta[kept], A, B[kept], C[kept], D, S0)
        exactly(y[kept], alone[0], "outputs around tokens without length")
        exactly(state, alone[1], "state with tokens without length")


@given(inputs.seeds)
def test_the_zero_order_hold_differs_in_second_order(seed):
    """What one step writes from nothing: (e^z - 1) / z lies between 1 + z / 2 and 1 for z = Delta A < 0, so the two differ, but by less."""
    x, delta, A, B, C, D, S0 = real(seed, 1)
    for halvings in range(4):
        length = delta[0] / 2**halvings
        written = mamba.step(0 * S0, x[0], length, A, B[0], C[0], D)[1]
        held = np.expm1(length[:, None] * A) / A * B[0] * x[0][:, None]
        assert np.all(np.abs(held - written) <= length[:, None] ** 2 * np.abs(A * B[0] * x[0][:, None]) / 2)
        assert np.all(np.abs(held) < np.abs(written))
