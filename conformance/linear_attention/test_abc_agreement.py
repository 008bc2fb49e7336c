"""Attention with bounded-memory control on real values, within derived bounds; gradients, packing, heads; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention import slots
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_abc import exact_tokens, state_of
from twofold.conformance.linear_attention.test_gsa_agreement import adjoint, contract, in_two_passes
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import abc

exact64 = Precision("float64", "float64")
NAMES = ("q", "k", "v", "s", "keys", "values", "z")


def real(seed, T, dtype, K=20, V=7, M=18):
    """q, k, v, log-weights, both memories and their log-weights; d outputs and d states."""
    shapes = [(T, K), (T, K), (T, V), (T, M), (T, V)]
    q, k, v, s, do = (inputs.rounded(x * n, dtype) for x, n in zip(inputs.values("normal", shapes, seed, dtype), (0.5, 0.5, 0.5, 2, 1)))
    rng = np.random.default_rng(seed)
    state, dstate = ([inputs.rounded(rng.standard_normal(n), "float32") for n in ((K, M), (M, V), M)] for _ in range(2))
    return (q, k, v, s, *state), (do, *dstate)


def tensors(q, k, v, s, *state, dtype):
    return *(inputs.tensor(x[None, :, None], dtype) for x in (q, k, v, s)), *(inputs.tensor(x[None, None], "float32") for x in state)


def adjoint_of_gates(s, z, dwrite, dg, dz):
    """With z' = logaddexp(z, s): d z' = sigmoid of the difference; the write is e^(s - z'), the log-decay z - z'. Last token first."""
    totals = [z]
    for row in s:
        totals.append(np.logaddexp(totals[-1], row))
    rows = []
    for t in reversed(range(len(s))):
        write, kept = np.exp(s[t] - totals[t + 1]), np.exp(totals[t] - totals[t + 1])
        through = dz - dwrite[t] * write - dg[t]
        rows.append((dwrite[t] * write + through * write)[None])
        dz = dg[t] + through * kept
    return np.concatenate(rows[::-1]), dz


def adjoint_of_all(q, k, v, s, Kt, Vt, z, do, dKt, dVt, dz):
    write, g, _ = abc.gates(s, z)
    dq, dk, dv, dwrite, dg, dKt, dVt = adjoint(q, k, v, write, g, Kt, Vt, do, dKt, dVt)
    ds, dz = adjoint_of_gates(s, z, dwrite, dg, dz)
    return dq, dk, dv, ds, dKt, dVt, dz


@given(inputs.seeds, st.sampled_from([1, 5, 18]))
def test_the_adjoint_is_the_slope_of_the_definition(seed, T):
    """By complex steps along random directions; the log of a sum, which NumPy has for real numbers only, is written out."""
    case, (do, *dstate) = real(seed, T, "float64", 3, 2, 4)
    rng = np.random.default_rng(seed)

    def loss(q, k, v, s, Kt, Vt, z):
        weight, first = np.exp(s), np.exp(z)
        total = np.concatenate([first[None], first + np.cumsum(weight, axis=0)])
        keys, values, o = Kt * first, Vt * first[:, None], 0
        for t in range(T):
            keys, values = keys + k[t][:, None] * weight[t], values + weight[t][:, None] * v[t]
            share = np.exp(q[t] @ (keys / total[t + 1]))
            o = o + (share / np.sum(share)) @ (values / total[t + 1][:, None]) @ do[t]
        parts = keys / total[-1], values / total[-1][:, None], np.log(total[-1])
        return o + sum(np.sum(part * d) for part, d in zip(parts, dstate, strict=True))

    for n, gradient in enumerate(bounded(adjoint_of_all, *case, do, *dstate, precision=exact64)):
        ways = rng.standard_normal((5, *case[n].shape))
        slopes = [loss(*(x + 1e-100j * way if m == n else x for m, x in enumerate(case))).imag / 1e-100 for way in ways]
        agree(np.array(slopes), np.stack([np.sum(gradient * way) for way in ways]), NAMES[n])


@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16", "float16"]), st.booleans())
@example(0, 35, "bfloat16", True)
@example(0, 35, "float16", False)
@example(0, 35, "float32", True)
def test_outputs_and_memories_agree_with_the_definition(fast, seed, T, dtype, continued):
    """On the gates that the implementation itself computed, once they are held to the definition's; writes are rounded to the format."""
    (q, k, v, s, *state), _ = real(seed, T, dtype)
    if not continued:
        state = [0 * state[0], 0 * state[1], np.full(18, -np.inf)]
    *rows, Kt, Vt, z = tensors(q, k, v, s, *state, dtype=dtype)
    o, after = fast.chunked(*rows, (Kt, Vt, z) if continued else None, 32)
    gates = fast.gates(rows[3], z)
    for actual, bound, what in zip(gates, bounded(abc.gates, s, state[2], precision=Precision("float32")), ("writes", "log-decays", "z")):
        agree(actual[0, 0] if what == "z" else actual[0, :, 0], bound, what)
    exactly(after[2], gates[2], "z")
    write, g = (inputs.array(x)[0, :, 0] for x in gates[:2])
    given_ = q, k, v, inputs.rounded(write, dtype), g, *state[:2]
    expected = bounded(in_two_passes, *given_, precision=contract(dtype), outputs=(dtype, "float32", "float32"))
    for actual, bound, what in zip((o[0, :, 0], after[0][0, 0], after[1][0, 0]), expected, ("output", "keys", "values"), strict=True):
        agree(actual, bound, what)


@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]))
def test_gradients_agree_with_the_adjoint(fast, seed, T):
    case, (do, *dstate) = real(seed, T, "float32")
    leaves = [x.requires_grad_() for x in tensors(*case, dtype="float32")]
    o, state = fast.chunked(*leaves[:4], tuple(leaves[4:]), 32)
    upstream = inputs.tensor(do[None, :, None], "float32"), *(inputs.tensor(x[None, None], "float32") for x in dstate)
    gradients = torch.autograd.grad((o, *state), leaves, upstream)
    expected = bounded(adjoint_of_all, *case, do, *dstate, precision=contract("float32"))
    for n, (actual, bound) in enumerate(zip(gradients, expected, strict=True)):
        agree(actual[0, :, 0] if n < 4 else actual[0, 0], bound, f"d {NAMES[n]}")


