"""RG-LRU: the laws of every causal recurrence with gates that are open or shut, resets, and factors whose squares sum to 1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention import battery, channels
from twofold.conformance.linear_attention.battery import few
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
from twofold.spec.linear_attention import hgrn
from twofold.spec.state_space import rg_lru

exact64 = Precision("float64", "float64")
FAST = 200.0  # Lambda with which a gate that is open forgets everything: e^-1600 is 0 in every format


def exact_tokens(rng, T, K, V):
    """A channel that does not forget takes nothing in: three of ten do."""
    return battery.exact_tokens(rng, T, K, V, forget=0.3)


def gated(form):
    """A form as the laws call it, of what is written and of log-decays of 0 and -inf: recurrence gates that are shut or open."""

    def run(x, g, S0):
        wide = np.full_like(x, np.inf)
        return form(x, wide, np.where(g < 0, wide, -wide), np.full(x.shape[1], FAST), None, S0)

    return channels.read(run)


def on_tensors(form, **options):
    def run(x, gate_x, gate_a, Lambda, reset, S0):
        rows = [inputs.tensor(y[None], "float32") for y in (x, gate_x, gate_a)]
        o, state = form(*rows, inputs.tensor(Lambda, "float32"), None, inputs.tensor(S0[None], "float32"), **options)
        return inputs.array(o)[0], inputs.array(state)[0]

    return run


def one_token(step):
    """`step` of either side: its state comes first, and its token has no time."""

    def run(x, gate_x, gate_a, Lambda, reset, S0):
        o, state = step(S0, x[0], gate_x[0], gate_a[0], Lambda)
        return o[None], state

    one = gated(run)

    def law(state, token):
        output, after = one({name: row[None] for name, row in token.items()}, state)
        return output[0], after

    return law


definition = gated(rg_lru.recurrent)


def of_spec():
    forms = {f"scan in {n}": gated(lambda *given, n=n: rg_lru.scan(*given, n)) for n in (1, 2, 3, 7, 16, 64)}
    return battery.Operation(definition, forms, one_token(rg_lru.step), exact_tokens)


def of_fast(fast):
    forms = {"scan": gated(on_tensors(fast.scan)), "scan in 16": gated(on_tensors(fast.scan, chunk=16))}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"scan in 7": gated(on_tensors(fast.scan, chunk=7)), "recurrent": gated(on_tensors(fast.recurrent))}

    def step(state, x, gate_x, gate_a, Lambda):
        rows = [inputs.tensor(y[None], "float32") for y in (state, x, gate_x, gate_a)]
        return tuple(inputs.array(y)[0] for y in fast.step(*rows, inputs.tensor(Lambda, "float32")))

    return battery.Operation(definition, forms, one_token(step), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "state_space.rg_lru", of_spec, of_fast) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = exact_tokens(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


def real(seed, T, D):
    rng = np.random.default_rng(seed)
    x, gate_x, gate_a = rng.standard_normal((3, T, D))
    return x, 2 * gate_x, 2 * gate_a, 4 * rng.standard_normal(D), rng.random(T) < 0.2, rng.standard_normal(D)


@given(inputs.seeds, st.integers(0, 20), st.booleans())
def test_it_is_hgrn_with_other_gates(seed, T, resets):
    """In float64, with gates written out as the paper prints them."""
    x, gate_x, gate_a, Lambda, reset, S0 = real(seed, T, 5)

    def by_hand(x, gate_x, gate_a, Lambda, S0):
        sigmoid = lambda y: 1 / (1 + np.exp(-y))
        rate = -8 * np.log(1 + np.exp(Lambda))
        a = np.exp(rate * sigmoid(gate_a))
        new = reset[:, None] & resets
        write = np.where(new, 1.0, np.sqrt(1 - a * a)) * sigmoid(gate_x) * x
        return hgrn.recurrent(write, np.where(new, -np.inf, rate * sigmoid(gate_a)), S0)

    ours = bounded(rg_lru.recurrent, x, gate_x, gate_a, Lambda, reset if resets else None, S0, precision=exact64)
    theirs = bounded(by_hand, x, gate_x, gate_a, Lambda, S0, precision=exact64)
    for one, two, what in zip(ours, theirs, ("outputs", "state"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 20))
def test_forms_are_equal_on_real_values(seed, T):
    """Resets included."""
    *tokens, S0 = real(seed, T, 5)
    expected = bounded(rg_lru.recurrent, *tokens, S0, precision=exact64)
    for chunk in (1, 4, 64):
        for one, two, what in zip(bounded(rg_lru.scan, *tokens, S0, chunk, precision=exact64), expected, ("outputs", "state"), strict=True):
            coincide(one, two, f"{what} in chunks of {chunk}")


def whole(rng, T, D):
    """Small integers, gates that are open or shut, a few resets: exact in every order and format. x, gates, Lambda, reset, S0."""
    x, S0 = rng.integers(-2, 3, (T, D)).astype(float), rng.integers(-2, 3, D).astype(float)
    gate_x, gate_a = rng.choice([-np.inf, np.inf], (2, T, D))
    return x, gate_x, gate_a, np.full(D, FAST), rng.random(T) < 0.2, S0


@few
@given(inputs.seeds, st.integers(0, 34), st.sampled_from([64, 16]))
def test_a_reset_begins_a_new_text(fast, seed, at, chunk):
    """What follows a reset is what a text gives that begins there, whatever the state before it."""
    *tokens, Lambda, reset, S0 = whole(np.random.default_rng(seed), 35, 5)
    reset[at] = True
    expected = rg_lru.recurrent(*(y[at:] for y in tokens), Lambda, reset[at:])
    rows, new = (inputs.tensor(y[None], "float32") for y in tokens), inputs.tensor(reset[None])
    o, final = fast.scan(*rows, inputs.tensor(Lambda, "float32"), new, inputs.tensor(S0[None], "float32"), chunk)
    runs = {form.__name__: form(*tokens, Lambda, reset, S0) for form in (rg_lru.recurrent, rg_lru.scan)} | {"fast": (o[0], final[0])}
    for name, (output, state) in runs.items():
        exactly(output[at:], expected[0], f"outputs after a reset, {name}")
        exactly(state, expected[1], f"state after a reset, {name}")


def test_a_reset_token_is_written_in_full(fast):
    """With an open input gate, however little the channel forgets elsewhere; in a step, too."""
    x, zero = np.array([[3.0, -5.0]]), np.zeros(2)
    tokens = x, np.full((1, 2), np.inf), zero[None], np.full(2, -30.0)
    reset, S0 = np.array([True]), np.array([7.0, 7.0])
    for form in (rg_lru.recurrent, rg_lru.scan):
        exactly(form(*tokens, reset, S0)[0], x, "output")
    exactly(rg_lru.step(S0, *(y[0] for y in tokens[:3]), tokens[3], True)[1], x[0], "state of a step")
    rows, lam = [inputs.tensor(y, "float32") for y in tokens[:3]], inputs.tensor(tokens[3], "float32")
    new, first = inputs.tensor(reset), inputs.tensor(S0[None], "float32")
    exactly(fast.scan(*(y[None] for y in rows), lam, new[None], first)[0][0], x, "output of fast")
    exactly(fast.step(first, *rows, lam, new)[1], x, "state of a step of fast")


@given(inputs.seeds)
def test_squares_of_what_is_kept_and_what_is_added_sum_to_one(seed):
    """So unit variance stays unit variance: a step from 1 without input shows one factor, a step from 0 the other."""
    rng = np.random.default_rng(seed)
    gate_a, Lambda, ones = 3 * rng.standard_normal(40), 6 * rng.standard_normal(40), np.ones(40)

    def squares(gate_a, Lambda):
        kept = rg_lru.step(ones, 0 * ones, 0 * ones, gate_a, Lambda)[1]
        added = rg_lru.step(0 * ones, ones, np.full(40, np.inf), gate_a, Lambda)[1]
        return kept * kept + added * added

    agree(ones, bounded(squares, gate_a, Lambda, precision=exact64), "sum of squares")


@given(inputs.seeds, st.integers(0, 5))
def test_blocks_do_not_meet(fast, seed, T):
    """Block-diagonal: each head is a dense layer of its own."""
    rng = np.random.default_rng(seed)
    x, W, b = (rng.integers(-2, 3, shape).astype(float) for shape in ((T, 12), (3, 4, 4), 12))
    dense = np.zeros((12, 12))
    for h in range(3):
        dense[4 * h : 4 * h + 4, 4 * h : 4 * h + 4] = W[h]
    exactly(rg_lru.block_diagonal(x, W, b), x @ dense + b, "gates")
    rows = (inputs.tensor(y, "float32") for y in (x[None], W, b))
    exactly(fast.block_diagonal(*rows)[0], x @ dense + b, "gates of fast")
