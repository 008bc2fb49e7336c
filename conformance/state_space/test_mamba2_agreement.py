"""Mamba-2's recurrence on real values, within derived bounds; gradients, packing, heads and groups; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import gla, simple_gla
from twofold.spec.state_space import mamba2

NAMES = ("dx", "ddelta", "dA", "dB", "dC", "dD", "dS0")
RATES = {"slow": 0.125, "fast": 2.0, "at once": 40.0}


def real(seed, rate, T, N, P, dtype):
    """x, delta, A, B, C, D, S0, d outputs, d final state."""
    shapes = (T, P), (T, N), (T, N), (T, P)
    x, B, C, do = (inputs.rounded(a / 4, dtype) for a in inputs.values("normal", shapes, seed, dtype))
    rng = np.random.default_rng(seed)
    delta, S0, dS = (inputs.rounded(a, "float32") for a in (np.exp2(rng.uniform(-6, 1, T)), *rng.standard_normal((2, N, P))))
    return x, delta, np.array(-RATES[rate]), B, C, np.array(0.5), S0, do, dS


def tensors(x, delta, A, B, C, D, S0, dtype):
    rows = {"x": (x[None, :, None], dtype), "delta": (delta[None, :, None], "float32"), "A": (A[None], "float32")}
    rows |= {"B": (B[None, :, None], dtype), "C": (C[None, :, None], dtype), "D": (D[None], "float32"), "S0": (S0[None, None], "float32")}
    return [inputs.tensor(*row).requires_grad_() for row in rows.values()]


def on_the_core(x, delta, A, B, C, D, S0, dtype):
    """Chunk after chunk on the core, whose outputs are stored in the format of x before the input is added."""
    y, state = simple_gla.chunked(C, B, delta[:, None] * x, delta * A, S0, 16)
    return y.rounded_to(dtype) + D * x, state


def adjoint(x, delta, A, B, C, D, S0, do, dS):
    """From that of the core, by the chain rule through delta x and delta A."""
    spread = np.repeat((delta * A)[:, None], B.shape[1], axis=1)
    dC, dB, dv, dg, dS0 = gla.backward(C, B, delta[:, None] * x, spread, do, dS, S0)
    dg = np.sum(dg, axis=1)
    ddelta = np.sum(dv * x, axis=1) + A * dg
    return delta[:, None] * dv + D * do, ddelta, np.sum(delta * dg), dB, dC, np.sum(do * x), dS0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@few
@given(inputs.seeds, st.sampled_from(sorted(RATES)), st.sampled_from([1, 17, 35]))
@example(0, "slow", 35)
def test_outputs_and_states_agree_with_the_definition(fast, dtype, seed, rate, T):
    """Three chunks among the lengths; products of float32 may be three tf32 products, those of 16 bits take rounded operands."""
    *arguments, _, _ = real(seed, rate, T, 20, 7, dtype)
    contract = Precision(dtype, operand="tf32x3" if dtype == "float32" else None)
    with torch.no_grad():
        y, state = fast.chunked(*tensors(*arguments, dtype), 16)
    expected = bounded(on_the_core, *arguments, dtype, precision=contract, outputs=(dtype, "float32"))
    for actual, bound, value, what in zip(
        (y[0, :, 0], state[0, 0]), expected, mamba2.recurrent(*arguments), ("output", "final state"), strict=True
    ):
        bound.value = value
        agree(actual, bound, what)


@few
@given(inputs.seeds, st.sampled_from(["slow", "fast"]), st.sampled_from([1, 17, 35]))
def test_gradients_agree_with_the_adjoint(fast, seed, rate, T):
    """Of everything: inputs, steps, rate, keys, queries, skip and state; also from the gradient of the final state."""
    *arguments, do, dS = real(seed, rate, T, 20, 7, "float32")
    given_ = tensors(*arguments, "float32")
    upstream = inputs.tensor(do[None, :, None], "float32"), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad(fast.chunked(*given_, 32), given_, upstream)
    contract = Precision("float32", operand="tf32x3")
    expected = bounded(adjoint, *arguments, do, dS, precision=contract)
    for name, actual, bound in zip(NAMES, gradients, expected, strict=True):
        agree(actual.reshape(bound.shape), bound, name)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=4))
@example(0, [19, 0, 5, 19])
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths):
    """Four heads on two groups; sequences whose boundaries lie inside chunks begin with their own states, and sums of steps with them."""
    rng, T, H, G, N, P = np.random.default_rng(seed), sum(lengths), 4, 2, 5, 3
    x, delta = rng.integers(-2, 3, (T, H, P)).astype(float), rng.choice([0.0, 1.0, 2.0], (T, H))
    B, C = rng.integers(-1, 2, (2, T, G, N)).astype(float)
    A, D, S0 = np.array([0.0, -1e30, 0.0, -1e30]), np.arange(4.0), rng.integers(-2, 3, (len(lengths), H, N, P)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    given_ = [inputs.tensor(a, "float32") for a in (x[None], delta[None], A, B[None], C[None], D, S0)]
    y, states = fast.chunked(*given_, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), H):
        here, g = slice(edges[n], edges[n + 1]), h // 2
        output, state = mamba2.recurrent(x[here, h], delta[here, h], A[h], B[here, g], C[here, g], D[h], S0[n, h])
        exactly(y[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(states[n, h], state, f"final state of sequence {n}, head {h}")


@few
@given(inputs.seeds)
def test_rows_of_a_batch_do_not_meet(fast, seed):
    """Nor do all forms differ between batches and single rows; rates and skips belong to heads, not to rows."""
    rng = np.random.default_rng(seed)
    x, delta = rng.integers(-2, 3, (3, 19, 2, 3)).astype(float), rng.choice([0.0, 1.0, 2.0], (3, 19, 2))
    B, C = rng.integers(-1, 2, (2, 3, 19, 1, 5)).astype(float)
    A, D, S0 = np.array([0.0, -1e30]), np.array([1.0, 2.0]), rng.integers(-2, 3, (3, 2, 5, 3)).astype(float)
    given_ = [inputs.tensor(a, "float32") for a in (x, delta, A, B, C, D, S0)]
    for form in (fast.chunked, fast.recurrent, fast.parallel):
        y, states = form(*given_)
        for b, h in np.ndindex(3, 2):
            output, state = mamba2.recurrent(x[b, :, h], delta[b, :, h], A[h], B[b, :, 0], C[b, :, 0], D[h], S0[b, h])
            exactly(y[b, :, h], output, f"outputs of row {b}, head {h}")
            exactly(states[b, h], state, f"final state of row {b}, head {h}")


def some(**changes):
    shapes = {"x": (1, 5, 2, 3), "delta": (1, 5, 2), "A": (2,), "B": (1, 5, 1, 4), "C": (1, 5, 1, 4), "D": (2,), "S0": (1, 2, 4, 3)}
    arguments = {name: torch.ones(shape) * (-1 if name == "A" else 1) for name, shape in shapes.items()} | changes
    return {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"A": torch.ones(2)}, ValueError, "g must hold log-decays"),
        ({"A": -torch.ones(3)}, ValueError, "A must"),
        ({"D": torch.ones(3)}, ValueError, "D must"),
        ({"delta": torch.ones(1, 5, 3)}, ValueError, "delta must"),
        ({"delta": torch.ones(1, 5, 2, dtype=torch.float16)}, TypeError, "delta must"),
        ({"B": torch.ones(1, 5, 1, 3)}, ValueError, "C must"),
        ({"B": torch.ones(1, 5, 3, 4), "C": torch.ones(1, 5, 3, 4)}, ValueError, "B must have a number of groups that divides"),
        ({"C": torch.ones(1, 5, 1, 4, dtype=torch.float16)}, TypeError, "C must"),
        ({"S0": torch.ones(1, 2, 3, 4)}, ValueError, "S0 must"),
        ({"chunk": 24}, ValueError, "chunk must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    with pytest.raises(error, match=message):
        fast.chunked(**some(**wrong), check=True)


def test_it_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    compiled = torch.compile(lambda **x: fast.chunked(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**some()), fast.chunked(**some()), strict=True):
        exactly(actual, expected, "compiled")
