"""RG-LRU on real values: bounds, gradients where the root is steep, packing, and what it refuses."""

import numpy as np
import pytest
import torch
import transformers as library
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as modeling

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import rg_lru

RATES = {  # Lambda: channels that hardly forget (1 - a² below float32's roundoff, a root steeper than 1000), usual ones, and quick ones
    "slow": lambda rng, D: rng.uniform(-22, -12, D),
    "usual": lambda rng, D: rng.uniform(-9, -4, D),
    "quick": lambda rng, D: rng.uniform(-1, 3, D),
    "mixed": lambda rng, D: rng.uniform(-20, 3, D),
}
rates, lengths = st.sampled_from(sorted(RATES)), st.sampled_from([1, 17, 35])
WHAT = "dx", "dgate_x", "dgate_a", "dLambda", "dS0"


def real(rates, seed, T, D, dtype):
    """x, gate_x, gate_a, Lambda, reset, S0; d outputs, d final state."""
    x, gate_x, gate_a, do = (inputs.rounded(y, dtype) for y in inputs.values("normal", [(T, D)] * 4, seed, dtype))
    rng = np.random.default_rng(seed)
    Lambda, S0, dS = (inputs.rounded(y, "float32") for y in (RATES[rates](rng, D), *rng.standard_normal((2, D))))
    return (x, 2 * gate_x, 2 * gate_a, Lambda, rng.random(T) < 0.1, S0), (do, dS)


def tensors(x, gate_x, gate_a, Lambda, reset, S0, dtype, layout="contiguous"):
    """One sequence."""
    rows = [inputs.tensor(y[None], dtype, layout) for y in (x, gate_x, gate_a)]
    return *rows, inputs.tensor(Lambda, "float32"), inputs.tensor(reset[None]), inputs.tensor(S0[None], "float32")


@few
@given(rates, inputs.seeds, inputs.dtypes(), inputs.layouts, lengths, st.sampled_from([64, 16]))
@example("slow", 0, "float32", "contiguous", 17, 64)
def test_outputs_and_states_agree_with_the_definition(fast, rates, seed, dtype, layout, T, chunk):
    given, _ = real(rates, seed, T, 131, dtype)
    o, state = fast.scan(*tensors(*given, dtype, layout), chunk)
    text = rg_lru.recurrent if chunk >= T else lambda *given: rg_lru.scan(*given, chunk)
    expected = bounded(text, *given, precision=Precision(dtype), outputs=(dtype, "float32"))
    for actual, bound, value, what in zip((o[0], state[0]), expected, rg_lru.recurrent(*given), ("output", "final state"), strict=True):
        bound.value = value
        agree(actual, bound, what)


@few
@given(rates, inputs.seeds, inputs.dtypes(), lengths)
@example("slow", 0, "float32", 17)
@example("usual", 0, "float32", 17)
def test_gradients_agree_with_the_adjoint(fast, rates, seed, dtype, T):
    """Of everything, through the gates; below the place where the root is too steep, with its clipped slope."""
    given, (do, dS) = real(rates, seed, T, 20, dtype)
    x, gate_x, gate_a, Lambda, reset, S0 = given
    arguments = tensors(*given, dtype)
    leaves = [y.requires_grad_() for y in arguments if y.is_floating_point()]
    o, state = fast.scan(*arguments, 64)
    gradients = torch.autograd.grad((o, state), leaves, (inputs.tensor(do[None], dtype), inputs.tensor(dS[None], "float32")))
    formats = dtype, dtype, dtype, "float32", "float32"
    expected = bounded(rg_lru.backward, x, gate_x, gate_a, Lambda, do, dS, reset, S0, precision=Precision(dtype), outputs=formats)
    for actual, bound, what in zip(gradients, expected, WHAT, strict=True):
        agree(actual.reshape(bound.shape), bound, what)


def test_gradients_stay_finite_where_nothing_is_forgotten(fast):
    """At a = 1 the root is 0 and as steep as can be."""
    shut, ones = torch.full((1, 3, 2), -torch.inf), torch.ones((1, 3, 2))
    leaves = [inputs.tensor(y.numpy(), "float32").requires_grad_() for y in (ones, ones, shut, torch.zeros(2))]
    o, _ = fast.scan(*leaves)
    for gradient in torch.autograd.grad(o.sum(), leaves):
        assert torch.isfinite(gradient).all()


