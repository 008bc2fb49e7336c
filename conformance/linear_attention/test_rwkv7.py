"""RWKV-7: the laws of every causal recurrence, exactly; its place in the family; its gates, its keys and the whole time mixing."""

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
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine, gla, rwkv7

exact64 = Precision("float64", "float64")
NAMES = ("q", "g", "k", "v", "kappa", "iota")  # as the laws call them: receptances stand for q


def exact_tokens(rng, T, K, V):
    """Rates 0 and 1, removal keys ± e_i or, where nothing fades, ± e_i ± e_j: a row is kept, emptied or takes the place of another.

    So integers stay integers, and no state grows but by what is written.
    """
    tokens, eye, (i, j) = battery.exact_tokens(rng, T, K, V), np.eye(K), rng.integers(0, K, (2, T))
    two, signs = ((rng.random(T) < 0.5) & (i != j))[:, None], rng.choice([-1.0, 1.0], (2, T, 1))
    kappa = signs[0] * eye[i] + two * signs[1] * eye[j]
    return tokens | {"g": np.where(two, 0.0, tokens["g"]), "kappa": kappa, "iota": rng.integers(0, 2, (T, K)).astype(float)}


def definition(tokens, S0):
    return rwkv7.recurrent(*(tokens[name] for name in NAMES), S0)


def of_spec():
    forms = {f"chunked in {n}": lambda tokens, S0, n=n: rwkv7.chunked(*(tokens[x] for x in NAMES), S0, n) for n in (1, 2, 3, 7, 16, 64)}
    return battery.Operation(definition, forms, lambda state, token: rwkv7.step(state, *(token[name] for name in NAMES)), exact_tokens)


def of_fast(fast):
    on = lambda form, **options: battery.on_tensors(form, NAMES, **options)
    forms = {"chunked": on(fast.chunked, chunk=32)}
    if getattr(fast, "side", "torch") == "torch":
        forms |= {"chunked in 16": on(fast.chunked, chunk=16), "recurrent": on(fast.recurrent)}
    return battery.Operation(definition, forms, battery.one_token(fast.step, NAMES), exact_tokens)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.rwkv7", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_it_is_a_row_of_the_core_and_without_rates_gated_linear_attention(case):
    tokens, S0, *_ = battery.run_of(case, exact_tokens)
    r, g, k, v, kappa, iota = (tokens[name] for name in NAMES)
    for one, two in zip(definition(tokens, S0), affine.recurrent(r, k, v, g, -kappa, kappa * iota, S0), strict=True):
        exactly(one, two, "the core")
    for one, two in zip(rwkv7.recurrent(r, g, k, v, kappa, 0 * iota, S0), gla.recurrent(r, k, v, g, S0), strict=True):
        exactly(one, two, "nothing is removed")


@few
@given(battery.cases())
def test_a_rate_of_one_replaces_and_what_is_removed_has_not_faded(operation, case):
    """Written under the key that is removed, a value stands alone; and the gate of a token does not touch what it removes."""
    tokens, S0, at, *_ = operation.run(case)
    i = int(np.argmax(np.abs(tokens["kappa"][at])))
    tokens["kappa"][at], tokens["iota"][at], tokens["g"][at] = np.eye(case.K)[i], 1.0, 0.0
    tokens["k"][at] = np.eye(case.K)[i]
    until = {name: x[: at + 1] for name, x in tokens.items()}
    shut = until | {"g": np.concatenate([until["g"][:at], np.full((1, case.K), -np.inf)])}
    before = definition({name: x[:at] for name, x in tokens.items()}, S0)[1]
    for name, form in operation.forms.items():
        exactly(form(until, S0)[1][i], tokens["v"][at], f"{name}: what stands under the key")
        expected = np.zeros_like(S0)
        expected[i] = tokens["v"][at] - before[i]
        exactly(form(shut, S0)[1], expected, f"{name}: all faded, and the unfaded row removed")


