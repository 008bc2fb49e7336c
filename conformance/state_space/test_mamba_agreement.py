"""Mamba on real values, within derived bounds; packing, rows, layouts, offsets; what it refuses."""

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
from twofold.fast.kernels import selective_scan_torch
from twofold.spec.state_space import mamba

STEPS = {"short": 2.0**-6, "usual": 0.5, "long": 40.0, "mixed": None}
steps, lengths, shapes = st.sampled_from(sorted(STEPS)), st.sampled_from([1, 17, 35]), st.sampled_from([(5, 3), (33, 16), (3, 40)])
WHAT = "dx", "ddelta", "dA", "dB", "dC", "dD", "dS0"


def contract(dtype):
    """States are never rounded to the format of the inputs."""
    return Precision(dtype, operand="float32")


def real(steps, seed, T, D, N, dtype):
    """x, delta, A, B, C, D, S0; d outputs, d final state."""
    x, B, C, dy = (inputs.rounded(y / 4, dtype) for y in inputs.values("normal", [(T, D), (T, N), (T, N), (T, D)], seed, dtype))
    rng = np.random.default_rng(seed)
    scale = np.where(rng.random((T, D)) < 0.5, 2.0**-10, 20.0) if STEPS[steps] is None else STEPS[steps]
    others = scale * rng.exponential(size=(T, D)), -rng.exponential(size=(D, N)), *(rng.standard_normal(n) for n in (D, (D, N), (D, N)))
    delta, A, direct, S0, dS = (inputs.rounded(y, "float32") for y in others)
    return (x, delta, A, B, C, direct, S0), dy, dS


def whole(rng, T, D, N):
    """Small integers, and rates so small that a step of 1 keeps every bit and one of 2^80 forgets everything: exact in every order."""
    length = np.where(rng.random((T, D)) < 0.1, 2.0**80, 1.0)
    x, dy = rng.integers(-2, 3, (2, T, D)).astype(float)
    B, C = rng.integers(-1, 2, (2, T, N)).astype(float)
    S0, dS = rng.integers(-2, 3, (2, D, N)).astype(float)
    return (x / length, length, np.full((D, N), -(2.0**-70)), B, C, np.zeros(D), S0), dy, dS


def tensors(x, delta, A, B, C, D, S0, dtype="float32", layout="contiguous"):
    """One sequence."""
    x, B, C = (inputs.tensor(y[None], dtype, layout) for y in (x, B, C))
    A, D, S0 = (inputs.tensor(y, "float32") for y in (A, D, S0[None]))
    return x, inputs.tensor(delta[None], "float32", layout), A, B, C, D, S0


@few
@given(steps, inputs.seeds, inputs.dtypes(), inputs.layouts, lengths, shapes, st.sampled_from([64, 16]))
@example("mixed", 0, "float32", "contiguous", 35, (33, 16), 16)
def test_outputs_and_states_agree_with_the_definition(fast, steps, seed, dtype, layout, T, shape, chunk):
    """The value is the recurrence's; the bound that of the same order of operations: token by token, or in two levels."""
    given, *_ = real(steps, seed, T, *shape, dtype)
    y, state = fast.scan(*tensors(*given, dtype, layout), chunk)
    text = mamba.recurrent if chunk >= T else lambda *given: mamba.scan(*given, chunk)
    expected = bounded(text, *given, precision=contract(dtype), outputs=(dtype, "float32"))
    for actual, bound, value, what in zip((y[0], state[0]), expected, mamba.recurrent(*given), ("output", "final state"), strict=True):
        bound.value = value
        agree(actual, bound, what)


