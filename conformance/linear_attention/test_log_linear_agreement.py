"""Log-linear attention on real values, within derived bounds; gradients, packing, rows at different places; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_log_linear import LEVELS, apart, exact_tokens, state_of
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import log_linear

NAMES = ("q", "k", "v", "g", "lam")
GATES = {"mild": -0.1, "wild": -2.0, "strong": -30.0}


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 17, 70]), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_outputs_and_states_agree_with_the_definition(fast, seed, gates, T, dtype):
    """In chunks, from the state that 21 tokens have left. Operands of products stay in float32, whatever the inputs are."""
    rng, K, V, at = np.random.default_rng(seed), 20, 7, 21
    q, k, v, lam = (x / 4 for x in inputs.values("normal", [(T, K), (T, K), (T, V), (T, LEVELS)], seed, dtype))
    g = inputs.rounded(GATES[gates] * np.abs(rng.standard_normal(T)), "float32")
    S, _ = log_linear.recurrent(*(rng.standard_normal((at, n)) for n in (K, K, V)), np.zeros(at), np.ones((at, LEVELS)))[1]
    S = inputs.rounded(S, "float32")
    rows = [inputs.tensor(x[None, :, None], "float32" if x is g else dtype) for x in (q, k, v, g, lam)]
    o, (state, seen) = fast.chunked(*rows, (inputs.tensor(S[None, None], "float32"), inputs.tensor(np.array([at]))), 32)
    form = lambda *x: (lambda o, state: (o, state[0]))(*log_linear.chunked(*x[:5], (x[5], at), 32))
    expected = bounded(form, q, k, v, g, lam, S, precision=Precision(dtype, operand="float32"), outputs=(dtype, "float32"))
    output, after = log_linear.recurrent(q, k, v, g, lam, (S, at))
    for actual, bound, value, what in zip((o[0, :, 0], state[0, 0]), expected, (output, after[0]), ("output", "states"), strict=True):
        bound.value = value
        agree(actual, bound, what)
    assert seen.tolist() == [at + T]


def test_gradients_reach_everything(fast):
    """By finite differences in float64, from the state of five tokens, over more than one chunk; a shut gate gives no NaN."""
    rng = np.random.default_rng(0)
    shapes = {"q": (1, 11, 1, 3), "k": (1, 11, 1, 3), "v": (1, 11, 2, 2), "g": (1, 11, 2), "lam": (1, 11, 2, 6), "S": (1, 2, 6, 3, 2)}
    leaves = {name: inputs.tensor(rng.standard_normal(shape), "float64") for name, shape in shapes.items()}
    leaves["g"] = -leaves["g"].abs()
    tensors = [x.requires_grad_() for x in leaves.values()]
    seen = inputs.tensor(np.array([5]))
    call = lambda *x: (lambda o, state: (o, state[0]))(*fast.chunked(*x[:5], (x[5], seen), 4))
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    with torch.no_grad():
        tensors[3][0, 4] = -torch.inf
    gradients = torch.autograd.grad(sum(x.square().sum() for x in call(*tensors)), tensors)
    assert all(torch.isfinite(x).all() for x in gradients)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.booleans())
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, continued):
    """Two value heads on one query and key head; every sequence counts its own tokens."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    heads = [exact_tokens(rng, T, 5, 3) for _ in range(2)]
    rows = [np.stack([head[name] for head in (heads[:1] if name in ("q", "k") else heads)], 1)[None] for name in NAMES]
    states = [apart(state_of(rng, 5, 3), 5) for _ in lengths]
    S0 = None
    if continued:
        S0 = inputs.tensor(np.stack([[S, 2 * S] for S, _ in states]), "float32"), inputs.tensor(np.array([t for _, t in states]))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    o, (S, t) = fast.chunked(*(inputs.tensor(x, "float32") for x in rows), S0, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        alone = [heads[0 if name in ("q", "k") else h][name][here] for name in NAMES]
        start = ((1 + h) * states[n][0], states[n][1]) if continued else None
        output, (state, seen) = log_linear.recurrent(*alone, start)
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(S[n, h], state, f"states of sequence {n}, head {h}, of lengths {lengths}")
        assert int(t[n]) == seen


def test_levels_are_counted_per_sequence(fast):
    """Three are enough for four tokens, however many sequences of four are packed, and not for five."""
    shapes = {"q": (1, 9, 1, 2), "k": (1, 9, 1, 2), "v": (1, 9, 1, 2), "g": (1, 9, 1), "lam": (1, 9, 1, 3)}
    rows = [inputs.tensor(np.zeros(shape), "float32") for shape in shapes.values()]
    fast.chunked(*rows, cu_seqlens=inputs.tensor(np.array([0, 4, 8, 9])))
    with pytest.raises(ValueError, match="lam must have 4 levels for 5 tokens, not 3"):
        fast.chunked(*rows, cu_seqlens=inputs.tensor(np.array([0, 4, 9])))


@few
@given(inputs.seeds, st.sampled_from([1, 3, 19]))
def test_rows_at_different_places_do_not_meet(fast, seed, T):
    """In chunks and one token at a time: each row merges its own levels."""
    rng = np.random.default_rng(seed)
    parts, states = [exact_tokens(rng, T, 5, 3) for _ in range(3)], [apart(state_of(rng, 5, 3), 5) for _ in range(3)]
    rows = [inputs.tensor(np.stack([part[name] for part in parts])[:, :, None], "float32") for name in NAMES]
    S0 = inputs.tensor(np.stack([S for S, _ in states])[:, None], "float32"), inputs.tensor(np.array([t for _, t in states]))
    for form in (fast.chunked, fast.recurrent):
        o, (S, t) = form(*rows, S0)
        for b, part in enumerate(parts):
            output, (state, seen) = log_linear.recurrent(*part.values(), states[b])
            exactly(o[b, :, 0], output, f"outputs of row {b}")
            exactly(S[b, 0], state, f"states of row {b}")
            assert int(t[b]) == seen


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"g": torch.full((1, 5, 2), 0.5)}, ValueError, "g must"), ({"g": torch.zeros(1, 5, 1)}, ValueError, "g must"),
        ({"lam": torch.zeros(1, 5, 2, 3)}, ValueError, "lam must have 4 levels"), ({"lam": torch.zeros(1, 5, 2)}, ValueError, "lam must"),
        ({"lam": torch.zeros(1, 5, 2, 0)}, ValueError, "lam must"),
        ({"S0": (torch.zeros(1, 2, 4, 4, 3), torch.tensor([4]))}, ValueError, "lam must have 5 levels"),
        ({"S0": (torch.zeros(1, 2, 4, 4, 3),)}, ValueError, "S0 must"), ({"chunk": 0}, ValueError, "chunk must"),
        ({"S0": (torch.zeros(1, 2, 4, 3, 3), torch.tensor([1]))}, ValueError, r"S0\[0\] must"),
        ({"S0": (torch.zeros(1, 2, 4, 4, 3), torch.tensor([1.0]))}, TypeError, r"S0\[1\] must"),
        ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"), ({"q": torch.zeros(1, 5, 3, 4)}, ValueError, "k must"),
        ({"k": torch.zeros(1, 5, 1, 4).half()}, TypeError, "k must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    shapes = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "g": (1, 5, 2), "lam": (1, 5, 2, 4)}
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {name: -torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**arguments)
