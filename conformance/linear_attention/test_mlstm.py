"""mLSTM: the laws of every causal recurrence that a quotient keeps, exactly; units that do not matter; and its neighbors."""

import numpy as np
import pytest
import torch
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
from twofold.spec.linear_attention import linear, mlstm, simple_gla
from twofold.spec.linear_attention.hgrn import log_forget

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # e^-m where m is far below 0: the output is 0
exact64 = Precision("float64", "float64")
FAR = 4096.0  # log-weights so far apart that one leaves nothing of the other


def exact_tokens(rng, T, K, V):
    """Gates that are open, shut, or shut a whole unit; weights of whole units: every e^(difference) is 0 or 1, in every format."""
    tokens = {name: x for name, x in battery.exact_tokens(rng, T, K, V).items() if name != "g"}
    i = rng.choice([-FAR, 0.0, FAR, -np.inf], T, p=[0.2, 0.5, 0.2, 0.1])
    return tokens | {"i": i, "f": rng.choice([FAR, -FAR, -np.inf], T, p=[0.8, 0.15, 0.05])}


def exact_state(rng, K, V):
    """Cell, normalizer and unit in one array, the unit in its corner; where that is -inf, nothing may be seen of the others."""
    state = rng.integers(-2, 3, (K + 1, V + 1)).astype(float)
    state[-1] = 0.0
    state[-1, -1] = rng.choice([-np.inf, -FAR, 0.0, FAR])
    return state


def apart(state):
    return state[:-1, :-1], state[:-1, -1], state[-1, -1]


def joined(form, eps=1.0, round_to=np.float64):
    """A form whose state is one array, as the laws hand it on. With eps = 1 a denominator is a whole number of at least 1."""

    def run(tokens, S0):
        o, (C, n, m) = form(*(tokens[name] for name in "qkvif"), eps, apart(S0))
        state = np.zeros_like(S0)
        state[:-1, :-1], state[:-1, -1], state[-1, -1] = C, n, m
        return o.astype(round_to).astype(float), state

    return run


def of_spec():
    forms = {f"chunked in {n}": joined(lambda *a, n=n: mlstm.chunked(*a, n)) for n in (1, 2, 3, 7, 16, 64)}
    forms["parallel"] = joined(mlstm.parallel)
    one = lambda state, token: joined(lambda *a: mlstm.step(a[-1], *a[:-1]))(token, state)
    return battery.Operation(joined(mlstm.recurrent), forms, one, exact_tokens, exact_state)


def on_arrays(form, **options):
    def run(*arguments):
        *rows, eps, S0 = arguments
        place = lambda x: inputs.tensor(x[None, :, None], "float32")
        o, state = form(*map(place, rows), eps, tuple(inputs.tensor(np.array(x)[None, None], "float32") for x in S0), **options)
        return inputs.array(o)[0, :, 0], tuple(inputs.array(x)[0, 0] for x in state)

    return run


def of_fast(fast):
    """Quotients of two whole numbers, rounded to float32."""

    def step(*arguments):
        *token, eps, state = arguments
        place = lambda x: inputs.tensor(np.array(x)[None, None], "float32")
        o, state = fast.step(tuple(map(place, state)), *map(place, token), eps)
        return inputs.array(o)[0, 0], tuple(inputs.array(x)[0, 0] for x in state)

    one = lambda state, token: joined(step)(token, state)
    forms = {"chunked": joined(on_arrays(fast.chunked, chunk=32))}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {name: joined(on_arrays(getattr(fast, name))) for name in ("recurrent", "parallel")}
        forms["chunked in 16"] = joined(on_arrays(fast.chunked, chunk=16))
    return battery.Operation(joined(mlstm.recurrent, round_to=np.float32), forms, one, exact_tokens, exact_state)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.mlstm", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_a_token_may_write_nothing_or_come_after_everything_was_forgotten(operation, case):
    """A weight of e^-inf and a gate that is open: passed over. A gate that is shut for good: a sequence begins anew."""
    tokens, S0, at, *_ = operation.run(case)
    expected = operation.definition(tokens, S0)
    silent = {name: np.insert(x, at, {"i": -np.inf, "f": FAR}.get(name, 1.0), axis=0) for name, x in tokens.items()}
    shut = tokens | {"f": np.where(np.arange(case.T) == at, -np.inf, tokens["f"])}
    nothing = exact_state(np.random.default_rng(0), case.K, case.V)
    nothing[-1, -1] = -np.inf
    anew = operation.definition({name: x[at:] for name, x in shut.items()}, nothing)
    for name, form in operation.forms.items():
        output, state = form(silent, S0)
        exactly(np.delete(output, at, axis=0), expected[0], f"{name}: outputs around a silent token")
        exactly(state, expected[1], f"{name}: final state with a silent token")
        output, state = form(shut, S0)
        exactly(output[at:], anew[0], f"{name}: outputs after everything was forgotten")
        exactly(state, anew[1], f"{name}: final state after everything was forgotten")


