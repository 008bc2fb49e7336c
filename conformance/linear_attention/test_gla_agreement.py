"""Gated linear attention on real values, within derived bounds, and what belongs to the fast side alone: packing, heads, gradients."""

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
from twofold.spec.linear_attention import affine, gla

GATES = {  # log-decays: forgetting slowly, at once, and both side by side in time and over channels
    "mild": lambda rng, shape: -np.abs(rng.standard_normal(shape)) / 8,
    "wild": lambda rng, shape: -2 * np.abs(rng.standard_normal(shape)),
    "strong": lambda rng, shape: np.full(shape, -30.0),
    "mixed": lambda rng, shape: np.where(rng.random(shape) < 0.5, -1e-6, -20.0),
}
gates = st.sampled_from(sorted(GATES))
lengths, sizes = st.sampled_from([1, 17, 35]), st.sampled_from([(5, 3), (40, 16)])
NAMES = ("q", "k", "v", "g")


def contract(dtype):
    """float32 products may be three tf32 products; 16-bit ones take operands that were computed in 16 bits."""
    return Precision(dtype, operand="tf32x3" if dtype == "float32" else None)


def tokens_of(regime, gates, seed, T, K, V, dtype):
    """q, k, v, d outputs; g, S0, d final state: scaled by powers of two so that float16 holds every sum."""
    shapes = [(T, K), (T, K), (T, V), (T, V)]
    scaled = zip(inputs.values(regime, shapes, seed, dtype), (1 / 4, 1 / 4, 1 / 16, 1 / 16), strict=True)
    rng = np.random.default_rng(seed)
    g = inputs.rounded(GATES[gates](rng, (T, K)), "float32")
    S0, dS = (inputs.rounded(x, "float32") for x in rng.standard_normal((2, K, V)))
    return *(inputs.rounded(x * scale, dtype) for x, scale in scaled), g, S0, dS


def tensors(tokens, S0, dtype, layout="contiguous"):
    rows = [inputs.tensor(x[None, :, None], "float32" if i == 3 else dtype, layout) for i, x in enumerate(tokens)]
    return *rows, inputs.tensor(S0[None, None], "float32")


@few
@given(inputs.regimes, gates, inputs.seeds, inputs.dtypes(), inputs.layouts, lengths, sizes)
def test_outputs_and_final_state_agree_with_the_definition(fast, regime, gates, seed, dtype, layout, T, sizes):
    """The value is the recurrence's; the bound is that of the chunked text, which rounds where the implementation may."""
    q, k, v, _, g, S0, _ = tokens_of(regime, gates, seed, T, *sizes, dtype)
    with torch.no_grad():
        o, state = fast.chunked(*tensors((q, k, v, g), S0, dtype, layout), chunk=32)
    expected = bounded(gla.chunked, q, k, v, g, S0, 32, 16, precision=contract(dtype), outputs=(dtype, "float32"))
    values = gla.recurrent(q, k, v, g, S0)
    for actual, bound, value, what in zip((o[0, :, 0], state[0, 0]), expected, values, ("output", "final state"), strict=True):
        bound.value = value
        agree(actual, bound, what)


@few
@given(inputs.regimes, gates, inputs.seeds, lengths, sizes)
def test_gradients_agree_with_the_adjoint(fast, regime, gates, seed, T, sizes):
    q, k, v, do, g, S0, dS = tokens_of(regime, gates, seed, T, *sizes, "float32")
    given = [x.requires_grad_() for x in tensors((q, k, v, g), S0, "float32")]
    upstream = inputs.tensor(do[None, :, None], "float32"), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad(fast.chunked(*given, chunk=32), given, upstream)
    expected = bounded(gla.backward, q, k, v, g, do, dS, S0, precision=contract("float32"))
    for actual, bound, what in zip(gradients, expected, ("dq", "dk", "dv", "dg", "dS0"), strict=True):
        agree(actual[0, 0] if what == "dS0" else actual[0, :, 0], bound, what)


def adjoint_in_chunks(q, k, v, g, do, dS, S0, chunk):
    """The spec's adjoint of one chunk after the other, last chunk first, each from the state at its start."""
    pieces, states, rows = [slice(t, t + chunk) for t in range(0, len(q), chunk)], [S0], []
    for piece in pieces:
        states.append(gla.chunked(q[piece], k[piece], v[piece], g[piece], states[-1], chunk)[1])
    for piece, state in zip(reversed(pieces), reversed(states[:-1]), strict=True):
        *gradients, dS = gla.backward(q[piece], k[piece], v[piece], g[piece], do[piece], dS, state)
        rows.append(gradients)
    return *(np.concatenate(x) for x in zip(*reversed(rows), strict=True)), dS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@few