@given(inputs.seeds)
def test_gates_and_keys(fast, seed):
    """Decays as released code prints them; keys of length one, zero of zero; a replacement key unweakened at rate one."""
    x, w0, A, B = inputs.values("normal", [(7, 4), (6,), (4, 3), (3, 6)], seed, "float32")
    printed = lambda x, w0, A, B: -np.exp(-np.logaddexp(0.0, -(w0 + np.tanh(x @ A) @ B)) - 0.5)
    one, two = (bounded(text, x, w0, A, B, precision=exact64) for text in (rwkv7.log_decay, printed))
    coincide(one, two, "the two texts of the decay")
    assert np.all((one.value < 0) & (one.value > -np.exp(-0.5)))
    on = [inputs.tensor(y, "float32") for y in (x, w0, A, B)]
    agree(fast.log_decay(*on), bounded(rwkv7.log_decay, x, w0, A, B, precision=Precision("float32")), "log-decays")
    agree(fast.rate(*on), bounded(rwkv7.rate, x, w0, A, B, precision=Precision("float32")), "rates")
    k, iota, k_k, k_a = (inputs.rounded(y, "float32") for y in np.random.default_rng(seed).uniform(0.1, 1, (4, 5, 6)))
    k[2] = 0
    expected = bounded(rwkv7.keys, k, iota, k_k[0], k_a[0], precision=Precision("float32"))
    actual = fast.keys(*(inputs.tensor(y, "float32") for y in (k, iota, k_k[0], k_a[0])))
    for one, two, what in zip(actual, expected, ("removal keys", "replacement keys"), strict=True):
        agree(one, two, what)
    exactly(rwkv7.keys(k, iota, k_k[0], k_a[0])[0][2], np.zeros(6), "the removal key of a zero key")
    exactly(rwkv7.keys(k, np.ones((5, 6)), k_k[0], k_a[0])[1], k, "replacement keys at rate one")


D, H, R = 8, 2, 3
LOW_RANK = (D,), (D, R), (R, D)
SHAPES = (6, D), *4 * [(D, D)], *LOW_RANK, *LOW_RANK, (D, R), (R, D), *3 * [(H, D // H)], (D,), (D,)


def mixing(layer, x, S0, v_first, *p, **options):
    """`layer` on a flat list of its parameters in the order of its arguments, of which the last three are the residual's."""
    parts = p[0], p[1:5], p[5:8], p[8:11], p[11:13], *p[13:16], p[16:18]
    residual = {"residual": p[18:], "v_first": v_first} if v_first is not None else {}
    y, (states, last), values = layer(x, *parts, S0, **residual, **options)
    return y, states, last, values


@few
@given(inputs.seeds, st.sampled_from([1, 5, 18]), st.booleans(), st.booleans())
def test_time_mixing_agrees_with_the_definition_and_resumes(fast, seed, T, first, continued):
    """The first layer and the others, from nothing and from a state; cut anywhere it goes on with its memories and its last row."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: inputs.rounded(rng.standard_normal(shape) / 2, "float32")
    x, v_first, last, states = draw(T, D), None if first else draw(T, D), draw(D), draw(H, D // H, D // H)
    parameters = [draw(*shape) for shape in (*SHAPES, *LOW_RANK)]
    S0 = (states, last) if continued else None

    def text(x, states, last, v_first, *parameters):
        return mixing(rwkv7.layer, x, (states, last) if continued else None, v_first, *parameters)

    expected = bounded(text, x, states, last, v_first, *parameters, precision=Precision("float32", accumulator="tf32x3"))
    on = lambda y: y if y is None else inputs.tensor(y, "float32")
    on_device = [on(y) for y in parameters]
    for cut in sorted({0, T // 2}):
        state, found = S0 and tuple(on(y[None]) for y in S0), []
        for piece in (slice(0, cut), slice(cut, T)):
            values = None if first else on(v_first[None, piece])
            with torch.no_grad():
                y, memories, row, v = mixing(fast.layer, on(x[None, piece]), state, values, *on_device, chunk=16)
            found.append((y, v))
            state = memories, row
        outputs, values = (torch.cat(parts, 1)[0] for parts in zip(*found, strict=True))
        actual, names = (outputs, state[0][0], state[1][0], values), ("rows", "memories", "last row", "values")
        for one, two, what in zip(actual, expected, names, strict=True):
            agree(one, two, f"{what}, cut at {cut}", independent=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"r_k": (2, 3)}, "r_k must"), ({"mu": (5, D)}, "mu must"), ({"last": (1, 3)}, "last must"),
        ({"residual": None}, "residual and v_first"),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(fast, changes, message):
    on = lambda shape: torch.zeros(shape, device=inputs.target.device())
    parameters = [on(shape) for shape in (*SHAPES, *LOW_RANK)]
    parameters[0] = on(changes.get("mu", (6, D)))
    parameters[13:16] = [on(changes.get("r_k", (H, D // H)))] * 3
    state = on((1, H, D // H, D // H)), on(changes.get("last", (1, D)))
    parts = parameters[0], parameters[1:5], parameters[5:8], parameters[8:11], parameters[11:13], *parameters[13:16], parameters[16:18]
    with pytest.raises(ValueError, match=message):
        fast.layer(on((1, 3, D)), *parts, state, changes.get("residual", parameters[18:]), on((1, 3, D)))