@few
@given(steps, inputs.seeds, inputs.dtypes(), lengths, shapes)
@example("mixed", 0, "float32", 35, (33, 16))
def test_gradients_agree_with_the_adjoint(fast, steps, seed, dtype, T, shape):
    given, dy, dS = real(steps, seed, T, *shape, dtype)
    leaves = [y.requires_grad_() for y in tensors(*given, dtype)]
    gradients = torch.autograd.grad(fast.scan(*leaves, 64), leaves, (inputs.tensor(dy[None], dtype), inputs.tensor(dS[None], "float32")))
    formats = dtype, "float32", "float32", dtype, dtype, "float32", "float32"
    *arguments, S0 = given
    expected = bounded(mamba.backward, *arguments, dy, dS, S0, precision=contract(dtype), outputs=formats)
    for actual, bound, what in zip(gradients, expected, WHAT, strict=True):
        agree(actual.reshape(bound.shape), bound, what)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 16, 19, 35]), min_size=1, max_size=4), st.sampled_from([64, 16]))
@example(0, [5, 0, 35, 1], 16)
@example(0, [35, 0], 16)
def test_packed_sequences_are_sequences(fast, seed, lengths, chunk):
    """Boundaries inside a chunk, empty sequences that return their own state, gradients: each sequence as if alone."""
    rng = np.random.default_rng(seed)
    parts, edges = [whole(rng, T, 34, 3) for T in lengths], np.concatenate([[0], np.cumsum(lengths)])
    x, delta, B, C = (np.concatenate([given[i] for given, *_ in parts])[None] for i in (0, 1, 3, 4))
    S0, dS = np.stack([given[6] for given, *_ in parts]), np.stack([dS for *_, dS in parts])
    dy = np.concatenate([dy for _, dy, _ in parts])[None]
    _, _, A, _, _, D, _ = parts[0][0]
    leaves = [inputs.tensor(y, "float32").requires_grad_() for y in (x, delta, A, B, C, D, S0)]
    y, states = fast.scan(*leaves, chunk, cu_seqlens=inputs.tensor(edges, "int32"))
    gradients = dict(zip(WHAT, torch.autograd.grad((y, states), leaves, (inputs.tensor(dy, "float32"), inputs.tensor(dS, "float32")))))
    rates = np.zeros_like(A)
    for n, (arguments, dy, dS) in enumerate(parts):
        here, (output, state) = slice(edges[n], edges[n + 1]), mamba.recurrent(*arguments)
        expected = dict(zip(WHAT, mamba.backward(*arguments[:6], dy, dS, arguments[6])))
        exactly(y[0, here], output, f"outputs of sequence {n} of lengths {lengths}")
        exactly(states[n], state, f"final state of sequence {n} of lengths {lengths}")
        exactly(gradients["dS0"][n], expected["dS0"], f"dS0 of sequence {n} of lengths {lengths}")
        for what in ("dx", "ddelta", "dB", "dC"):
            exactly(gradients[what][0, here], expected[what], f"{what} of sequence {n} of lengths {lengths}")
        rates += expected["dA"]
    exactly(gradients["dA"], rates, f"dA of sequences of lengths {lengths}, summed")


@few
@given(inputs.seeds, inputs.layouts, st.sampled_from([64, 16]))
def test_rows_do_not_meet(fast, seed, layout, chunk):
    """Two sequences side by side, however they lie in memory: each as if alone, gradients too."""
    rng = np.random.default_rng(seed)
    rows = [whole(rng, 19, 5, 3) for _ in range(2)]
    x, delta, B, C, S0 = (np.stack([given[i] for given, *_ in rows]) for i in (0, 1, 3, 4, 6))
    dy, dS = (np.stack([row[i] for row in rows]) for i in (1, 2))
    _, _, A, _, _, D, _ = rows[0][0]
    laid = {"x": layout, "delta": layout, "B": layout, "C": layout}
    arrays = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "S0": S0}
    leaves = [inputs.tensor(y, "float32", laid.get(name, "contiguous")).requires_grad_() for name, y in arrays.items()]
    y, states = fast.scan(*leaves, chunk)
    upstream = inputs.tensor(dy, "float32", layout), inputs.tensor(dS, "float32")
    gradients = dict(zip(WHAT, torch.autograd.grad((y, states), leaves, upstream)))
    for n, (arguments, dy, dS) in enumerate(rows):
        output, state = mamba.recurrent(*arguments)
        exactly(y[n], output, f"outputs of row {n}")
        exactly(states[n], state, f"final state of row {n}")
        expected = dict(zip(WHAT, mamba.backward(*arguments[:6], dy, dS, arguments[6])))
        for what in ("dx", "ddelta", "dB", "dC", "dS0"):
            exactly(gradients[what][n], expected[what], f"{what} of row {n}")