@given(inputs.regimes, gates, inputs.seeds, lengths, sizes)
def test_gradients_agree_in_every_format(fast, dtype, regime, gates, seed, T, sizes):
    """Chunks of one sub-chunk: there the adjoint of each chunk rounds what an implementation rounds, decayed rows and states."""
    q, k, v, do, g, S0, dS = tokens_of(regime, gates, seed, T, *sizes, dtype)
    given = [x.requires_grad_() for x in tensors((q, k, v, g), S0, dtype)]
    upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad(fast.chunked(*given, chunk=16), given, upstream)
    formats = dtype, dtype, dtype, "float32", "float32"
    expected = bounded(adjoint_in_chunks, q, k, v, g, do, dS, S0, 16, precision=contract(dtype), outputs=formats)
    values = affine.backward(q, k, v, g, 0 * k, 0 * k, do, dS, S0)  # token by token: no small dg is the difference of large sums
    values = *values[:4], values[6]
    for actual, bound, value, what in zip(gradients, expected, values, ("dq", "dk", "dv", "dg", "dS0"), strict=True):
        bound.value = value
        agree(actual[0, 0] if what == "dS0" else actual[0, :, 0], bound, what)


@few
@given(inputs.seeds, st.sampled_from([1, 16, 17, 35]), st.sampled_from(["float32", "float16"]))
def test_gradients_are_exact_on_integers(fast, seed, T, dtype):
    """With small integers and factors of 0 and 1 all gradients are integers: every order of summing them gives the same bits."""
    rng = np.random.default_rng(seed)
    tokens, S0 = battery.exact_tokens(rng, T, 5, 3), rng.integers(-2, 3, (5, 3)).astype(float)
    do, dS = rng.integers(-1, 2, (T, 3)).astype(float), rng.integers(-2, 3, (5, 3)).astype(float)
    given = [x.requires_grad_() for x in tensors([tokens[name] for name in NAMES], S0, dtype)]
    upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad(fast.chunked(*given, chunk=32), given, upstream)
    expected = gla.backward(*(tokens[name] for name in NAMES), do, dS, S0)
    for actual, value, what in zip(gradients, expected, ("dq", "dk", "dv", "dg", "dS0"), strict=True):
        value = value if what in ("dg", "dS0") else inputs.rounded(value, dtype)
        exactly(actual[0, 0] if what == "dS0" else actual[0, :, 0], value, what)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 16, 19]), min_size=1, max_size=4))