def real(seed, T, K=5, V=3):
    rng = np.random.default_rng(seed)
    (q, k), v, (i, f) = rng.standard_normal((2, T, K)), rng.standard_normal((T, V)), 3 * rng.standard_normal((2, T))
    return q, k, v, i, f, (rng.standard_normal((K, V)), rng.standard_normal(K), rng.standard_normal(1)[0])


def without_units(q, k, v, i, f, C, n, m):
    """As the paper begins: a cell that fades by the sigmoid and takes in e^i, read by a quotient whose denominator is at least 1."""
    S, write, rows = np.exp(m) * np.concatenate([C, n[:, None]], axis=1), np.exp(i), [v[:0]]
    for t in range(len(q)):
        S = S / (1 + np.exp(-f[t])) + write[t] * np.outer(k[t], np.concatenate([v[t], np.ones(1)]))
        both = q[t] @ S
        rows.append((both[:-1] / np.maximum(np.abs(both[-1:]), 1.0))[None])
    return np.concatenate(rows), S


@given(inputs.seeds, st.sampled_from([0, 1, 9, 20]))
def test_units_do_not_matter(seed, T):
    """Without eps, outputs are those of the recurrence that keeps no unit, and so is the state times its unit."""
    *rows, (C, n, m) = real(seed, T)

    def ours(*a):
        o, (C, n, m) = mlstm.recurrent(*a[:5], 0.0, (*a[5:7], a[7][0]))
        return o, np.exp(m) * np.concatenate([C, n[:, None]], axis=1)

    case = *rows, C, n, np.array([m])
    for one, two, what in zip(*(bounded(text, *case, precision=exact64) for text in (ours, without_units)), ("outputs", "state")):
        coincide(one, two, what)


@given(inputs.seeds, st.sampled_from([1, 9, 20]))
def test_eps_counts_in_the_units_of_the_state(seed, T):
    """The same memory in larger units: smaller outputs with eps, the same ones without."""
    *rows, (C, n, m) = real(seed, T)

    def in_units_of(shift, eps):
        text = lambda *a: mlstm.recurrent(*a[:5], eps, (np.exp(-shift) * a[5], np.exp(-shift) * a[6], a[7][0] + shift))[0]
        return bounded(text, *rows, C, n, np.array([m]), precision=exact64)

    coincide(in_units_of(0.0, 0.0), in_units_of(20.0, 0.0), "outputs in other units")
    assert np.abs(in_units_of(20.0, 0.5).value[0]).sum() < np.abs(in_units_of(0.0, 0.5).value[0]).sum()


@given(inputs.seeds, st.sampled_from([0, 1, 9, 20]))
def test_it_is_simple_gated_linear_attention_with_a_column_of_ones(seed, T):
    """Gates first, then the other chapter; the denominator is a column of its own."""
    *rows, (C, n, m) = real(seed, T)

    def theirs(q, k, v, i, f, C, n, m):
        write, g, units = mlstm.gates(i, f, m[0])
        pairs = write[:, None] * np.concatenate([v, np.ones_like(v[:, :1])], axis=1)
        both, S = simple_gla.recurrent(q, k, pairs, g, np.concatenate([C, n[:, None]], axis=1))
        return both[:, :-1] / (np.maximum(np.abs(both[:, -1:]), np.exp(-units)[:, None]) + 0.5), S[:, :-1], S[:, -1]

    def ours(*a):
        o, (C, n, _) = mlstm.chunked(*a[:5], 0.5, (*a[5:7], a[7][0]), 7)
        return o, C, n

    case = *rows, C, n, np.array([m])
    for one, two, what in zip(*(bounded(text, *case, precision=exact64) for text in (ours, theirs)), ("outputs", "cell", "normalizer")):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 12))