def test_channels_in_pieces_are_channels_at_once(fast, monkeypatch):
    """The twin takes as many channels at a time as fit a limit: two, with a limit this low."""
    arguments, dy, dS = whole(np.random.default_rng(0), 9, 5, 3)
    monkeypatch.setattr(selective_scan_torch, "MOST", 2 * 9 * 3)
    leaves = [y.requires_grad_() for y in tensors(*arguments)]
    results = fast.scan(*leaves)
    gradients = torch.autograd.grad(results, leaves, (inputs.tensor(dy[None], "float32"), inputs.tensor(dS[None], "float32")))
    expected = *mamba.recurrent(*arguments), *mamba.backward(*arguments[:6], dy, dS, arguments[6])
    for actual, value, what in zip((*results, *gradients), expected, ("outputs", "states", *WHAT), strict=True):
        if what != "dD":  # a sum of what is small and what is 2^-80 as large
            exactly(actual.reshape(value.shape), value, what)


@pytest.mark.skipif(inputs.target.device() != "cpu", reason="sparse tensors lie on the CPU")
@pytest.mark.parametrize("axis", [0, 1])
def test_tokens_and_rows_may_lie_far_apart(fast, axis):
    """Offsets beyond 2**31 elements: what the small tensors give."""
    given = real("usual", 0, 9, 5, 3, "float32")[0]
    x, delta, A, B, C, D, S0 = tensors(*given)
    rows = [y[0].unflatten(0, (3, 3)).contiguous() for y in (x, delta, B, C)]
    for chunk in (64, 1):
        run = lambda x, delta, B, C: fast.scan(x, delta, A, B, C, D, S0.expand(3, -1, -1), chunk)  # noqa: B023
        for one, two, what in zip(run(*(far_apart(y, axis) for y in rows)), run(*rows), ("outputs", "states"), strict=True):
            exactly(one, two, what)


def some(T=5, **changes):
    shapes = {"x": (1, T, 4), "delta": (1, T, 4), "A": (4, 3), "B": (1, T, 3), "C": (1, T, 3), "D": (4,), "S0": (1, 4, 3)}
    values = {name: torch.ones(shape, device=inputs.target.device()) for name, shape in shapes.items()}
    return values | {"A": -values["A"]} | changes


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"delta": -torch.ones(1, 5, 4)}, ValueError, "delta must"),
        ({"A": torch.ones(4, 3)}, ValueError, "A must"),
        ({"A": -torch.ones(3, 4)}, ValueError, "A must"),
        ({"B": torch.ones(1, 5, 2)}, ValueError, "B must"),
        ({"C": torch.ones(1, 4, 3)}, ValueError, "C must"),
        ({"C": torch.ones(1, 5, 3, dtype=torch.float16)}, TypeError, "C must"),
        ({"D": torch.ones(3)}, ValueError, "D must"),
        ({"S0": torch.ones(1, 3, 4)}, ValueError, "S0 must"),
        ({"S0": torch.ones(1, 4, 3, dtype=torch.float16)}, TypeError, "S0 must"),
        ({"chunk": 0}, ValueError, "chunk must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    wrong = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in wrong.items()}
    with pytest.raises(error, match=message):
        fast.scan(**some(**wrong), check=True)


def test_the_operator_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    arguments = some(19)
    compiled = torch.compile(lambda **x: fast.scan(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**arguments), fast.scan(**arguments), strict=True):
        exactly(actual, expected, "compiled")


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_operator_is_well_formed(fast, chunk):
    """Schema, fake tensors and autograd registration, as PyTorch's own check sees them."""
    tensors = [x.requires_grad_() for x in some(9).values()]
    torch.library.opcheck(torch.ops.twofold.selective_scan_forward.default, (*tensors, None, chunk, False))