def test_packed_sequences_are_sequences(fast, seed, lengths):
    """Boundaries inside a chunk, empty sequences that return their own state, gradients: each sequence as if alone."""
    rng = np.random.default_rng(seed)
    parts = [battery.exact_tokens(rng, T, 5, 3) for T in lengths]
    tokens = [np.concatenate([part[name] for part in parts]) for name in NAMES]
    S0, dS = rng.integers(-2, 3, (2, len(lengths), 1, 5, 3)).astype(float)
    do = rng.integers(-1, 2, (sum(lengths), 3)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = [inputs.tensor(x[None, :, None], "float32").requires_grad_() for x in tokens]
    first = inputs.tensor(S0, "float32").requires_grad_()
    o, states = fast.chunked(*rows, first, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    upstream = inputs.tensor(do[None, :, None], "float32"), inputs.tensor(dS, "float32")
    gradients = torch.autograd.grad([o, states], [*rows, first], upstream)
    for n, part in enumerate(parts):
        where, alone = slice(edges[n], edges[n + 1]), [part[name] for name in NAMES]
        output, state = gla.recurrent(*alone, S0[n, 0])
        exactly(o[0, where, 0], output, f"outputs of sequence {n} of lengths {lengths}")
        exactly(states[n, 0], state, f"final state of sequence {n} of lengths {lengths}")
        *expected, dS0 = gla.backward(*alone, do[where], dS[n, 0], S0[n, 0])
        exactly(gradients[4][n, 0], dS0, f"dS0 of sequence {n}")
        for name, actual, value in zip(NAMES, gradients, expected, strict=False):
            exactly(actual[0, where, 0], value, f"d{name} of sequence {n} of lengths {lengths}")


@few
@given(inputs.seeds, st.sampled_from(["vector", "scalar", "none"]))
def test_rows_and_heads_do_not_meet(fast, seed, decay):
    """Two sequences, two value heads on one query and key head: each as if alone, for every structure of the decay; gradients too."""
    rng = np.random.default_rng(seed)
    B, T, H, K, V = 2, 19, 2, 5, 3
    q, k, v, do = (rng.integers(-1, 2, shape).astype(float) for shape in ((B, T, 1, K), (B, T, 1, K), (B, T, H, V), (B, T, H, V)))
    shape = (B, T, H, K if decay == "vector" else 1)
    g = np.zeros(shape) if decay == "none" else np.where(rng.random(shape) < 0.1, -np.inf, 0.0)
    S0, dS = rng.integers(-2, 3, (2, B, H, K, V)).astype(float)
    given = [inputs.tensor(x, "float32").requires_grad_() for x in (q, k, v, S0)]
    gate = None if decay == "none" else inputs.tensor(g, "float32").requires_grad_()
    o, states = fast.chunked(*given[:3], gate, given[3], 16)
    wanted = given if gate is None else [*given, gate]
    gradients = torch.autograd.grad([o, states], wanted, (inputs.tensor(do, "float32"), inputs.tensor(dS, "float32")))
    total = np.zeros((2, B, T, 1, K))
    for b in range(B):
        for h in range(H):
            alone = q[b, :, 0], k[b, :, 0], v[b, :, h], np.broadcast_to(g[b, :, h], (T, K))
            output, state = gla.recurrent(*alone, S0[b, h])
            exactly(o[b, :, h], output, f"outputs of row {b}, head {h}")
            exactly(states[b, h], state, f"final state of row {b}, head {h}")
            dq, dk, dv, dg, dS0 = gla.backward(*alone, do[b, :, h], dS[b, h], S0[b, h])
            total[:, b, :, 0] += dq, dk
            exactly(gradients[2][b, :, h], dv, f"dv of row {b}, head {h}")
            exactly(gradients[3][b, h], dS0, f"dS0 of row {b}, head {h}")
            if gate is not None:
                exactly(gradients[4][b, :, h], dg if decay == "vector" else dg.sum(1, keepdims=True), f"dg of row {b}, head {h}")
    exactly(gradients[0], total[0], "dq, summed over the heads that share the query")
    exactly(gradients[1], total[1], "dk, summed over the heads that share the key")


def some(T=5, **changes):
    shapes = {"q": (1, T, 1, 4), "k": (1, T, 1, 4), "v": (1, T, 2, 3), "g": (1, T, 2, 4), "S0": (1, 2, 4, 3)}
    return {name: -torch.ones(shape, device=inputs.target.device()) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"g": torch.full((1, 5, 2, 4), 0.5)}, ValueError, "g must"),
        ({"g": torch.zeros(1, 5, 2, 3)}, ValueError, "g must"),
        ({"S0": torch.zeros(1, 2, 3, 4)}, ValueError, "S0 must"),
        ({"S0": torch.zeros(1, 2, 4, 3, dtype=torch.float16)}, TypeError, "S0 must"),
        ({"k": torch.zeros(1, 5, 1, 4, dtype=torch.float16)}, TypeError, "k must"),
        ({"v": torch.zeros(1, 4, 2, 3)}, ValueError, "v must"),
        ({"q": torch.zeros(1, 5, 3, 4), "k": torch.zeros(1, 5, 3, 4)}, ValueError, "v must"),
        ({"chunk": 24}, ValueError, "chunk must"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 5])}, ValueError, "must"),
        ({"S0": None, "cu_seqlens": torch.tensor([1, 3, 5])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 3, 2, 5])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    wrong = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in wrong.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**some(**wrong), check=True)


def test_the_operator_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    arguments = some(19)
    compiled = torch.compile(lambda **x: fast.chunked(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**arguments), fast.chunked(**arguments), strict=True):
        exactly(actual, expected, "compiled")


@pytest.mark.parametrize("decay", ["vector", "scalar", "none"])
def test_the_operator_is_well_formed(fast, decay):
    """Schema, fake tensors and autograd registration, as PyTorch's own check sees them."""
    arguments = some(17)
    arguments["g"] = {"vector": arguments["g"], "scalar": arguments["g"][..., :1], "none": None}[decay]
    tensors = [x if x is None else x.requires_grad_() for x in arguments.values()]
    torch.library.opcheck(torch.ops.twofold.chunk_recurrence_forward.default, (*tensors, None, 16, False, None))
