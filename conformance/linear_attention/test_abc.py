"""Attention with bounded-memory control: the laws of every causal recurrence where weights are all or nothing, and means that are means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery, slots
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
from twofold.spec.linear_attention import abc, gsa

exact64 = Precision("float64", "float64")


def exact_tokens(rng, T, K, V):
    """Log-weights far from each other: the heaviest token so far is all that a slot holds. One in five leaves its slot alone."""
    rank = np.stack([rng.permutation(T) - T // 2 for _ in range(slots.SLOTS)], axis=1)
    s = np.where(rng.random((T, slots.SLOTS)) < 0.2, -np.inf, slots.APART * rank)
    return slots.exact_tokens(rng, T, K, V) | {"s": s}


def state_of(rng, K, V):
    """Slots that are as heavy as no token, or empty."""
    z = np.where(rng.random(slots.SLOTS) < 0.3, -np.inf, slots.APART * (rng.integers(-9, 9, slots.SLOTS) + 0.5))
    return np.concatenate([battery.whole_numbers(rng, K + V, slots.SLOTS) * (z > -np.inf), z[None]])


def of_spec():
    sizes = [(1, 1), (2, 1), (7, 3), (16, 16), (64, 16)]
    forms = {f"chunked in {chunk} by {sub}": slots.joined(abc.chunked, chunk, sub) for chunk, sub in sizes}
    return battery.Operation(slots.joined(abc.recurrent), forms, slots.stepped(abc.step), exact_tokens, state_of)


def of_fast(fast):
    forms = {"chunked": slots.on_arrays(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"chunked in 16": slots.on_arrays(fast.chunked, chunk=16), "recurrent": slots.on_arrays(fast.recurrent)}
    return battery.Operation(slots.joined(abc.recurrent), forms, slots.one_token(fast.step), exact_tokens, state_of)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.abc", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_a_token_without_weight_is_passed_over(operation, case):
    """Whatever its query, key and value are."""
    tokens, S0, at, others, _ = operation.run(case)
    expected = operation.definition(tokens, S0)
    empty = others | {"s": np.full_like(others["s"], -np.inf)}
    more = {name: np.concatenate([x[:at], empty[name][at : at + 1], x[at:]]) for name, x in tokens.items()}
    for name, form in operation.forms.items():
        output, state = form(more, S0)
        exactly(np.delete(output, at, axis=0), expected[0], f"{name}: outputs around a token without weight")
        exactly(state, expected[1], f"{name}: final state with a token without weight")


def real(seed, T, K=3, V=2, M=4):
    rng = np.random.default_rng(seed)
    q, k, v, s = (rng.standard_normal((T, n)) for n in (K, K, V, M))
    return q, k, v, 3 * s, rng.standard_normal((K, M)), rng.standard_normal((M, V)), rng.standard_normal(M)


def flat(form, *options):
    return lambda q, k, v, s, *S0: (lambda o, S: (o, *S))(*form(q, k, v, s, S0 or None, *options))


@given(inputs.seeds, st.integers(0, 30), st.booleans(), st.sampled_from([(1, 1), (5, 2), (16, 5), (64, 16)]))
def test_forms_of_the_spec_are_equal_on_real_values(seed, T, continued, sizes):
    case = real(seed, T)[: None if continued else 4]
    own, other = (bounded(form, *case, precision=exact64) for form in (flat(abc.recurrent), flat(abc.chunked, *sizes)))
    for one, two, what in zip(own, other, ("outputs", "keys of the slots", "their values", "their log-weights"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 20))
def test_slots_are_weighted_means_of_all_tokens_so_far(seed, T):
    """The paper's sums, written out token by token without a recurrence."""
    q, k, v, s = real(seed, T)[:4]

    def by_hand(q, k, v, s):
        rows = []
        for t in range(T):
            weight = np.exp(s[: t + 1])
            weight = weight / np.sum(weight, axis=0)
            logits = np.exp(q[t] @ (k[: t + 1].T @ weight))
            rows.append(((logits / np.sum(logits)) @ (weight.T @ v[: t + 1]))[None])
        return np.concatenate(rows), k.T @ weight, weight.T @ v, np.log(np.sum(np.exp(s), axis=0))

    own, other = (bounded(form, q, k, v, s, precision=exact64) for form in (flat(abc.recurrent), by_hand))
    for one, two, what in zip(own, other, ("outputs", "keys of the slots", "their values", "their log-weights"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 30))
def test_memories_stay_in_the_convex_hull_of_what_was_written(seed, T):
    """Along any direction a slot's key lies between the least and the greatest key so far, its value likewise."""
    q, k, v, s = real(seed, T)[:4]
    rng = np.random.default_rng(seed)
    ways = rng.standard_normal((3, 9)), rng.standard_normal((2, 9))
    along = lambda q, k, v, s: (lambda S: (S[0].T @ ways[0], S[1] @ ways[1]))(abc.recurrent(q, k, v, s)[1])
    for memory, rows, way in zip(bounded(along, q, k, v, s, precision=exact64), (k, v), ways, strict=True):
        extent = bounded(lambda rows, way=way: rows @ way, rows, precision=exact64)
        slack = memory.error + np.max(extent.error)
        assert np.all(memory.value >= np.min(extent.value, axis=0) - slack) and np.all(memory.value <= np.max(extent.value, axis=0) + slack)


@given(inputs.seeds, st.integers(0, 20))
def test_only_differences_of_log_weights_count(seed, T):
    """Every token of a slot heavier by the same: the same means; a start state is as much heavier as it says."""
    *tokens, s, Kt, Vt, z = real(seed, T)
    more = np.array([1.0, -2.0, 40.0, 0.5])
    lifted = lambda q, k, v, s, Kt, Vt, z: flat(abc.recurrent)(q, k, v, s + more, Kt, Vt, z + more)
    own, other = (bounded(form, *tokens, s, Kt, Vt, z, precision=exact64) for form in (flat(abc.recurrent), lifted))
    for one, two, what in zip(own[:3], other[:3], ("outputs", "keys of the slots", "their values"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(0, 20), st.booleans())
def test_it_is_gated_slot_attention_whose_slots_take_in_what_they_forget(seed, T, continued):
    """A row of the table of models; writes and what is kept add up to one, but for a slot's first token, where there is nothing to keep."""
    q, k, v, s, Kt, Vt, z = real(seed, T)
    z = z if continued else np.full(4, -np.inf)
    write, g, after = abc.gates(s, z)
    state = (Kt, Vt) if continued else (0 * Kt, 0 * Vt)
    output, memories = gsa.recurrent(q, k, v, write, g, state)
    own, (*others, last) = abc.recurrent(q, k, v, s, (*state, z))
    for one, two, what in zip((output, *memories, after), (own, *others, last), ("outputs", "keys", "values", "z"), strict=True):
        exactly(one, two, what)
    first = slice(0 if continued else 1, None)
    sums = bounded(lambda s, z: np.exp(abc.gates(s, z)[1]) + abc.gates(s, z)[0], s, z, precision=exact64)[first]
    assert np.all(np.abs(sums.value - 1) <= sums.error) and np.all(g <= 0)
    assert continued or not T or np.all(g[0] == 0) and np.all(write[0] == 1)
