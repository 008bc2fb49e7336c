"""Gated slot attention on real values, within derived bounds; gradients, packing, heads; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention import slots
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_gla_agreement import adjoint_in_chunks
from twofold.conformance.linear_attention.test_gsa import exact_tokens
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.spec.linear_attention import affine, gla, gsa

GATES = {"mild": -0.1, "wild": -2.0, "strong": -30.0}
NAMES = ("q", "k", "v", "s", "g", "keys", "values")
exact64 = Precision("float64", "float64")


def contract(dtype):
    return Precision(dtype, operand="tf32x3" if dtype == "float32" else None)


def real(seed, gates, T, dtype, K=20, V=7, M=18):
    """q, k, v, writes, log-decays, both memories; d outputs and d memories."""
    shapes = [(T, K), (T, K), (T, V), (T, M), (T, V)]
    q, k, v, s, do = (inputs.rounded(x / 2, dtype) for x in inputs.values("normal", shapes, seed, dtype))
    rng = np.random.default_rng(seed)
    g = inputs.rounded(GATES[gates] * np.abs(rng.standard_normal((T, M))), "float32")
    Kt, dKt, Vt, dVt = (inputs.rounded(rng.standard_normal(shape), "float32") for shape in ((K, M), (K, M), (M, V), (M, V)))
    return (q, k, v, s, g, Kt, Vt), (do, dKt, dVt)


def tensors(q, k, v, s, g, Kt, Vt, dtype):
    rows = [inputs.tensor(x[None, :, None], dtype) for x in (q, k, v, s)]
    return *rows, inputs.tensor(g[None, :, None], "float32"), *(inputs.tensor(x[None, None], "float32") for x in (Kt, Vt))


def in_two_passes(q, k, v, s, g, Kt, Vt):
    """The chunked form, whose weights are stored in the format of v between the passes."""
    p, Kt = gsa.weights(q, k, s, g, Kt, 32)
    o, Vt = gla.chunked(p.rounded_to(p.precision.dtype) if isinstance(p, Rounded) else p, s, v, g, Vt, 32)
    return o, Kt, Vt


def adjoint(q, k, v, s, g, Kt, Vt, do, dKt, dVt, backward=gla.backward):
    """By the chain rule from the adjoint of gated linear attention, where a read along the keys is that of a query's gradient."""
    p, _ = gsa.weights(q, k, s, g, Kt)
    dp, ds, dv, dg, dVt = backward(p, s, v, g, do, dVt, Vt)
    dlogits = p * (dp - np.sum(p * dp, axis=1)[:, None])
    dq, _ = gla.chunked(dlogits, s, k, g, Kt.T)
    _, more_s, dk, more_g, dKt = backward(dlogits, s, k, g, q, dKt.T, Kt.T)
    return dq, dk, dv, ds + more_s, dg + more_g, dKt.T, dVt


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 17, 35]), st.sampled_from(["float32", "bfloat16", "float16"]))
@example(0, "mild", 35, "bfloat16")
@example(0, "wild", 35, "float16")
@example(0, "mild", 35, "float32")
def test_outputs_and_memories_agree_with_the_definition(fast, seed, gates, T, dtype):
    case, _ = real(seed, gates, T, dtype)
    *rows, Kt, Vt = tensors(*case, dtype)
    o, state = fast.chunked(*rows, (Kt, Vt), 32)
    expected = bounded(in_two_passes, *case, precision=contract(dtype), outputs=(dtype, "float32", "float32"))
    output, memories = gsa.recurrent(*case[:5], case[5:])
    actual = o[0, :, 0], *(x[0, 0] for x in state)
    for one, bound, value, what in zip(actual, expected, (output, *memories), ("output", "keys", "values"), strict=True):
        bound.value = value
        agree(one, bound, what)


@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 5, 18]))
def test_the_adjoint_is_the_slope_of_the_definition(seed, gates, T):
    """By complex steps, which need no size: the imaginary part of f(x + i h d) is h times the slope, without a difference."""
    case, (do, dKt, dVt) = real(seed, gates, T, "float64", 3, 2, 4)
    rng = np.random.default_rng(seed)

    def loss(*case):
        o, (Kt, Vt) = gsa.recurrent(*case[:5], case[5:])
        return np.sum(o * do) + np.sum(Kt * dKt) + np.sum(Vt * dVt)

    for n, gradient in enumerate(bounded(adjoint, *case, do, dKt, dVt, precision=exact64)):
        ways = rng.standard_normal((5, *case[n].shape))
        slopes = [loss(*(x + 1e-100j * way if m == n else x for m, x in enumerate(case))).imag / 1e-100 for way in ways]
        along = np.stack([np.sum(gradient * way) for way in ways])
        agree(np.array(slopes), along, NAMES[n])


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 17, 35]))
def test_gradients_agree_with_the_adjoint(fast, seed, gates, T):
    case, upstream = real(seed, gates, T, "float32")
    leaves = [x.requires_grad_() for x in tensors(*case, "float32")]
    o, state = fast.chunked(*leaves[:5], tuple(leaves[5:]), 32)
    do, *dstate = upstream
    given_ = inputs.tensor(do[None, :, None], "float32"), *(inputs.tensor(x[None, None], "float32") for x in dstate)
    gradients = torch.autograd.grad((o, *state), leaves, given_)
    for n, (actual, bound) in enumerate(zip(gradients, bounded(adjoint, *case, *upstream, precision=contract("float32")), strict=True)):
        agree(actual[0, :, 0] if n < 5 else actual[0, 0], bound, f"d {NAMES[n]}")


def token_by_token(q, k, v, g, do, dS, S0):
    """The core's adjoint, in which no small dg is the difference of large sums."""
    *gradients, _, _, dS0 = affine.backward(q, k, v, g, 0 * k, 0 * k, do, dS, S0)
    return *gradients, dS0


