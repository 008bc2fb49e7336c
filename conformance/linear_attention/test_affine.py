"""The affine recurrence: the battery of laws, its monoid, its adjoint, and what becomes of it without a low-rank part."""

import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
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
from twofold.spec.linear_attention import affine, gla

NAMES = ("q", "k", "v", "g", "a", "b")


def exact_tokens(rng, T, K, V):
    """A few tokens reread the state, so that integers stay small."""
    tokens = battery.exact_tokens(rng, T, K, V)
    a, b = rng.integers(-1, 2, (2, T, K)).astype(float)
    return tokens | {"a": a, "b": b * (rng.permutation(T) < 3)[:, None]}


def definition(tokens, S0):
    return affine.recurrent(*(tokens[name] for name in NAMES), S0)


def of_spec():
    run = lambda form, *options: lambda tokens, S0: form(*(tokens[name] for name in NAMES), S0, *options)
    forms = {f"chunked in {chunk}": run(affine.chunked, chunk) for chunk in (1, 2, 3, 7, 16, 64)} | {"scan": run(affine.scan)}
    return battery.Operation(definition, forms, lambda state, token: affine.step(state, *(token[name] for name in NAMES)), exact_tokens)


def of_fast(fast):
    forms = {name: battery.on_tensors(getattr(fast, name), NAMES) for name in ("recurrent", "chunked", "scan")}
    return battery.Operation(definition, forms, battery.one_token(fast.step, NAMES), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.affine", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_summaries_compose(case):
    """Affine maps compose associatively, and the summary of a whole is that of its parts."""
    tokens, S0, at, *_ = battery.run_of(case, exact_tokens)
    parts = slice(None), slice(0, at), slice(at, None)
    whole, first, second = (affine.summary(*(tokens[name][part] for name in NAMES[1:])) for part in parts)
    exactly(second[0] @ first[0], whole[0], "the map of two parts")
    exactly(second[0] @ first[1] + second[1], whole[1], "what two parts add")
    exactly(whole[0] @ S0 + whole[1], definition(tokens, S0)[1], "the state after the summary")


@few
@given(battery.cases())
def test_the_matrix_gives_the_outputs(case):
    tokens, S0, *_ = battery.run_of(case, exact_tokens)
    W = affine.matrix(*(tokens[name] for name in ("q", "k", "g", "a", "b")))
    exactly(np.triu(W, 1), np.zeros_like(W), "the matrix above its diagonal")
    exactly(W @ tokens["v"], definition(tokens, np.zeros_like(S0))[0], "the matrix times the values")


@few
@given(battery.cases())
def test_fast_summary_matrix_and_early_read(fast, case):
    tokens, S0, _, others, _ = battery.run_of(case, exact_tokens)
    tensor = lambda x: inputs.tensor(x[None, :, None], "float32")
    rows = {name: tensor(tokens[name]) for name in NAMES}
    M, B = fast.summary(*(rows[name] for name in NAMES[1:]))
    expected = affine.summary(*(tokens[name] for name in NAMES[1:]))
    exactly(M[0, 0], expected[0], "map of the summary")
    exactly(B[0, 0], expected[1], "what the summary adds")
    names = "q", "k", "g", "a", "b"
    exactly(fast.matrix(*(rows[name] for name in names))[0, 0], affine.matrix(*(tokens[name] for name in names)), "matrix")
    u = others["k"][0]
    o, state = fast.recurrent_pre(*rows.values(), inputs.tensor(u[None], "float32"), inputs.tensor(S0[None, None], "float32"))
    expected = affine.recurrent_pre(*(tokens[name] for name in NAMES), u, S0)
    exactly(o[0, :, 0], expected[0], "outputs read before the write")
    exactly(state[0, 0], expected[1], "state of the early read")


@few
@given(battery.cases())
def test_the_early_read_sees_one_token_less(case):
    """Read before the write: the output of a query put one token later, to which its own pair is added by the bonus alone."""
    tokens, S0, _, others, _ = battery.run_of(case, exact_tokens)
    u = others["k"][0]
    o, state = affine.recurrent_pre(*(tokens[name] for name in NAMES), u, S0)
    exactly(state, definition(tokens, S0)[1], "state")
    for t in range(len(o)):
        before = definition({name: x[:t] for name, x in tokens.items()}, S0)[1]
        q, k, v = (tokens[name][t] for name in ("q", "k", "v"))
        exactly(o[t], q @ before + (q * u * k).sum() * v, f"output {t}")


@few
@given(inputs.seeds)
def test_the_adjoint_is_the_exact_difference(seed):
    """The loss is affine in every single element, and in e^g: a difference of two values is the derivative, and exact on integers."""
    rng = np.random.default_rng(seed)
    T, K, V = 4, 2, 2
    tokens, S0 = exact_tokens(rng, T, K, V), rng.integers(-2, 3, (K, V)).astype(float)
    do, dS = rng.integers(-2, 3, (T, V)).astype(float), rng.integers(-2, 3, (K, V)).astype(float)
    arguments = [*(tokens[name] for name in NAMES), S0]

    def loss(at, index, value):
        changed = arguments[at].copy()
        changed[index] = value
        o, state = affine.recurrent(*arguments[:at], changed, *arguments[at + 1 :])
        return (o * do).sum() + (state * dS).sum()

    for at, (name, gradient) in enumerate(zip((*NAMES, "S0"), affine.backward(*arguments[:6], do, dS, S0), strict=True)):
        for index in np.ndindex(gradient.shape):
            x = arguments[at][index]
            if name == "g":  # d/dg = e^g d/de^g, and e^g is 0 or 1
                expected = np.exp(x) * (loss(at, index, 0.0) - loss(at, index, -np.inf))
            else:
                expected = loss(at, index, x + 1) - loss(at, index, x)
            exactly(gradient[index], expected, f"d{name}{index}")
    tokens["b"] = np.zeros_like(tokens["b"])
    diagonal = affine.backward(*(tokens[name] for name in NAMES), do, dS, S0)
    for actual, expected in zip(gla.backward(*arguments[:4], do, dS, S0), (*diagonal[:4], diagonal[6]), strict=True):
        exactly(actual, expected, "the adjoint whose gate gradient holds no states")


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"a": None}, ValueError, "a and b must"),
        ({"g": torch.zeros(1, 5, 2, 3)}, ValueError, "g must"),
        ({"b": torch.zeros(1, 5, 2, 3)}, ValueError, "b must"),
        ({"S0": torch.zeros(1, 2, 3, 4)}, ValueError, "S0 must"),
        ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"a": torch.zeros(1, 5, 2, 4, dtype=torch.float16)}, TypeError, "a must"),
        ({"chunk": 7}, ValueError, "chunk must"),
    ],
)
def test_bad_input_is_named(fast, changes, error, message):
    arguments = {name: torch.zeros(1, 5, 2, 4) for name in NAMES} | {"v": torch.zeros(1, 5, 2, 3), "S0": None} | changes
    place = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    with pytest.raises(error, match=message):
        fast.chunked(**{name: place(x) for name, x in arguments.items()})
