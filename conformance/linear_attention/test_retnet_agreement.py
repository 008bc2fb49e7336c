"""Retention on real values: bounds, gradients, rotations, heads, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import gla, retnet

RATES = [0.5, 31 / 32, 1023 / 1024, 1.0]  # numbers of every format


def real(seed, T, K, V, dtype):
    q, k, v, do = (x / 4 for x in inputs.values("normal", [(T, K), (T, K), (T, V), (T, V)], seed, dtype))
    S0, dS = (inputs.rounded(x, "float32") for x in np.random.default_rng(seed).standard_normal((2, K, V)))
    return q, k, v, S0, do, dS


def by_logarithm(form, q, k, v, gamma, *more):
    """A form of gated linear attention with log gamma for every token and channel: as the kernels take it."""
    return form(q, k, v, np.ones(k.shape) * np.log(gamma), *more)


@few
@given(inputs.seeds, st.sampled_from(RATES), st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16"]))
def test_values_and_gradients_agree_with_the_definition(fast, seed, gamma, T, dtype):
    """Of everything, the rate included: d gamma is the sum of d g over the tokens, over gamma."""
    K, V = 20, 7
    q, k, v, S0, do, dS = real(seed, T, K, V, dtype)
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    rows = [inputs.tensor(x[None, :, None], dtype).requires_grad_() for x in (q, k, v)]
    rate, state0 = inputs.tensor(np.array([gamma]), "float32").requires_grad_(), inputs.tensor(S0[None, None], "float32").requires_grad_()
    o, state = fast.chunked(*rows, rate, state0, chunk=16)
    rate_as_given = np.array([gamma])
    expected = bounded(by_logarithm, gla.chunked, q, k, v, rate_as_given, S0, 16, 16, precision=contract, outputs=(dtype, "float32"))
    for actual, bound, value, what in zip(
        (o[0, :, 0], state[0, 0]), expected, retnet.recurrent(q, k, v, gamma, S0), ("output", "final state"), strict=True
    ):
        bound.value = value
        agree(actual.detach(), bound, what)
    if dtype == "float32":
        upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS[None, None], "float32")
        gradients = torch.autograd.grad((o, state), [*rows, rate, state0], upstream)
        dq, dk, dv, dg, dS0 = bounded(by_logarithm, gla.backward, q, k, v, rate_as_given, do, dS, S0, precision=contract)
        for actual, bound, what in zip((*gradients[:3], gradients[4]), (dq, dk, dv, dS0), ("dq", "dk", "dv", "dS0"), strict=True):
            agree(actual[0, 0] if what == "dS0" else actual[0, :, 0], bound, what)
        agree(gradients[3], (dg.sum(axis=1).sum(axis=0) / gamma).reshape(1), "d gamma")


@few
@given(inputs.seeds)
def test_heads_have_rates_of_their_own(fast, seed):
    """Two sequences, two value heads on one query and key head: each as if alone; one forgets at once and one never."""
    rng = np.random.default_rng(seed)
    q, k = rng.integers(-1, 2, (2, 2, 19, 1, 5)).astype(float)
    v, S0 = rng.integers(-2, 3, (2, 19, 2, 3)).astype(float), rng.integers(-2, 3, (2, 2, 5, 3)).astype(float)
    gamma = np.array([0.0, 1.0])
    o, states = fast.chunked(*(inputs.tensor(x, "float32") for x in (q, k, v, gamma, S0)), chunk=16)
    for b, h in np.ndindex(2, 2):
        output, state = retnet.recurrent(q[b, :, 0], k[b, :, 0], v[b, :, h], gamma[h], S0[b, h])
        exactly(o[b, :, h], output, f"outputs of row {b}, head {h}")
        exactly(states[b, h], state, f"final state of row {b}, head {h}")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3))
def test_packed_sequences_are_sequences(fast, seed, lengths):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.integers(-1, 2, (sum(lengths), n)).astype(float) for n in (5, 5, 3))
    S0 = rng.integers(-2, 3, (len(lengths), 1, 5, 3)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = [inputs.tensor(x[None, :, None], "float32") for x in (q, k, v)]
    more = inputs.tensor(np.ones(1), "float32"), inputs.tensor(S0, "float32")
    o, states = fast.chunked(*rows, *more, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n in range(len(lengths)):
        here = slice(edges[n], edges[n + 1])
        output, state = retnet.recurrent(q[here], k[here], v[here], 1.0, S0[n, 0])
        exactly(o[0, here, 0], output, f"outputs of sequence {n} of lengths {lengths}")
        exactly(states[n, 0], state, f"final state of sequence {n} of lengths {lengths}")


@given(inputs.seeds, st.sampled_from([0, 1, 1000]), st.sampled_from(["float32", "bfloat16"]))
def test_rotations_agree_with_the_definition(fast, seed, first, dtype):
    """In float64 inside: positions are large. A score of two turned rows knows the distance of their positions and no more."""
    (x,) = inputs.values("normal", [(2, 5, 3, 8)], seed, dtype)
    pos = np.arange(5) + first
    turned = fast.rotate(inputs.tensor(x, dtype), inputs.tensor(pos))
    each = fast.rotate(inputs.tensor(x, dtype), inputs.tensor(np.stack([pos, pos + 3])))
    for h in range(3):
        agree(turned[0, :, h], bounded(retnet.rotate, x[0, :, h], pos, precision=Precision(dtype), outputs=dtype), "turned")
        agree(each[1, :, h], bounded(retnet.rotate, x[1, :, h], pos + 3, precision=Precision(dtype), outputs=dtype), "turned on")
    q, k = x[0, :, 0], x[1, :, 0]
    scores = lambda q, k, pos: retnet.rotate(q, pos) @ retnet.rotate(k, pos).T
    coincide(*(bounded(scores, q, k, pos + n, precision=Precision("float64", "float64")) for n in (0.0, 64.0)), "later by the same")


def test_rates_are_the_papers(fast):
    exactly(fast.decays(9), retnet.decays(9), "rates")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"gamma": torch.tensor([0.5])}, "gamma must"), ({"gamma": torch.tensor([0.5, 1.5])}, "gamma must"),
        ({"gamma": torch.tensor([0.5, -0.5])}, "gamma must"), ({"chunk": 24}, "chunk must"), ({"S0": torch.zeros(1, 2, 3, 4)}, "S0 must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, message):
    shapes = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "gamma": (2,), "S0": (1, 2, 4, 3)}
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    if inputs.target.device() == "cpu" or "gamma" not in wrong:
        arguments = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
        with pytest.raises(ValueError, match=message):
            fast.chunked(**arguments)
    with pytest.raises(ValueError, match="x must"):
        fast.rotate(torch.zeros(1, 2, 1, 3), torch.arange(2))
