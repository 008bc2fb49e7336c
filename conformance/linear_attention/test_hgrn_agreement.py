"""HGRN on real values, within derived bounds, and what belongs to the fast side alone: packing, rows, layouts, gradients, offsets."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.kernels import channel_scan
from twofold.spec.linear_attention import hgrn

GATES = {  # log-decays: forgetting slowly, at once, and both side by side in time and over channels
    "mild": lambda rng, shape: -np.abs(rng.standard_normal(shape)) / 8,
    "wild": lambda rng, shape: -2 * np.abs(rng.standard_normal(shape)),
    "strong": lambda rng, shape: np.full(shape, -30.0),
    "mixed": lambda rng, shape: np.where(rng.random(shape) < 0.5, -1e-6, -20.0),
}
gates = st.sampled_from(sorted(GATES))
lengths, widths = st.sampled_from([1, 17, 35]), st.sampled_from([5, 128, 131])
levels = st.sampled_from([64, 16])  # tokens per chunk: one level, two levels


def real(regime, gates, seed, T, D, dtype):
    """x, d outputs; g, S0, d final state: scaled by powers of two so that float16 holds every sum."""
    x, do = (inputs.rounded(x / 16, dtype) for x in inputs.values(regime, [(T, D), (T, D)], seed, dtype))
    rng = np.random.default_rng(seed)
    g = inputs.rounded(GATES[gates](rng, (T, D)), "float32")
    S0, dS = (inputs.rounded(x, "float32") for x in rng.standard_normal((2, D)))
    return x, g, S0, do, dS


def whole(rng, T, D):
    """The same of small integers and log-decays of 0 and -inf: every order of summing them gives the same bits, in every format."""
    x, do = rng.integers(-1, 2, (2, T, D)).astype(float)
    S0, dS = rng.integers(-2, 3, (2, D)).astype(float)
    return x, np.where(rng.random((T, D)) < 0.1, -np.inf, 0.0), S0, do, dS


def tensors(x, g, S0, dtype="float32", layout="contiguous"):
    """One sequence."""
    return inputs.tensor(x[None], dtype, layout), inputs.tensor(g[None], "float32", layout), inputs.tensor(S0[None], "float32")


@few
@given(inputs.regimes, gates, inputs.seeds, inputs.dtypes(), inputs.layouts, lengths, widths, levels)
def test_outputs_and_final_state_agree_with_the_definition(fast, regime, gates, seed, dtype, layout, T, D, chunk):
    """The value is the recurrence's; the bound that of the same order of operations: token by token, or in two levels."""
    x, g, S0, *_ = real(regime, gates, seed, T, D, dtype)
    o, state = fast.scan(*tensors(x, g, S0, dtype, layout), chunk)
    text = hgrn.recurrent if chunk >= T else lambda *given: hgrn.scan(*given, chunk)
    expected = bounded(text, x, g, S0, precision=Precision(dtype), outputs=(dtype, "float32"))
    for actual, bound, value, what in zip((o[0], state[0]), expected, hgrn.recurrent(x, g, S0), ("output", "final state"), strict=True):
        bound.value = value
        agree(actual, bound, what)


@few
@given(inputs.regimes, gates, inputs.seeds, inputs.dtypes(), lengths, widths)
def test_gradients_agree_with_the_adjoint(fast, regime, gates, seed, dtype, T, D):
    x, g, S0, do, dS = real(regime, gates, seed, T, D, dtype)
    leaves = [y.requires_grad_() for y in tensors(x, g, S0, dtype)]
    gradients = torch.autograd.grad(fast.scan(*leaves, 64), leaves, (inputs.tensor(do[None], dtype), inputs.tensor(dS[None], "float32")))
    expected = bounded(hgrn.backward, x, g, do, dS, S0, precision=Precision(dtype), outputs=(dtype, "float32", "float32"))
    for actual, bound, what in zip(gradients, expected, ("dx", "dg", "dS0"), strict=True):
        agree(actual[0], bound, what)


