"""Linear attention on real values: bounds, gradients, packing, heads, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import linear


def real(seed, T, K, V, dtype):
    """Features between 1/16 and 2 or so, as elu(x) + 1 gives them."""
    q, k, v = inputs.values("normal", [(T, K), (T, K), (T, V)], seed, dtype)
    return *(inputs.rounded(np.where(x > 0, x + 1, np.exp(x)), dtype) for x in (q, k)), v


def in_columns(q, k, v, eps, dtype):
    """All pairs at once, numerator and denominator rounded to the format of v before they are divided."""
    weights = np.tril(np.ones((len(q), len(q)))) * (q @ k.T)
    above, below = (x.rounded_to(dtype) for x in (weights @ v, np.sum(weights, axis=1)))
    return above / (below.reshape(-1, 1) + eps)


@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([1e-6, 0.5]))
def test_outputs_agree_with_the_definition(fast, seed, T, dtype, eps):
    K, V = 20, 7
    q, k, v = real(seed, T, K, V, dtype)
    o, (S, z) = fast.chunked(*(inputs.tensor(x[None, :, None], dtype) for x in (q, k, v)), eps, chunk=32)
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    bound = bounded(in_columns, q, k, v, eps, precision=contract, outputs=dtype, dtype=dtype)
    bound.value = linear.recurrent(q, k, v, eps)[0]
    agree(o[0, :, 0], bound, "output")
    sums = bounded(lambda k, v: (k.T @ v, np.sum(k, axis=0)), k, v, precision=contract, outputs="float32")
    for actual, expected, what in zip((S[0, 0], z[0, 0]), sums, ("sum of key times value", "sum of keys"), strict=True):
        agree(actual, expected, what)


def test_gradients_are_slopes(fast):
    """By finite differences of the definition, in a direction that touches all of an argument, both sums of the state included."""
    q, k, v = real(0, 19, 5, 3, "float32")
    rng = np.random.default_rng(0)
    S0, z0 = rng.standard_normal((5, 3)), np.abs(rng.standard_normal(5))
    do, dS, dz = rng.standard_normal((19, 3)), rng.standard_normal((5, 3)), rng.standard_normal(5)
    case = [inputs.rounded(x, "float32") for x in (q, k, v, S0, z0)]

    def value(q, k, v, S0, z0):
        o, (S, z) = linear.recurrent(q, k, v, 0.5, (S0, z0))
        return (o * do).sum() + (S * dS).sum() + (z * dz).sum()

    leaves = [inputs.tensor(x[None, :, None] if i < 3 else x[None, None], "float32").requires_grad_() for i, x in enumerate(case)]
    o, (S, z) = fast.chunked(*leaves[:3], 0.5, tuple(leaves[3:]), 16)
    upstream = [inputs.tensor(x, "float32") for x in (do[None, :, None], dS[None, None], dz[None, None])]
    for i, gradient in enumerate(torch.autograd.grad([o, S, z], leaves, upstream)):
        direction = rng.standard_normal(case[i].shape)
        moved = [[x + sign * 1e-6 * direction if j == i else x for j, x in enumerate(case)] for sign in (1, -1)]
        slope = (value(*moved[0]) - value(*moved[1])) / 2e-6
        ours = (inputs.array(gradient[0, :, 0] if i < 3 else gradient[0, 0]) * direction).sum()
        assert abs(ours - slope) <= 2.0**-24 * 2**9 * (1 + abs(slope)), f"argument {i}: {ours} instead of {slope}"


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3))
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths):
    """Two value heads on one query and key head, several sequences side by side: quotients of whole numbers, rounded once."""
    rng = np.random.default_rng(seed)
    q, k = rng.integers(0, 3, (2, sum(lengths), 5)).astype(float)
    v = rng.integers(-2, 3, (sum(lengths), 2, 3)).astype(float)
    S0, z0 = rng.integers(-2, 3, (len(lengths), 2, 5, 3)).astype(float), rng.integers(0, 3, (len(lengths), 2, 5)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = inputs.tensor(q[None, :, None], "float32"), inputs.tensor(k[None, :, None], "float32"), inputs.tensor(v[None], "float32")
    state = inputs.tensor(S0, "float32"), inputs.tensor(z0, "float32")
    o, (S, z) = fast.chunked(*rows, 1.0, state, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        output, (S_end, z_end) = linear.recurrent(q[here], k[here], v[here, h], 1.0, (S0[n, h], z0[n, h]))
        exactly(o[0, here, h], output.astype(np.float32), f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(S[n, h], S_end, f"sum of sequence {n}, head {h}")
        exactly(z[n, h], z_end, f"sum of keys of sequence {n}, head {h}")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"eps": -1.0}, "eps must"), ({"chunk": 24}, "chunk must"), ({"k": torch.zeros(1, 5, 1, 3)}, "k must"),
        ({"S0": (torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 3))}, "z must"),
        ({"S0": (torch.zeros(1, 2, 4, 2), torch.zeros(1, 2, 4))}, "S0 must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, message):
    place = lambda x: tuple(map(place, x)) if isinstance(x, tuple) else x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    shapes = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3)}
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    with pytest.raises(ValueError, match=message):
        fast.chunked(**{name: place(x) for name, x in arguments.items()})