def adjoint_in_formats(q, k, v, s, g, Kt, Vt, do, dKt, dVt):
    """The same in chunks of one sub-chunk, with weights and gradients between the passes stored in the format of the inputs."""
    stored = lambda x: x.rounded_to(x.precision.dtype)
    p, _ = gsa.weights(q, k, s, g, Kt, 16)
    dp, ds, dv, dg, dVt = adjoint_in_chunks(stored(p), s, v, g, do, dVt, Vt, 16)
    dlogits = stored(p * (stored(dp) - np.sum(p * stored(dp), axis=1)[:, None]))
    dq, _ = gla.chunked(dlogits, s, k, g, Kt.T, 16)
    _, more_s, dk, more_g, dKt = adjoint_in_chunks(dlogits, s, k, g, q, dKt.T, Kt.T, 16)
    return dq, dk, dv, stored(ds) + stored(more_s), dg + more_g, dKt.T, dVt


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 17, 35]), st.sampled_from(["bfloat16", "float16"]))
@example(0, "mild", 35, "bfloat16")
@example(0, "mild", 35, "float16")
def test_gradients_agree_in_16_bits(fast, seed, gates, T, dtype):
    case, upstream = real(seed, gates, T, dtype)
    leaves = [x.requires_grad_() for x in tensors(*case, dtype)]
    o, state = fast.chunked(*leaves[:5], tuple(leaves[5:]), 16)
    do, *dstate = upstream
    given_ = inputs.tensor(do[None, :, None], dtype), *(inputs.tensor(x[None, None], "float32") for x in dstate)
    gradients = torch.autograd.grad((o, *state), leaves, given_)
    formats = *[dtype] * 4, *["float32"] * 3
    expected = bounded(adjoint_in_formats, *case, *upstream, precision=contract(dtype), outputs=formats)
    values = adjoint(*case, *upstream, backward=token_by_token)
    for n, (actual, bound, value) in enumerate(zip(gradients, expected, values, strict=True)):
        bound.value = value
        agree(actual[0, :, 0] if n < 5 else actual[0, 0], bound, f"d {NAMES[n]}")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3))
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths):
    """Two value heads on one query and key head, sequences side by side: each as if alone."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    heads = [exact_tokens(rng, T, 5, 3) for _ in range(2)]
    rows = [np.stack([head[name] for head in (heads[:1] if name in "qk" else heads)], 1)[None] for name in "qkvsg"]
    Kt, Vt = (rng.integers(-2, 3, (len(lengths), 2, *shape)).astype(float) for shape in ((5, slots.SLOTS), (slots.SLOTS, 3)))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    given_ = [inputs.tensor(x, "float32") for x in (*rows, Kt, Vt)]
    o, states = fast.chunked(*given_[:5], tuple(given_[5:]), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        alone = [heads[0 if name in "qk" else h][name][here] for name in "qkvsg"]
        output, memories = gsa.recurrent(*alone, (Kt[n, h], Vt[n, h]))
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        for actual, expected, what in zip(states, memories, ("keys", "values"), strict=True):
            exactly(actual[n, h], expected, f"{what} of sequence {n}, head {h}, of lengths {lengths}")


def some(T=5, **changes):
    shapes = {"q": (1, T, 1, 4), "k": (1, T, 1, 4), "v": (1, T, 2, 3), "s": (1, T, 2, 6), "g": (1, T, 2, 6)}
    state = torch.zeros(1, 2, 4, 6, device=inputs.target.device()), torch.zeros(1, 2, 6, 3, device=inputs.target.device())
    return {name: -torch.ones(shape, device=inputs.target.device()) for name, shape in shapes.items()} | {"S0": state} | changes


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"g": torch.full((1, 5, 2, 6), 0.5)}, ValueError, "g must"), ({"g": torch.zeros(1, 5, 2, 1)}, ValueError, "g must"),
        ({"s": torch.zeros(1, 5, 1, 6)}, ValueError, "s must"), ({"s": torch.zeros(1, 5, 2, 6).half()}, TypeError, "s must"),
        ({"q": torch.zeros(1, 5, 3, 4), "k": torch.zeros(1, 5, 3, 4)}, ValueError, "v must"), ({"chunk": 24}, ValueError, "chunk must"),
        ({"S0": (torch.zeros(1, 2, 4, 6),)}, ValueError, "S0 must"), ({"cu_seqlens": torch.tensor([0, 3, 5])}, ValueError, r"S0\[0\] must"),
        ({"S0": (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 6, 3))}, ValueError, r"S0\[0\] must"),
        ({"S0": (torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 6, 3).double())}, TypeError, r"S0\[1\] must"),
        ({"S0": None, "cu_seqlens": torch.tensor([1, 3, 5])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    wrong = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in wrong.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**some(**wrong), check=True)


def test_the_operator_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    compiled = torch.compile(lambda **x: fast.chunked(**x), fullgraph=True, backend="aot_eager")
    (o, state), (expected, after) = compiled(**some(19)), fast.chunked(**some(19))
    for actual, right in zip((o, *state), (expected, *after), strict=True):
        exactly(actual, right, "compiled")


def test_the_operator_is_well_formed(fast):
    """Schema, fake tensors and autograd registration, as PyTorch's own check sees them."""
    shapes = {"q": (1, 17, 2, 4), "k": (1, 17, 2, 6), "v": (1, 17, 2, 4), "g": (1, 17, 2, 6), "S0": (1, 2, 6, 4)}
    tensors = [-torch.ones(shape, device=inputs.target.device(), requires_grad=True) for shape in shapes.values()]
    torch.library.opcheck(torch.ops.twofold.transposed_recurrence.default, (*tensors, None, 16, False))
