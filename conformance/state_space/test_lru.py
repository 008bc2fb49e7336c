"""LRU: the laws of a causal recurrence, exactly; that it is a convolution; and its frame, which turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here: a model that is the same for all tokens has no gate
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import hgrn
from twofold.spec.state_space import lru

exact64 = Precision("float64", "float64")


def exact_model(N, H):
    """Small integers; states that neither turn nor fade nor take anything in, and others that hold the last token alone."""
    rng = np.random.default_rng(1000 * N + H)
    B, C = rng.integers(-1, 2, (2, N, H)).astype(float), rng.integers(-1, 2, (2, H, N)).astype(float)
    return np.where(rng.random(N) < 0.5, -np.inf, 8.0), np.zeros(N), B, C, rng.integers(-2, 3, H).astype(float)


def with_model(form):
    """A form as the laws call it: its only tokens are the inputs."""
    return lambda tokens, S0: form(tokens["v"], *exact_model(S0.shape[1], tokens["v"].shape[1]), S0)


def tokens_of(rng, T, K, V):
    return {"v": rng.integers(-2, 3, (T, V)).astype(float)}


def state_of(rng, K, V):
    return rng.integers(-2, 3, (2, K)).astype(float)


def on_tensors(form, **options):
    def run(u, nu, theta, B, C, D, S0):
        model = (inputs.tensor(y, "float32") for y in (nu, theta, B, C, D))
        y, state = form(inputs.tensor(u[None], "float32"), *model, inputs.tensor(S0[None], "float32"), **options)
        return inputs.array(y)[0], inputs.array(state)[0]

    return run


def one_token(step):
    def law(state, token):
        return step(state, token["v"], *exact_model(state.shape[1], len(token["v"])))

    return law


definition = with_model(lru.recurrent)


def of_spec():
    forms = {f"scan in {n}": with_model(lambda *given, n=n: lru.scan(*given, n)) for n in (1, 2, 3, 7, 16, 64)}
    return battery.Operation(definition, forms, one_token(lru.step), tokens_of, state_of)


def of_fast(fast):
    forms = {"scan": with_model(on_tensors(fast.scan)), "scan in 16": with_model(on_tensors(fast.scan, chunk=16))}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"recurrent": with_model(on_tensors(fast.recurrent))}

    def step(state, u, *model):
        rows = (inputs.tensor(y, "float32") for y in (state[None], u[None], *model))
        return tuple(inputs.array(y)[0] for y in fast.step(*rows))

    return battery.Operation(definition, forms, one_token(step), tokens_of, state_of)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "state_space.lru", of_spec, of_fast) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    rng = np.random.default_rng(T)
    output, state = operation.demand(tokens_of(rng, T, 5, 3), state_of(rng, 5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (2, 5)


@few
@given(battery.cases())
def test_outputs_and_state_are_linear_in_inputs_and_state(operation, case):
    tokens, S0, _, others, S1 = operation.run(case)
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(others, S1)
        both = form({"v": tokens["v"] + 2 * others["v"]}, S0 + 2 * S1)
        for what, a, b, c in zip(("outputs", "final state"), first, second, both, strict=True):
            exactly(c, a + 2 * b, f"{name}: {what} of u + 2 u'")


def real(seed, T, H=3, N=5):
    """u, nu, theta, B, C, D, S0."""
    rng = np.random.default_rng(seed)
    u, nu, theta = rng.standard_normal((T, H)), rng.standard_normal(N) - 1, rng.uniform(0, np.pi, N)
    return u, nu, theta, *(rng.standard_normal(shape) for shape in ((2, N, H), (2, H, N), H, (2, N)))


@given(inputs.seeds, st.integers(0, 20), st.sampled_from([1, 4, 64]))
def test_the_scan_is_the_recurrence_on_real_values(seed, T, chunk):
    """In a frame that turns along, and back."""
    arguments = real(seed, T)
    pair = bounded(lru.scan, *arguments, chunk, precision=exact64), bounded(lru.recurrent, *arguments, precision=exact64)
    for one, two, what in zip(*pair, ("outputs", "state"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 12))
def test_it_is_a_convolution(seed, T):
    """With the powers of lambda, written out: their sizes e^(-j e^nu), their angles j theta."""
    u, nu, theta, B, C, D, _ = real(seed, T)

    def convolved(u, nu, theta, B, C, D):
        lag = np.arange(float(T))
        size, angle = np.exp(-np.outer(lag, np.exp(nu))) * np.sqrt(1 - np.exp(-2 * np.exp(nu))), np.outer(lag, theta)
        a, b = size * np.cos(angle), size * np.sin(angle)                                 # of lambda^j gamma            (T, N)
        real = a[:, None] * C[0] - b[:, None] * C[1]                                      # of C lambda^j gamma          (T, H, N)
        imaginary = b[:, None] * C[0] + a[:, None] * C[1]
        kernel = np.einsum("jhn,nk->jhk", real, B[0]) - np.einsum("jhn,nk->jhk", imaginary, B[1])
        rows = [np.einsum("jhk,jk->h", kernel[: t + 1][::-1], u[: t + 1]) for t in range(T)]
        return np.stack(rows) + D * u

    own = bounded(lambda *given: lru.recurrent(*given)[0], u, nu, theta, B, C, D, precision=exact64)
    coincide(own, bounded(convolved, u, nu, theta, B, C, D, precision=exact64), "outputs")


@given(inputs.seeds, st.integers(0, 9))
def test_a_shifted_input_gives_a_shifted_output(seed, by):
    u, *model, _ = real(seed, 12)
    shifted = lru.recurrent(np.concatenate([np.zeros((by, 3)), u]), *model)
    exactly(shifted[0][by:], lru.recurrent(u, *model)[0], "outputs after a rest")
    exactly(shifted[0][:by], np.zeros((by, 3)), "outputs during it")


@given(inputs.seeds)
def test_what_does_not_turn_is_hgrn(seed):
    """Each real part with one input of its own, read as it is: the same bits."""
    u, nu, _, _, _, _, S0 = real(seed, 15, H=5)
    one, zero = np.eye(5), np.zeros((5, 5))
    y, state = lru.recurrent(u, nu, np.zeros(5), np.stack([one, zero]), np.stack([one, zero]), np.zeros(5), S0 * [[1], [0]])
    written = np.sqrt(-np.expm1(-2 * np.exp(nu))) * u
    expected = hgrn.recurrent(written, np.broadcast_to(-np.exp(nu), u.shape), S0[0])
    exactly(y, expected[0], "outputs")
    exactly(state[0], expected[1], "state")


@given(inputs.seeds)
def test_squares_of_lambda_and_gamma_sum_to_one(seed):
    """So a state keeps the variance of its inputs, at whatever rate it fades."""
    (nu,) = inputs.values("normal", [(40,)], seed)

    def squares(nu):
        zero, one = np.zeros(40), np.ones((40, 1))
        B, C, D = np.stack([one, 0 * one]), np.zeros((2, 1, 40)), np.zeros(1)
        kept = lru.step(np.stack([zero + 1, zero]), np.zeros(1), nu, zero, B, C, D)[1][0]
        added = lru.step(np.stack([zero, zero]), np.ones(1), nu, zero, B, C, D)[1][0]
        return kept * kept + added * added

    agree(np.ones(40), bounded(squares, 4 * nu, precision=exact64), "sum of squares")
