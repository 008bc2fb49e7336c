"""RWKV-6 on real values: bounds, gradients, packing, heads, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import gla, rwkv6

GATES = {"mild": -0.1, "strong": -30.0, "wild": -2.0}


def real(seed, gates, T, K, V, dtype):
    r, k, v = (x / 4 for x in inputs.values("normal", [(T, K), (T, K), (T, V)], seed, dtype))
    rng = np.random.default_rng(seed)
    g = inputs.rounded(GATES[gates] * np.abs(rng.standard_normal((T, K))), "float32")
    u, S0 = (inputs.rounded(x, "float32") for x in (rng.standard_normal(K), rng.standard_normal((K, V))))
    return r, k, v, g, u, S0


def one_place_later(r, k, v, g, u, S0, chunk, dtype):
    """The chunks of gated linear attention asked one place early, rounded where they are stored; and the bonus."""
    early, state = gla.chunked(np.concatenate([r[1:], 0 * r[:1]]), k, v, g, S0, chunk, 16)
    own = np.sum(r * u * k, axis=1).reshape(-1, 1) * v
    return np.concatenate([r[:1] @ S0, early.rounded_to(dtype)[:-1]]) + own, state


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16"]))
def test_outputs_and_states_agree_with_the_definition(fast, seed, gates, T, dtype):
    r, k, v, g, u, S0 = real(seed, gates, T, 20, 7, dtype)
    rows = [inputs.tensor(x[None, :, None], "float32" if x is g else dtype) for x in (r, k, v, g)]
    o, state = fast.chunked(*rows, inputs.tensor(u[None], "float32"), inputs.tensor(S0[None, None], "float32"), 32)
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    expected = bounded(one_place_later, r, k, v, g, u, S0, 32, dtype, precision=contract, outputs=(dtype, "float32"))
    values = rwkv6.recurrent(r, k, v, g, u, S0)
    for actual, bound, value, what in zip((o[0, :, 0], state[0, 0]), expected, values, ("output", "final state"), strict=True):
        bound.value = value
        agree(actual, bound, what)


@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]))
def test_gradients_are_exact_on_integers(fast, seed, T):
    """The loss is affine in every element but a gate: a difference of two values is the derivative, in a direction of ones."""
    rng = np.random.default_rng(seed)
    tokens = battery.exact_tokens(rng, T, 5, 3)
    u, S0 = rng.integers(-1, 3, 5).astype(float), rng.integers(-2, 3, (5, 3)).astype(float)
    case = [*(tokens[name] for name in ("q", "k", "v", "g")), u, S0]
    do, dS = rng.integers(-1, 2, (T, 3)).astype(float), rng.integers(-2, 3, (5, 3)).astype(float)
    shaped = [x[None, :, None] if n < 4 else x[None] if n == 4 else x[None, None] for n, x in enumerate(case)]
    leaves = [inputs.tensor(x, "float32").requires_grad_() for x in shaped]
    o, state = fast.chunked(*leaves, 16)
    upstream = inputs.tensor(do[None, :, None], "float32"), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad((o, state), leaves, upstream)

    def value(*arguments):
        o, state = rwkv6.recurrent(*arguments)
        return (o * do).sum() + (state * dS).sum()

    for n, gradient in enumerate(gradients):
        gradient = inputs.array(gradient).reshape(case[n].shape)
        for index in list(np.ndindex(case[n].shape))[:: max(case[n].size // 12, 1)]:
            changed = [x.copy() for x in case]
            changed[n][index] += 1 if n != 3 else -np.inf
            slope = value(*changed) - value(*case) if n != 3 else value(*case) - value(*changed)
            assert gradient[index] == slope, f"argument {n}, element {index}"


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.booleans())
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, with_state):
    """The first token of a sequence asks its own state, and not the sequence before; empty ones return theirs."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    r, k = rng.integers(-1, 2, (2, T, 5)).astype(float)
    v, g = rng.integers(-2, 3, (T, 2, 3)).astype(float), np.where(rng.random((T, 2, 5)) < 0.1, -np.inf, 0.0)
    u, S0 = rng.integers(-1, 3, (2, 5)).astype(float), rng.integers(-2, 3, (len(lengths), 2, 5, 3)).astype(float) * with_state
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = [inputs.tensor(x, "float32") for x in (r[None, :, None], k[None, :, None], v[None], g[None], u)]
    given_state = inputs.tensor(S0, "float32") if with_state else None
    o, states = fast.chunked(*rows, given_state, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        output, state = rwkv6.recurrent(r[here], k[here], v[here, h], g[here, h], u[h], S0[n, h])
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(states[n, h], state, f"final state of sequence {n}, head {h}")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"u": torch.zeros(1, 4)}, "u must"), ({"u": torch.zeros(2, 3)}, "u must"), ({"g": torch.full((1, 5, 2, 4), 0.5)}, "g must"),
        ({"g": torch.zeros(1, 5, 2, 3)}, "g must"), ({"chunk": 24}, "chunk must"), ({"r": torch.zeros(1, 5, 3, 4)}, "k must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, message):
    shapes = {"r": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "g": (1, 5, 2, 4), "u": (2, 4)}
    arguments = {name: -torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        fast.chunked(**arguments, check=True)
    with pytest.raises(ValueError, match="A must"):
        fast.mix(torch.zeros(1, 2, 4), torch.zeros(4), torch.zeros(5, 4), torch.zeros(4, 9), torch.zeros(5, 2, 4))