def whole(rng, T, D):
    """Small integers, gates that are open or shut, a few resets: exact in every order and format."""
    x, do = rng.integers(-2, 3, (2, T, D)).astype(float)
    S0, dS = rng.integers(-2, 3, (2, D)).astype(float)
    gate_x, gate_a = rng.choice([-np.inf, np.inf], (2, T, D))
    return (x, gate_x, gate_a), rng.random(T) < 0.2, S0, do, dS


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.sampled_from([64, 16]))
@example(0, [5, 0, 19], 16)
def test_packed_sequences_are_sequences(fast, seed, lengths, chunk):
    """With resets among them: each as if alone, and gradients too."""
    rng, Lambda = np.random.default_rng(seed), np.full(5, 200.0)
    parts = [whole(rng, T, 5) for T in lengths]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = [np.concatenate([tokens[i] for tokens, *_ in parts])[None] for i in range(3)]
    reset, do = (np.concatenate([part[i] for part in parts])[None] for i in (1, 3))
    S0, dS = (np.stack([part[i] for part in parts]) for i in (2, 4))
    leaves = [inputs.tensor(y, "float32").requires_grad_() for y in (*rows, S0)]
    lam, new = inputs.tensor(Lambda, "float32"), inputs.tensor(reset)
    results = fast.scan(*leaves[:3], lam, new, leaves[3], chunk, cu_seqlens=inputs.tensor(edges, "int32"))
    gradients = torch.autograd.grad(results, leaves, (inputs.tensor(do, "float32"), inputs.tensor(dS, "float32")))
    for n, (tokens, reset, S0, do, dS) in enumerate(parts):
        dx, dgate_x, dgate_a, _, dS0 = rg_lru.backward(*tokens, Lambda, do, dS, reset, S0)
        output, state = rg_lru.recurrent(*tokens, Lambda, reset, S0)
        here = slice(edges[n], edges[n + 1])
        for actual, value, what in zip((results[0], *gradients[:3]), (output, dx, dgate_x, dgate_a), ("outputs", *WHAT[:3]), strict=True):
            exactly(actual[0, here], value, f"{what} of sequence {n} of lengths {lengths}")
        exactly(results[1][n], state, f"final state of sequence {n} of lengths {lengths}")
        exactly(gradients[3][n], dS0, f"dS0 of sequence {n} of lengths {lengths}")


@few
@given(inputs.seeds)
def test_the_layer_of_recurrent_gemma_is_this_one(fast, seed):
    """That of the transformers library, gates included: two texts in one row, then single tokens on its state; ours within the same bound.

    Channels are quick ones: theirs takes 1 - a² as a difference.
    """
    rng, places = np.random.default_rng(seed), np.concatenate([np.arange(7), np.arange(12)])
    x, W, b = rng.standard_normal((19, 6)), rng.standard_normal((2, 2, 3, 3)) / 4, rng.standard_normal((2, 6)) / 4
    x, W, b, Lambda = (inputs.rounded(y, "float32") for y in (x, W, b, RATES["quick"](rng, 6)))
    theirs = modeling.RecurrentGemmaRglru(library.RecurrentGemmaConfig(hidden_size=6, lru_width=6, num_attention_heads=2, vocab_size=8))
    theirs = theirs.to(inputs.target.device())
    names = "input_gate_weight", "recurrent_gate_weight", "input_gate_bias", "recurrent_gate_bias", "recurrent_param"
    theirs.load_state_dict(dict(zip(names, (inputs.tensor(y, "float32") for y in (*W, *b.reshape(2, 2, 3), Lambda)), strict=True)))

    def whole(x, W, b, Lambda):
        gates = (rg_lru.block_diagonal(x, W[i], b[i]) for i in range(2))
        return rg_lru.recurrent(x, *gates, Lambda, places == 0)

    expected = bounded(whole, x, W, b, Lambda, precision=Precision("float32", accumulator="tf32x3"))
    rows, positions = inputs.tensor(x[None], "float32"), inputs.tensor(places[None])
    weights, biases, lam = (inputs.tensor(y, "float32") for y in (W, b, Lambda))
    with torch.no_grad():
        pieces = [theirs(rows[:, i:j], positions[:, i:j]) for i, j in ((0, 17), (17, 18), (18, 19))]
        gates = [fast.block_diagonal(rows, weights[i], biases[i]) for i in range(2)]
        ours = fast.scan(rows, *gates, lam, positions == 0)
    for whose, results in {"theirs": (torch.cat(pieces, 1), theirs.recurrent_states), "ours": ours}.items():
        for actual, wanted, what in zip(results, expected, ("outputs", "state"), strict=True):
            agree(actual[0], wanted, f"{what}, {whose}")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"gate_a": torch.zeros(1, 5, 3)}, ValueError, "gate_a must"),
        ({"gate_x": torch.zeros(1, 5, 4, dtype=torch.float16)}, TypeError, "gate_x must"),
        ({"Lambda": torch.zeros(3)}, ValueError, "Lambda must"),
        ({"Lambda": torch.zeros(4, dtype=torch.int32)}, TypeError, "Lambda must"),
        ({"reset": torch.zeros(1, 4, dtype=torch.bool)}, ValueError, "reset must"),
        ({"reset": torch.zeros(1, 5)}, TypeError, "reset must"),
        ({"S0": torch.zeros(2, 4)}, ValueError, "S0 must"),
        ({"chunk": 0}, ValueError, "chunk must"),
        ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    device = inputs.target.device()
    arguments = {name: torch.zeros((1, 5, 4)) for name in ("x", "gate_x", "gate_a")} | {"Lambda": torch.zeros(4)} | wrong
    if "cu_seqlens" in wrong and device != "cpu":
        return  # edges are looked at on the CPU only: a GPU would have to wait for them
    with pytest.raises(error, match=message):
        fast.scan(**{name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()})


@pytest.mark.parametrize(
    "wrong, message", [({"b": torch.zeros(4)}, "b must"), ({"W": torch.zeros(2, 3, 2)}, "W must"), ({"x": torch.zeros(1, 2, 5)}, "x must")]
)
def test_bad_blocks_are_named(fast, wrong, message):
    with pytest.raises(ValueError, match=message):
        fast.block_diagonal(**({"x": torch.zeros(1, 2, 6), "W": torch.zeros(2, 3, 3), "b": torch.zeros(6)} | wrong))


def test_it_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    arguments = tensors(*real("mixed", 0, 19, 5, "float32")[0], "float32")
    compiled = torch.compile(lambda *x: fast.scan(*x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(*arguments), fast.scan(*arguments), strict=True):
        exactly(actual, expected, "compiled")