@few
@given(inputs.seeds, st.sampled_from([1, 16, 35]), inputs.dtypes(), levels)
def test_gradients_are_exact_on_integers(fast, seed, T, dtype, chunk):
    x, g, S0, do, dS = whole(np.random.default_rng(seed), T, 5)
    leaves = [y.requires_grad_() for y in tensors(x, g, S0, dtype)]
    upstream = inputs.tensor(do[None], dtype), inputs.tensor(dS[None], "float32")
    gradients = torch.autograd.grad(fast.scan(*leaves, chunk), leaves, upstream)
    for actual, value, what in zip(gradients, hgrn.backward(x, g, do, dS, S0), ("dx", "dg", "dS0"), strict=True):
        exactly(actual[0], value, what)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 16, 19, 35]), min_size=1, max_size=4), levels, st.sampled_from(["int32", "int64"]))
@example(0, [5, 0, 35, 1], 16, "int32")
@example(0, [35, 0], 16, "int64")
def test_packed_sequences_are_sequences(fast, seed, lengths, chunk, edge_type):
    """Boundaries inside a chunk, empty sequences that return their own state, gradients: each sequence as if alone."""
    rng = np.random.default_rng(seed)
    parts = [whole(rng, T, 130) for T in lengths]
    x, g, do = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 3))
    S0, dS = (np.stack([part[i] for part in parts]) for i in (2, 4))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    leaves = [inputs.tensor(y, "float32").requires_grad_() for y in (x[None], g[None], S0)]
    o, states = fast.scan(*leaves, chunk, cu_seqlens=inputs.tensor(edges, edge_type))
    gradients = torch.autograd.grad((o, states), leaves, (inputs.tensor(do[None], "float32"), inputs.tensor(dS, "float32")))
    for n, (x, g, S0, do, dS) in enumerate(parts):
        here = slice(edges[n], edges[n + 1])
        output, state = hgrn.recurrent(x, g, S0)
        exactly(o[0, here], output, f"outputs of sequence {n} of lengths {lengths}")
        exactly(states[n], state, f"final state of sequence {n} of lengths {lengths}")
        actual = gradients[0][0, here], gradients[1][0, here], gradients[2][n]
        for one, two, what in zip(actual, hgrn.backward(x, g, do, dS, S0), ("dx", "dg", "dS0"), strict=True):
            exactly(one, two, f"{what} of sequence {n} of lengths {lengths}")


@few
@given(inputs.seeds, inputs.layouts, levels)
def test_rows_do_not_meet(fast, seed, layout, chunk):
    """Three sequences side by side, however they lie in memory: each as if alone, gradients too."""
    rng = np.random.default_rng(seed)
    rows = [whole(rng, 19, 5) for _ in range(3)]
    x, g, S0, do, dS = (np.stack(column) for column in zip(*rows))
    leaves = [inputs.tensor(y, "float32", how).requires_grad_() for y, how in ((x, layout), (g, layout), (S0, "contiguous"))]
    upstream = inputs.tensor(do, "float32", layout), inputs.tensor(dS, "float32")
    o, states = fast.scan(*leaves, chunk)
    gradients = torch.autograd.grad((o, states), leaves, upstream)
    for n, (x, g, S0, do, dS) in enumerate(rows):
        expected = *hgrn.recurrent(x, g, S0), *hgrn.backward(x, g, do, dS, S0)
        for one, two, what in zip((o, states, *gradients), expected, ("outputs", "final state", "dx", "dg", "dS0"), strict=True):
            exactly(one[n], two, f"{what} of row {n}")