def test_gradients_stay_finite_where_slots_are_empty(fast):
    """At the start, and where tokens leave a slot alone, for ever or for a while; what they leave alone gets no gradient."""
    (q, k, v, s, *_), _ = real(0, 9, "float32")
    s[:4, 0] = s[:, 1] = s[2:5, 2] = -np.inf
    leaves = [inputs.tensor(x[None, :, None], "float32").requires_grad_() for x in (q, k, v, s)]
    o, state = fast.chunked(*leaves)
    gradients = torch.autograd.grad(o.square().sum() + sum(x.square().sum() for x in state[:2]), leaves)
    assert all(torch.isfinite(x).all() for x in gradients)
    exactly(gradients[3][0, :, 0].masked_fill(leaves[3][0, :, 0] > -torch.inf, 0), np.zeros_like(s), "d s of what has no weight")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.booleans())
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, continued):
    """Two value heads on one query and key head, sequences with totals of their own: each as if alone."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    heads = [exact_tokens(rng, T, 5, 3) for _ in range(2)]
    rows = [np.stack([head[name] for head in (heads[:1] if name in "qk" else heads)], 1)[None] for name in "qkvs"]
    states = [[slots.apart(state_of(rng, 5, 3), heads[0]) for _ in range(2)] for _ in lengths]
    edges = inputs.tensor(np.concatenate([[0], np.cumsum(lengths)]), "int32")
    S0 = tuple(inputs.tensor(np.array([[state[i] for state in row] for row in states]), "float32") for i in range(3)) if continued else None
    o, after = fast.chunked(*(inputs.tensor(x, "float32") for x in rows), S0, 16, cu_seqlens=edges)
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(int(edges[n]), int(edges[n + 1]))
        alone = [heads[0 if name in "qk" else h][name][here] for name in "qkvs"]
        output, state = abc.recurrent(*alone, states[n][h] if continued else None)
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        for actual, expected, what in zip(after, state, ("keys", "values", "z"), strict=True):
            exactly(actual[n, h], expected, f"{what} of sequence {n}, head {h}, of lengths {lengths}")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"s": torch.zeros(1, 5, 1, 6)}, ValueError, "s must"), ({"s": torch.zeros(1, 5, 2, 6).int()}, TypeError, "s must"),
        ({"S0": (torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 6, 3))}, ValueError, "S0 must"), ({"chunk": 24}, ValueError, "chunk must"),
        ({"S0": (torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 6, 3), torch.zeros(1, 6))}, ValueError, "z must"),
        ({"S0": (torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 6, 3), torch.zeros(1, 2, 6).half())}, TypeError, "z must"),
        ({"cu_seqlens": torch.tensor([0, 3, 4])}, ValueError, "cu_seqlens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    shapes = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "s": (1, 5, 2, 6)}
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**arguments)
