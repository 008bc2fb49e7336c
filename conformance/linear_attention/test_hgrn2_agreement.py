"""HGRN2 on real values: bounds, gradients, packing, heads, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.target import implementation
from twofold.spec.linear_attention import gla, hgrn, hgrn2


def real(seed, T, K, V, dtype):
    q, f, i = (x / n for x, n in zip(inputs.values("normal", [(T, K), (T, K), (T, V)], seed, dtype), (4, 1, 4), strict=True))
    rng = np.random.default_rng(seed)
    lb, S0 = (inputs.rounded(x, "float32") for x in (rng.random(K) / 2, rng.standard_normal((K, V))))
    return q, inputs.rounded(3 * f, dtype), i, lb, S0


@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16"]), st.booleans())
@example(0, 17, "float32", True)
def test_outputs_and_states_agree_with_the_definition(fast, seed, T, dtype, bounded_below):
    """On the gates that the implementation itself computed: the key is rounded to the format, the log-decay stays in float32."""
    q, f, i, lb, S0 = real(seed, T, 20, 7, dtype)
    rows = [inputs.tensor(x[None, :, None], dtype) for x in (q, f, i)]
    bound_of = inputs.tensor(lb[None], "float32") if bounded_below else None
    o, state = fast.chunked(*rows, bound_of, inputs.tensor(S0[None, None], "float32"), 32)
    with implementation("linear_attention.hgrn", fast.side) as gates:
        g = inputs.array(gates.log_forget(rows[1], bound_of))[0, :, 0]
    agree(g, bounded(lambda f: hgrn.log_forget(f, lb if bounded_below else 0.0), f, precision=Precision("float32")), "log-decays")
    key = inputs.rounded(-np.expm1(g), dtype)
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    expected = bounded(gla.chunked, q, key, i, g, S0, 32, 16, precision=contract, outputs=(dtype, "float32"))
    for actual, bound, what in zip((o[0, :, 0], state[0, 0]), expected, ("output", "final state"), strict=True):
        agree(actual, bound, what)


def test_gradients_are_slopes(fast):
    """By finite differences of the definition, through gates, keys and lower bounds."""
    q, f, i, lb, S0 = real(0, 19, 5, 3, "float32")
    rng = np.random.default_rng(0)
    do, dS, case = rng.standard_normal((19, 3)), rng.standard_normal((5, 3)), [q, f, i, lb, S0]

    def value(q, f, i, lb, S0):
        o, state = hgrn2.recurrent(q, f, i, lb, S0)
        return (o * do).sum() + (state * dS).sum()

    shaped = [q[None, :, None], f[None, :, None], i[None, :, None], lb[None], S0[None, None]]
    leaves = [inputs.tensor(x, "float32").requires_grad_() for x in shaped]
    o, state = fast.chunked(*leaves, 16)
    upstream = inputs.tensor(do[None, :, None], "float32"), inputs.tensor(dS[None, None], "float32")
    for n, gradient in enumerate(torch.autograd.grad((o, state), leaves, upstream)):
        direction = rng.standard_normal(case[n].shape)
        moved = [[x + sign * 1e-6 * direction if m == n else x for m, x in enumerate(case)] for sign in (1, -1)]
        slope = (value(*moved[0]) - value(*moved[1])) / 2e-6
        ours = (inputs.array(gradient).reshape(case[n].shape) * direction).sum()
        assert abs(ours - slope) <= 2.0**-24 * 2**10 * (1 + abs(slope)), f"argument {n}: {ours} instead of {slope}"


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3))
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths):
    """Two heads on one query head, sequences side by side, gates open or shut."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    q, i = rng.integers(-1, 2, (T, 5)).astype(float), rng.integers(-2, 3, (T, 2, 3)).astype(float)
    f = np.where(rng.random((T, 2, 5)) < 0.3, -np.inf, np.inf)
    S0 = rng.integers(-2, 3, (len(lengths), 2, 5, 3)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = (inputs.tensor(x[None], "float32") for x in (q[:, None], f, i))
    o, states = fast.chunked(*rows, None, inputs.tensor(S0, "float32"), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        output, state = hgrn2.recurrent(q[here], f[here, h], i[here, h], 0.0, S0[n, h])
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(states[n, h], state, f"final state of sequence {n}, head {h}")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"lb": torch.ones(2, 4)}, "lb must"), ({"lb": -torch.ones(2, 4)}, "lb must"), ({"lb": torch.zeros(4)}, "lb must"),
        ({"f": torch.zeros(1, 5, 2, 3)}, "f must"), ({"chunk": 24}, "chunk must"), ({"q": torch.zeros(1, 5, 3, 4)}, "f must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, message):
    shapes = {"q": (1, 5, 1, 4), "f": (1, 5, 2, 4), "i": (1, 5, 2, 3)}
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    with pytest.raises(ValueError, match=message):
        fast.chunked(**arguments)