@pytest.mark.skipif(inputs.target.device() != "cpu", reason="sparse tensors lie on the CPU")
@pytest.mark.parametrize("axis", [0, 1])
def test_tokens_and_rows_may_lie_far_apart(fast, axis):
    """Offsets beyond 2**31 elements: what the small tensors give."""
    x, g, S0, *_ = (np.stack(column) for column in zip(*(whole(np.random.default_rng(n), 3, 5) for n in range(3))))
    arguments = [inputs.tensor(y, "float32") for y in (x, g, S0)]
    for chunk in (64, 1):
        expected = fast.scan(*arguments, chunk)
        far = fast.scan(far_apart(arguments[0], axis), far_apart(arguments[1], axis), arguments[2], chunk)
        for one, two, what in zip(far, expected, ("outputs", "final states"), strict=True):
            exactly(one, two, what)


def test_the_last_output_is_the_final_state(fast):
    """To the bit, at one level and at two."""
    x, g, S0, *_ = real("normal", "mild", 0, 35, 5, "float32")
    for chunk in (None, 64, 16):
        o, state = fast.scan(*tensors(x, g, S0), chunk)
        exactly(o[0, -1], state[0], f"last output in chunks of {chunk}")


@pytest.mark.parametrize(
    "B, T, N, D", [(1, 0, 1, 8), (1, 50, 1, 8), (1, 2**20, 1, 64), (4, 4096, 4, 2048), (512, 8192, 512, 4096), (1, 2**16, 300, 640)]
)
def test_sequences_are_cut_until_they_fill_a_gpu(B, T, N, D):
    """Into powers of two, no farther than needed and no shorter than the least chunk."""
    chunk = channel_scan.chunk_of(B * T, T, N, D)
    programs = lambda chunk: max(N, B * T // chunk) * -(-D // channel_scan.TILE)
    assert chunk >= channel_scan.LEAST and chunk & (chunk - 1) == 0
    assert programs(chunk) >= channel_scan.PROGRAMS or chunk == channel_scan.LEAST
    assert programs(2 * chunk) < channel_scan.PROGRAMS or chunk >= T


def some(T=5, **changes):
    shapes = {"x": (1, T, 4), "g": (1, T, 4), "S0": (1, 4)}
    return {name: -torch.ones(shape, device=inputs.target.device()) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"g": torch.full((1, 5, 4), 0.5)}, ValueError, "g must"),
        ({"g": torch.zeros(1, 5, 3)}, ValueError, "g must"),
        ({"g": torch.zeros(1, 5, 4, dtype=torch.float16)}, TypeError, "g must"),
        ({"x": torch.zeros(1, 5, 1, 4)}, ValueError, "x must"),
        ({"x": torch.zeros(1, 5, 4, dtype=torch.int32)}, TypeError, "x must"),
        ({"S0": torch.zeros(1, 3)}, ValueError, "S0 must"),
        ({"S0": torch.zeros(1, 4, dtype=torch.float16)}, TypeError, "S0 must"),
        ({"chunk": 0}, ValueError, "chunk must"),
        ({"cu_seqlens": torch.tensor([0, 3, 5])}, ValueError, "S0 must"),
        ({"S0": None, "cu_seqlens": torch.tensor([1, 3, 5])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 3, 2, 5])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
        ({"x": torch.zeros(2, 5, 4), "g": torch.zeros(2, 5, 4), "cu_seqlens": torch.tensor([0, 5])}, ValueError, "cu_seqlens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    wrong = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in wrong.items()}
    with pytest.raises(error, match=message):
        fast.scan(**some(**wrong), check=True)


@pytest.mark.parametrize("lb", [torch.ones(4), -torch.ones(4)])
def test_bad_bounds_are_named(fast, lb):
    with pytest.raises(ValueError, match="lb must"):
        fast.log_forget(torch.zeros(2, 4), lb)


def test_the_operator_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    arguments = some(19)
    compiled = torch.compile(lambda **x: fast.scan(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**arguments), fast.scan(**arguments), strict=True):
        exactly(actual, expected, "compiled")


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_operator_is_well_formed(fast, chunk):
    """Schema, fake tensors and autograd registration, as PyTorch's own check sees them."""
    tensors = [x.requires_grad_() for x in some(17).values()]
    torch.library.opcheck(torch.ops.twofold.channel_scan_forward.default, (*tensors, None, chunk, False))
