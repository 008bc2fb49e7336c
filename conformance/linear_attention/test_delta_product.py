"""DeltaProduct: the laws of every causal recurrence, exactly, with groups of steps that chunks cut; and what two reflections can do."""

import itertools

import numpy as np
import pytest
from hypothesis import given

from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import battery, erasing
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.erasing_laws import (  # noqa: F401  the laws that hold here
    test_it_is_a_row_of_the_core,
    test_keys_and_strengths_scale_against_each_other,
    test_the_drawn_tokens_are_exact,
)
from twofold.conformance.linear_attention.laws import (  # noqa: F401
    test_a_log_decay_of_minus_infinity_begins_anew,
    test_a_run_resumes_at_any_token,
    test_a_silent_token_is_passed_over,
    test_every_form_is_the_definition,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.spec.linear_attention import delta_product, gated_delta

NAMES = ("q", "k", "v", "g", "beta")
N = 3  # steps per token: no chunk holds whole groups


def row(tokens):
    """One row per step: the gate before the first, the query after the last."""
    q, k, v, g, beta = (tokens[name] for name in NAMES)
    silent = np.zeros((len(q), N - 1, q.shape[1]))
    queries = np.concatenate([silent, q[:, None]], axis=1).reshape(-1, q.shape[1])
    gates = np.concatenate([g[:, None], silent[:, :, 0]], axis=1).reshape(-1)
    keys = k.reshape(-1, k.shape[2])
    return queries, beta.reshape(-1)[:, None] * keys, v.reshape(-1, v.shape[2]), gates, np.exp(gates)[:, None] * keys


def chain(tokens, dq, dw, dv, dg, da):
    k, v, g, beta = (tokens[name] for name in NAMES[1:])
    dw, da = (x.reshape(*k.shape) for x in (dw, da))
    fade = np.concatenate([np.exp(g)[:, None], np.ones((len(g), N - 1))], axis=1)[:, :, None]
    dk = beta[:, :, None] * dw + fade * da
    gates = np.sum(dg.reshape(*k.shape)[:, 0] + (fade * da * k)[:, 0], axis=1)
    return {"q": dq[N - 1 :: N], "k": dk, "v": dv.reshape(*v.shape), "g": gates, "beta": np.sum(k * dw, axis=2)}


def grouped(tokens, T):
    return {name: x.reshape(T, N, *x.shape[1:]) for name, x in tokens.items()}


def exact_tokens(rng, T, K, V, keys=None):
    steps = grouped(erasing.exact_tokens(rng, T * N, K, V, None if keys is None else keys.reshape(-1, K)), T)
    return steps | {"q": steps["q"][:, -1], "g": steps["g"][:, 0]}


def real_tokens(rng, gates, keys, T, K, V, dtype):
    steps = grouped(erasing.real_tokens(rng, gates, keys, T * N, K, V, dtype), T)
    return steps | {"q": steps["q"][:, -1], "g": steps["g"][:, 0]}


MODEL = erasing.Model(delta_product, NAMES, row, chain, exact_tokens, real_tokens, steps=N)


@pytest.fixture(scope="module")
def model():
    return MODEL


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    sides = erasing.operation_of(MODEL), erasing.operation_of_fast(MODEL)
    with battery.side(request.param, "linear_attention.delta_product", *sides) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = operation.tokens_of(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
def test_outputs_and_state_are_linear_in_values_and_state(operation, case):
    tokens, S0, _, others, S1 = operation.run(case)
    v = others["v"]
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(tokens | {"v": v}, S1)
        both = form(tokens | {"v": tokens["v"] + 2 * v}, S0 + 2 * S1)
        column = form(tokens | {"v": v[..., :1]}, S1[:, :1])
        for what, a, b, c, d in zip(("outputs", "final state"), first, second, both, column, strict=True):
            exactly(c, a + 2 * b, f"{name}: {what} of v + 2 v'")
            exactly(d, b[:, :1], f"{name}: {what} of the first column alone")


@few
@given(battery.cases())
def test_one_step_per_token_is_the_gated_delta_rule(case):
    tokens, S0, *_ = battery.run_of(case, erasing.exact_tokens)
    q, k, v, g, beta = (tokens[name] for name in NAMES)
    ours = delta_product.recurrent(q, k[:, None], v[:, None], g, beta[:, None], S0)
    for one, two, what in zip(ours, gated_delta.recurrent(q, k, v, g, beta, S0), ("outputs", "final state"), strict=True):
        exactly(one, two, what)


def test_the_word_problem_of_three_things(operation):
    """A word over all six permutations, one token each: two reflections reach every one of them, the third step rests."""
    rng, moves = np.random.default_rng(0), {}
    exchanges = [np.eye(3)[i] - np.eye(3)[j] for i, j in itertools.combinations(range(3), 2)]
    for pair in itertools.product(exchanges, repeat=2):
        reflect = lambda k: np.eye(3) - np.outer(k, k)
        moves[tuple((reflect(pair[1]) @ reflect(pair[0]) @ [1.0, 2.0, 3.0]).tolist())] = pair
    even = list(moves.values())  # nothing, and both circles
    odd = [(k, 0 * k) for k in exchanges]
    assert len(even) == 3
    word = [(*(even + odd)[n], np.zeros(3)) for n in rng.integers(0, 6, 35)]
    things = np.array([1.0, 2.0, 3.0])
    for one, two, _ in word:
        things = things - one * (one @ things)
        things = things - two * (two @ things)
    q, v = np.tile(np.eye(3)[0], (35, 1)), np.zeros((35, N, 1))
    tokens = {"q": q, "k": np.array(word), "v": v, "g": np.zeros(35), "beta": np.ones((35, N))}
    for name, form in operation.forms.items():
        output, state = form(tokens, np.array([[1.0], [2.0], [3.0]]))
        exactly(state[:, 0], things, f"{name}: three things after 35 permutations")
        exactly(output[-1, 0], things[0], f"{name}: the first of them")