def test_writes_and_decays_are_at_most_one(seed, T):
    """Whatever the gates; and at every token one of the two is 1: the largest weight is the unit."""
    rng = np.random.default_rng(seed)
    write, g, m = mlstm.gates(*(100 * rng.standard_normal((2, T))), np.array(100 * rng.standard_normal()))
    assert np.all(write <= 1) and np.all(g <= 0) and np.all((write == 1) | (g == 0)) and np.all(np.isfinite(m))


@given(inputs.seeds, st.integers(1, 12))
def test_it_is_linear_attention_if_nothing_fades_or_is_small(seed, T):
    """Gates open, weights of 1, and queries and keys that no denominator has to be raised for."""
    tokens = battery.exact_tokens(np.random.default_rng(seed), T, 5, 3)
    q, k = np.abs(tokens["q"]), np.abs(tokens["k"])
    q[:, 0] = k[:, 0] = 1.0
    o, (C, n, m) = mlstm.recurrent(q, k, tokens["v"], np.zeros(T), np.full(T, FAR), 0.0)
    expected, (S, z) = linear.recurrent(q, k, tokens["v"], 0.0)
    for one, two, what in ((o, expected, "outputs"), (C, S, "cell"), (n, z, "normalizer"), (m, np.array(0.0), "unit")):
        exactly(one, two, what)


@given(inputs.seeds, st.sampled_from([0, 1, 9, 20]), st.booleans())
def test_with_a_sigmoid_input_gate_it_keeps_no_unit(seed, T, normalize):
    """Log-weights log sigmoid(i) are at most 0: the recurrence without units, divided or not."""
    q, k, v, i, f, (C, n, _) = real(seed, T)

    def theirs(q, k, v, i, f, C, n):
        o, S = without_units(q, k, v, log_forget(i), f, C, n, 0.0)
        undivided = simple_gla.recurrent(q, k, np.exp(log_forget(i))[:, None] * v, log_forget(f), C)[0]
        return o if normalize else undivided, S

    def ours(q, k, v, i, f, C, n):
        o, (C, n) = mlstm.recurrent_sigmoid(q, k, v, i, f, normalize, (C, n))
        return o, np.concatenate([C, n[:, None]], axis=1)

    case = q, k, v, i, f, C, n
    for one, two, what in zip(*(bounded(text, *case, precision=exact64) for text in (ours, theirs)), ("outputs", "state")):
        coincide(one, two, what)


@few
@given(inputs.seeds, st.sampled_from([0, 1, 17, 35]), st.booleans())
def test_with_a_sigmoid_input_gate_it_agrees_with_the_definition(fast, seed, T, normalize):
    *rows, (C, n, _) = real(seed, T)
    case = [inputs.rounded(x, "float32") for x in (*rows, C, n)]
    place = [inputs.tensor(x[None, :, None] if m < 5 else x[None, None], "float32") for m, x in enumerate(case)]
    o, (C, n) = fast.recurrent_sigmoid(*place[:5], normalize, tuple(place[5:]), chunk=32)
    text = lambda *a: (lambda o, state: (o, *state))(*mlstm.recurrent_sigmoid(*a[:5], normalize, a[5:]))
    expected = bounded(text, *case, precision=Precision("float32", operand="tf32x3"))
    for one, bound, what in zip((o[0, :, 0], C[0, 0], n[0, 0]), expected, ("output", "cell", "normalizer"), strict=True):
        agree(one, bound, what)


def test_it_compiles(fast):
    """In one graph, packed sequences too, with the eager results bit for bit."""
    rows = [inputs.tensor(x[None, :, None], "float32") for x in real(0, 19)[:5]]
    edges = inputs.tensor(np.array([0, 5, 5, 19]))
    for form in (fast.chunked, lambda *a: fast.chunked(*a, cu_seqlens=edges)):
        eager, compiled = form(*rows), torch.compile(lambda *a, form=form: form(*a), fullgraph=True, backend="aot_eager")(*rows)
        for one, two in zip((compiled[0], *compiled[1]), (eager[0], *eager[1]), strict=True):
            exactly(one, two, "compiled")
