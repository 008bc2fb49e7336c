"""Simple gated linear attention on real values, within derived bounds; packing; what it refuses."""

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
from twofold.spec.linear_attention import gla, simple_gla

NAMES = ("q", "k", "v", "g")
GATES = {"mild": -0.1, "strong": -30.0, "wild": -2.0}


def real(seed, gates, T, K, V, dtype):
    shapes = [(T, K), (T, K), (T, V), (T, V)]
    q, k, v, do = (x / 4 for x in inputs.values("normal", shapes, seed, dtype))
    rng = np.random.default_rng(seed)
    g = inputs.rounded(GATES[gates] * np.abs(rng.standard_normal(T)), "float32")
    S0, dS = (inputs.rounded(x, "float32") for x in rng.standard_normal((2, K, V)))
    return q, k, v, g, S0, do, dS


def tensors(q, k, v, g, S0, dtype):
    rows = [inputs.tensor(x[None, :, None], "float32" if x is g else dtype) for x in (q, k, v, g)]
    return *rows, inputs.tensor(S0[None, None], "float32")


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16"]))
def test_values_and_gradients_agree_with_the_definition(fast, seed, gates, T, dtype):
    """Outputs in both formats; gradients in float32, by the adjoint of the core."""
    K, V = 20, 7
    q, k, v, g, S0, do, dS = real(seed, gates, T, K, V, dtype)
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    given_ = [x.requires_grad_() for x in tensors(q, k, v, g, S0, dtype)]
    o, state = fast.chunked(*given_, chunk=32)
    expected = bounded(simple_gla.chunked, q, k, v, g, S0, 32, precision=contract, outputs=(dtype, "float32"))
    for actual, bound, value, what in zip(
        (o[0, :, 0], state[0, 0]), expected, simple_gla.recurrent(q, k, v, g, S0), ("output", "final state"), strict=True
    ):
        bound.value = value
        agree(actual.detach(), bound, what)
    if dtype == "float32":
        upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS[None, None], "float32")
        gradients = torch.autograd.grad((o, state), given_, upstream)
        spread = np.repeat(g[:, None], K, axis=1)
        *wanted, dg, dS0 = bounded(gla.backward, q, k, v, spread, do, dS, S0, precision=contract)
        for actual, bound, what in zip(gradients, (*wanted, dg.sum(axis=1), dS0), ("dq", "dk", "dv", "dg", "dS0"), strict=True):
            agree(actual[0, 0] if what == "dS0" else actual[0, :, 0], bound, what)


def tokens_of(rng, T):
    return battery.exact_tokens(rng, T, 5, 3) | {"g": np.where(rng.random(T) < 0.1, -np.inf, 0.0)}


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3))
def test_packed_sequences_are_sequences(fast, seed, lengths):
    rng = np.random.default_rng(seed)
    parts = [tokens_of(rng, T) for T in lengths]
    rows = [inputs.tensor(np.concatenate([part[name] for part in parts])[None, :, None], "float32") for name in NAMES]
    S0 = rng.integers(-2, 3, (len(lengths), 1, 5, 3)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    o, states = fast.chunked(*rows, inputs.tensor(S0, "float32"), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, part in enumerate(parts):
        output, state = simple_gla.recurrent(*part.values(), S0[n, 0])
        exactly(o[0, edges[n] : edges[n + 1], 0], output, f"outputs of sequence {n} of lengths {lengths}")
        exactly(states[n, 0], state, f"final state of sequence {n} of lengths {lengths}")


@few
@given(inputs.seeds)
def test_heads_have_gates_of_their_own(fast, seed):
    """Two sequences, two value heads on one query and key head: each as if alone."""
    rng = np.random.default_rng(seed)
    q, k = rng.integers(-1, 2, (2, 2, 19, 1, 5)).astype(float)
    v, S0 = rng.integers(-2, 3, (2, 19, 2, 3)).astype(float), rng.integers(-2, 3, (2, 2, 5, 3)).astype(float)
    g = np.where(rng.random((2, 19, 2)) < 0.2, -np.inf, 0.0)
    o, states = fast.chunked(*(inputs.tensor(x, "float32") for x in (q, k, v, g, S0)), chunk=16)
    for b, h in np.ndindex(2, 2):
        output, state = simple_gla.recurrent(q[b, :, 0], k[b, :, 0], v[b, :, h], g[b, :, h], S0[b, h])
        exactly(o[b, :, h], output, f"outputs of row {b}, head {h}")
        exactly(states[b, h], state, f"final state of row {b}, head {h}")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"g": torch.full((1, 5, 2), 0.5)}, "g must"), ({"g": torch.zeros(1, 5, 2, 1)}, "g must"), ({"g": torch.zeros(1, 5, 1)}, "g must"),
        ({"chunk": 24}, "chunk must"), ({"S0": torch.zeros(1, 2, 3, 4)}, "S0 must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, message):
    shapes = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "g": (1, 5, 2), "S0": (1, 2, 4, 3)}
    arguments = {name: -torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        fast.chunked(**arguments, check=True)
