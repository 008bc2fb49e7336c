"""Mamba-2: the laws of every causal recurrence, exactly, its dual forms, and its place among the others."""

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
from twofold.spec.linear_attention import affine, simple_gla
from twofold.spec.state_space import mamba2

NAMES = ("v", "delta", "k", "q")  # x, delta, B, C under the names of the laws
RATES = {"no decay": 0.0, "a step forgets all": -1e30}
D = 2.0


def exact_tokens(rng, T, N, P):
    """Steps of 0, 1 and 2: with a rate of 0 they only scale, with one of -1e30 each either changes nothing or begins anew."""
    tokens = battery.exact_tokens(rng, T, N, P)
    return {name: tokens[name] for name in "qkv"} | {"delta": rng.choice([0.0, 1.0, 2.0], T, p=[0.5, 0.3, 0.2])}


def on_arrays(form, A, *options):
    """A form of the spec as a function of (tokens, S0)."""
    return lambda tokens, S0: form(tokens["v"], tokens["delta"], A, tokens["k"], tokens["q"], D, S0, *options)


def of_spec(A):
    forms = {f"chunked in {chunk}": on_arrays(mamba2.chunked, A, chunk) for chunk in (1, 2, 3, 7, 16, 64)}
    step = lambda state, token: mamba2.step(state, token["v"], token["delta"], A, token["k"], token["q"], D)
    return battery.Operation(on_arrays(mamba2.recurrent, A), {"parallel": on_arrays(mamba2.parallel, A)} | forms, step, exact_tokens)


def of_fast(fast, A):
    A, weight = (inputs.tensor(np.array([x]), "float32") for x in (A, D))
    arranged = lambda form: lambda x, delta, B, C, S0, **options: form(x, delta, A, B, C, weight, S0, **options)
    forms = {"chunked in 16": battery.on_tensors(arranged(fast.chunked), NAMES, chunk=16)}  # 35 tokens are three chunks
    if getattr(fast, "side", "torch") == "torch":
        forms |= {f"chunked in {chunk}": battery.on_tensors(arranged(fast.chunked), NAMES, chunk=chunk) for chunk in (32, 64)}
        forms |= {form.__name__: battery.on_tensors(arranged(form), NAMES) for form in (fast.recurrent, fast.parallel)}
    step = lambda state, x, delta, B, C: fast.step(state, x, delta, A, B, C, weight)
    return battery.Operation(on_arrays(mamba2.recurrent, float(A)), forms, battery.one_token(step, NAMES), exact_tokens)


@pytest.fixture(scope="module", params=[(side, rate) for side in battery.SIDES for rate in RATES], ids=lambda p: f"{p[0]}-{p[1]}")
def operation(request):
    side, A = request.param[0], RATES[request.param[1]]
    with battery.side(side, "state_space.mamba2", lambda: of_spec(A), lambda fast: of_fast(fast, A)) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 17, 35])
def test_no_token_one_token_two_and_three_chunks(operation, T):
    tokens = exact_tokens(np.random.default_rng(T), T, 5, 3)
    output, state = operation.demand(tokens, np.arange(15.0).reshape(5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5, 3)


@few
@given(battery.cases())
@example(battery.Case(T=35, K=5, V=3, at=5, seed=0))
def test_it_is_the_core_and_simple_gated_linear_attention(case):
    """q = C, k = B, v = delta x, g = delta A, and the input on top: two rows of the table of models, to the bit."""
    for A in RATES.values():
        tokens, S0, *_ = battery.run_of(case, exact_tokens)
        q, k, x, delta = (tokens[name] for name in ("q", "k", "v", "delta"))
        g, zero = delta * A, 0 * k
        core = affine.recurrent(q, delta[:, None] * k, x, np.repeat(g[:, None], case.K, axis=1), zero, zero, S0)
        gated = simple_gla.recurrent(q, k, delta[:, None] * x, g, S0)
        output, state = mamba2.recurrent(x, delta, A, k, q, D, S0)
        for other, name in ((core, "the core"), (gated, "simple gated linear attention")):
            exactly(output, other[0] + D * x, f"outputs of {name}")
            exactly(state, other[1], f"final state of {name}")


def real(seed, T, N=4, P=3):
    """x, delta, A, B, C, D, S0 with steps from 2**-10 to 4."""
    rng = np.random.default_rng(seed)
    delta = np.exp2(rng.uniform(-10, 2, T))
    B, C = rng.standard_normal((2, T, N))
    return rng.standard_normal((T, P)), delta, np.array(-rng.uniform(0.5, 16)), B, C, np.array(1.5), rng.standard_normal((N, P))


@given(inputs.seeds, st.sampled_from([1, 2, 9, 33]))
def test_forms_coincide_on_real_values(seed, T):
    """All forms of the spec, in float64, within the rounding errors that each of them carries."""
    contract = {"precision": Precision("float64", "float64")}
    arguments = real(seed, T)
    expected = bounded(mamba2.recurrent, *arguments, **contract)
    others = {"parallel": bounded(mamba2.parallel, *arguments, **contract)}
    others |= {f"chunked in {chunk}": bounded(mamba2.chunked, *arguments, chunk, **contract) for chunk in (1, 3, 16)}
    for name, other in others.items():
        for one, two, what in zip(other, expected, ("outputs", "final state"), strict=True):
            coincide(one, two, f"{what} of {name}")


@given(inputs.seeds, st.sampled_from([2, 9, 33]))
def test_distant_blocks_have_the_rank_of_the_state(seed, T):
    """The matrix is semiseparable: every block below the diagonal goes through a state with N rows."""
    _, delta, A, B, C, *_ = real(seed, T, N=2)
    W = mamba2.parallel(np.eye(T), delta, A / 16, B, C, 0.0)[0]
    for cut in range(1, T):
        assert np.linalg.matrix_rank(W[cut:, :cut], tol=1e-9) <= 2


@given(inputs.seeds, st.integers(0, 9))
def test_segment_sums_are_sums_of_segments(seed, T):
    g = -np.random.default_rng(seed).integers(0, 99, T).astype(float)
    expected = np.array([[np.sum(g[j + 1 : i + 1]) if i >= j else -np.inf for j in range(T)] for i in range(T)]).reshape(T, T)
    exactly(mamba2.segsum(g), expected, "segment sums")


def test_segment_sums_lose_nothing_to_what_came_before():
    """A difference of cumulative sums has lost the small terms behind a large one; a sum of the terms between has not."""
    g = np.array([0.0, -1e17, -1.0, -2.0])
    assert mamba2.segsum(g)[3, 1] == -3.0 and np.cumsum(g)[3] - np.cumsum(g)[1] != -3.0


@given(st.floats(2.0**-20, 2.0), st.floats(2.0**-6, 16.0))
def test_the_write_is_eulers_not_a_zero_order_hold(delta, rate):
    """What one step writes: delta B x, more than the zero-order hold, by at most half of rate delta² (Taylor's remainder, and rounding)."""
    one = np.ones((1, 1))
    written = mamba2.recurrent(one, np.array([delta]), -rate, one, one, 0.0)[1][0, 0]
    held = -np.expm1(-rate * delta) / rate
    assert written == delta
    assert 0 < written - held <= rate * delta**2 / 2 + 4 * 2.0**-52 * delta
