"""RWKV-4: the laws of every causal recurrence that a mean keeps, exactly; weights that are weights; and its place among the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
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
from twofold.spec.linear_attention import rwkv4, rwkv6

exact64 = Precision("float64", "float64")
FAR = 4096.0  # log-weights so far apart that one leaves nothing of the other


def channels(D):
    """Decays and bonuses of D channels: those that keep and those that forget, those that see themselves, or only, or not at all."""
    n = np.arange(D)
    return FAR * (n % 2), FAR * (n // 2 % 3 - 1)


def exact_tokens(rng, T, K, V):
    """Log-weights of whole units: what is divided are whole numbers, and the divisor counts tokens."""
    return {"k": rng.choice([-FAR, 0.0, FAR], (T, V), p=[0.2, 0.6, 0.2]), "v": rng.integers(-2, 3, (T, V)).astype(float)}


def exact_state(rng, K, V):
    """Both sums and their unit as one array (3, V); where that is -inf, nothing may be seen of the others."""
    state = rng.integers(1, 4, (3, V)).astype(float)
    state[2] = rng.choice([-np.inf, -FAR, 0.0, FAR], V)
    return state


def joined(form, round_to=np.float64):
    """A form whose state is one array, as the laws hand it on."""

    def run(tokens, S0):
        o, state = form(tokens["k"], tokens["v"], *channels(S0.shape[1]), tuple(S0))
        return o.astype(round_to).astype(float), np.stack(state)

    return run


def of_spec():
    forms = {f"scan in {n}": joined(lambda *a, n=n: rwkv4.scan(*a, n)) for n in (1, 2, 3, 7, 16, 64)}
    one = lambda state, token: joined(lambda *a: rwkv4.step(a[-1], *a[:-1]))(token, state)
    return battery.Operation(joined(rwkv4.recurrent), forms, one, exact_tokens, exact_state)


def on_arrays(form, **options):
    def run(k, v, w, u, S0):
        k, v, w, u, *S0 = (inputs.tensor(x, "float32") for x in (k[None], v[None], w, u, *(x[None] for x in S0)))
        o, state = form(k, v, w, u, tuple(S0), **options)
        return inputs.array(o)[0], tuple(inputs.array(x)[0] for x in state)

    return run


def of_fast(fast):
    """Quotients of two whole numbers, rounded to float32."""
    forms = {"scan": joined(on_arrays(fast.scan)), "scan in 16": joined(on_arrays(fast.scan, chunk=16))}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"scan in 7": joined(on_arrays(fast.scan, chunk=7)), "recurrent": joined(on_arrays(fast.recurrent))}
    step = on_arrays(lambda k, v, w, u, S0: fast.step(S0, k, v, w, u))
    one = lambda state, token: joined(step)(token, state)
    return battery.Operation(joined(rwkv4.recurrent, np.float32), forms, one, exact_tokens, exact_state)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.rwkv4", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_only_differences_of_log_weights_count(operation, case):
    """Keys and the unit of the state higher: the same outputs and sums, in a higher unit."""
    tokens, S0, *_ = operation.run(case)
    expected = operation.definition(tokens, S0)
    by = np.array([[0.0], [0.0], [2 * FAR]])
    for name, form in operation.forms.items():
        output, state = form(tokens | {"k": tokens["k"] + 2 * FAR}, S0 + by)
        exactly(output, expected[0], f"{name}: outputs with higher keys")
        exactly(state, expected[1] + by, f"{name}: final state with higher keys")


@few
@given(battery.cases())
def test_the_start_of_released_code_is_this_one(operation, case):
    """A unit so low that no weight is seen beside it does what -inf does."""
    tokens, S0, *_ = operation.run(case)
    low, nothing = (np.stack([*S0[:2], np.full(case.V, unit)]) for unit in (-(2.0**126), -np.inf))
    for name, form in operation.forms.items():
        for one, two, what in zip(form(tokens, low), operation.definition(tokens, nothing), ("outputs", "final state"), strict=True):
            exactly(one, two, f"{name}: {what}")


def real(seed, T, D=4):
    rng = np.random.default_rng(seed)
    k, v = 2 * rng.standard_normal((T, D)), rng.standard_normal((T, D))
    return k, v, np.abs(rng.standard_normal(D)), rng.standard_normal(D), rng.standard_normal(D), np.exp(rng.standard_normal((2, D)))


def all_pairs(k, v, w, u, p, q, o):
    """As the paper prints it: every output a mean over all tokens before, and over what was there before them."""
    rows, T = [v[:0]], len(v)
    for t in range(T):
        ages = np.arange(t)[::-1, None]
        weights = np.concatenate([np.exp(o - t * w)[None], np.exp(k[:t] - ages * w), np.exp(u + k[t])[None]])
        values = np.concatenate([(p / q)[None], v[: t + 1]])
        counts = np.concatenate([q[None], np.ones_like(v[: t + 1])])
        rows.append((np.sum(weights * counts * values, axis=0) / np.sum(weights * counts, axis=0))[None])
    return np.concatenate(rows)


@given(inputs.seeds, st.sampled_from([0, 1, 9, 20]))
def test_it_is_a_mean_with_fading_weights(seed, T):
    k, v, w, u, o, (p, q) = real(seed, T)
    ours = lambda k, v, w, u, p, q, o: rwkv4.recurrent(k, v, w, u, (p, q, o))[0]
    coincide(*(bounded(text, k, v, w, u, p, q, o, precision=exact64) for text in (ours, all_pairs)))


@given(inputs.seeds, st.sampled_from([0, 1, 9, 20]))
def test_it_is_rwkv6_with_one_key_channel_and_a_column_of_ones(seed, T):
    """A row of the table of models, channel by channel: write key e^k, bonus e^u, and a quotient; no unit, so small keys only."""
    k, v, w, u, *_ = real(seed, T)

    def theirs(k, v, w, u):
        columns = []
        for d in range(len(w)):
            one, here = np.ones((T, 1)), slice(d, d + 1)
            values = np.concatenate([v[:, here], one], axis=1)
            both, _ = rwkv6.recurrent(one, np.exp(k[:, here]), values, -w[here] * one, np.exp(u[here]))
            columns.append(both[:, :1] / both[:, 1:])
        return np.concatenate(columns, axis=1)

    coincide(*(bounded(text, k, v, w, u, precision=exact64) for text in (lambda *a: rwkv4.recurrent(*a)[0], theirs)))


@given(inputs.seeds, st.integers(1, 20), st.sampled_from([1.0, 80.0]))
def test_no_output_leaves_the_range_of_the_values_seen(seed, T, size):
    """Weights add up to one, whatever the keys."""
    k, v, w, u, *_ = real(seed, T)
    y = bounded(lambda *a: rwkv4.recurrent(*a)[0], size * np.sign(k), v, w, u, precision=exact64)
    for t in range(T):
        assert np.all(y.value[t] >= v[: t + 1].min(0) - y.error[t]) and np.all(y.value[t] <= v[: t + 1].max(0) + y.error[t])


@given(inputs.seeds, st.integers(1, 12))
def test_writes_and_decays_are_at_most_one(seed, T):
    """Whatever the keys; and for every token one of the two is 1: the largest weight is the unit."""
    k, _, w, _, o, _ = real(seed, T)
    write, g, _ = rwkv4.gates(80 * k, w, 80 * o)
    assert np.all(write <= 1) and np.all(g <= 0) and np.all((write == 1) | (g == 0))


@given(inputs.seeds, st.integers(0, 6), inputs.dtypes("float32", "bfloat16"), st.booleans())
def test_rows_mix_with_the_row_before(fast, seed, T, dtype, continued):
    """In any two pieces as in one, if the last row of the first is handed on: the row itself, not what it was mixed to."""
    x, last, mu = inputs.values("normal", [(2, T, 5), (2, 5), (5,)], seed, dtype)
    mixed = fast.token_shift(*(inputs.tensor(y, dtype) for y in (x, mu)), inputs.tensor(last, dtype) if continued else None)
    contract = Precision(dtype, accumulator=dtype)
    for b in range(2):
        expected = bounded(rwkv4.token_shift, x[b], mu, last[b] if continued else None, precision=contract)
        agree(mixed[b], expected, "mixed rows")
        for at in range(1, T + 1):
            first, second = rwkv4.token_shift(x[b, :at], mu), rwkv4.token_shift(x[b, at:], mu, x[b, at - 1])
            exactly(np.concatenate([first, second]), rwkv4.token_shift(x[b], mu), f"in two pieces, cut at {at}")
