"""Lightning attention on real values: bounds, gradients, packing, heads, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_retnet_agreement import by_logarithm, real
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.spec.linear_attention import gla, lightning


@few
@given(inputs.seeds, st.integers(0, 7), st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16"]))
def test_values_and_gradients_agree_with_the_definition(fast, seed, head, T, dtype):
    """With the rates of the exponential schedule, from none to e^-7 per token; gradients in float32."""
    K, V = 20, 7
    q, k, v, S0, do, dS = real(seed, T, K, V, dtype)
    lam = inputs.rounded(np.exp(-lightning.slopes_exponential(8, 0, 4)[head : head + 1]), "float32")
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    rows = [inputs.tensor(x[None, :, None], dtype).requires_grad_() for x in (q, k, v)]
    rate, state0 = (inputs.tensor(x, "float32").requires_grad_() for x in (lam, S0[None, None]))
    o, state = fast.chunked(*rows, rate, state0, block=16)
    expected = bounded(by_logarithm, gla.chunked, q, k, v, lam, S0, 16, 16, precision=contract, outputs=(dtype, "float32"))
    values = lightning.recurrent(q, k, v, lam[0], S0)
    for actual, bound, value, what in zip((o[0, :, 0], state[0, 0]), expected, values, ("output", "final state"), strict=True):
        bound.value = value
        agree(actual.detach(), bound, what)
    if dtype == "float32":
        upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS[None, None], "float32")
        gradients = torch.autograd.grad((o, state), [*rows, rate, state0], upstream)
        dq, dk, dv, dg, dS0 = bounded(by_logarithm, gla.backward, q, k, v, lam, do, dS, S0, precision=contract)
        for actual, bound, what in zip((*gradients[:3], gradients[4]), (dq, dk, dv, dS0), ("dq", "dk", "dv", "dS0"), strict=True):
            agree(actual[0, 0] if what == "dS0" else actual[0, :, 0], bound, what)
        agree(gradients[3], (dg.sum(axis=1).sum(axis=0) / lam[0]).reshape(1), "d lam")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3))
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths):
    """Two value heads on one query and key head, sequences side by side; nothing fades, so that all sums are exact."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    q, k = rng.integers(-1, 2, (2, T, 5)).astype(float)
    v, S0 = rng.integers(-2, 3, (T, 2, 3)).astype(float), rng.integers(-2, 3, (len(lengths), 2, 5, 3)).astype(float)
    lam, edges = np.array([1.0, 1.0]), np.concatenate([[0], np.cumsum(lengths)])
    rows = [inputs.tensor(x[None], "float32") for x in (q[:, None], k[:, None], v)]
    o, states = fast.chunked(*rows, *(inputs.tensor(x, "float32") for x in (lam, S0)), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        output, state = lightning.recurrent(q[here], k[here], v[here, h], lam[h], S0[n, h])
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(states[n, h], state, f"final state of sequence {n}, head {h}")


@few
@given(inputs.seeds)
def test_heads_have_rates_of_their_own(fast, seed):
    rng = np.random.default_rng(seed)
    q, k = rng.integers(-1, 2, (2, 1, 9, 1, 5)).astype(float)
    v, lam = rng.integers(-2, 3, (1, 9, 3, 3)).astype(float), np.array([1.0, 0.5, 0.25])
    o, states = fast.chunked(*(inputs.tensor(x, "float32") for x in (q, k, v, lam)), block=16)
    for h in range(3):
        S0, contract = np.zeros((5, 3)), Precision("float32", operand="tf32x3")
        expected = bounded(by_logarithm, gla.chunked, q[0, :, 0], k[0, :, 0], v[0, :, h], lam[h : h + 1], S0, 16, 16, precision=contract)
        own = lightning.recurrent(q[0, :, 0], k[0, :, 0], v[0, :, h], lam[h], S0)
        for actual, value, bound in zip((o[0, :, h], states[0, h]), own, expected, strict=True):
            agree(actual, Rounded(value, bound.error, precision=contract), f"head {h}")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda fast, one: fast.chunked(one(4), one(4), one(3), torch.tensor([1.5])), "lam must"),
        (lambda fast, one: fast.chunked(one(4), one(4), one(3), torch.ones(2)), "lam must"),
        (lambda fast, one: fast.chunked(one(4), one(4), one(3), torch.ones(1), None, 24), "chunk must"),
        (lambda fast, one: fast.slopes_alibi(4, 2, 2), "layer must"), (lambda fast, one: fast.slopes_exponential(-1, 0, 2), "H must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, call, message):
    with pytest.raises(ValueError, match=message):
        call(fast, lambda width: torch.ones(1, 5, 1, width))
