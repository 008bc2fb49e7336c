"""DeltaFormer on real values, within derived bounds; gradients, packed sequences and heads, memory; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_deltaformer import exact_tokens
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import deltaformer

NAMES = ("q", "k", "v", "w", "beta")
WHAT = ("output", "keys", "stored")


def real(seed, T, S, dtype, K=20, V=7):
    """Tokens with strengths up to 2, and a cache of S keys."""
    q, k, v, w, x = inputs.values("normal", [(T, K), (T, K), (T, V), (T, K), (T,)], seed)
    rows = [inputs.rounded(x, dtype) for x in (q / 2, k, v, w / 2, 2 / (1 + np.exp(-x)))]
    return rows, inputs.values("normal", [(S, K), (S, V)], seed + 1, "float32")


def tensors(tokens, state, dtype):
    return [inputs.tensor(x[None, :, None], dtype) for x in tokens], tuple(inputs.tensor(x[None, None], "float32") for x in state)


def flat(form):
    return lambda *x, **options: (lambda o, state: (o, *state))(*form(*x[:5], x[5:], **options))


@few
@given(inputs.seeds, st.sampled_from([(1, 5), (17, 0), (35, 21)]), st.sampled_from(["float32", "bfloat16", "float16"]))
@example(0, (35, 21), "float32")
@example(0, (35, 21), "bfloat16")
@example(0, (35, 21), "float16")
def test_outputs_and_caches_agree_with_the_definition(fast, seed, sizes, dtype):
    """In blocks; operands of products stay in float32, whatever the inputs are, and so does the cache."""
    tokens, cache = real(seed % 2**31, *sizes, dtype)
    rows, state = tensors(tokens, cache, dtype)
    o, after = fast.blockwise(*rows, state, 8)
    precision, formats = Precision(dtype, operand="float32"), (dtype, "float32", "float32")
    expected = bounded(flat(deltaformer.blockwise), *tokens, *cache, block=8, precision=precision, outputs=formats)
    output, state = deltaformer.recurrent(*tokens, tuple(cache))
    for one, bound, value, what in zip((o[0, :, 0], *(x[0, 0] for x in after)), expected, (output, *state), WHAT, strict=True):
        bound.value = value
        agree(one, bound, what, independent=True)


@few
@given(inputs.seeds, st.sampled_from(["float32", "bfloat16"]))
def test_steps_agree_with_the_definition(fast, seed, dtype):
    """Nine tokens, one at a time, from a cache of five."""
    tokens, cache = real(seed % 2**31, 9, 5, dtype)
    rows, state = tensors(tokens, cache, dtype)
    for t in range(9):
        o, state = fast.step(state, *(x[:, t] for x in rows))
    precision, formats = Precision(dtype, operand="float32"), (dtype, "float32", "float32")
    expected = bounded(flat(deltaformer.recurrent), *tokens, *cache, precision=precision, outputs=formats)
    agree(o[0], expected[0][8:], "output")
    for one, bound, what in zip(state, expected[1:], WHAT[1:], strict=True):
        agree(one[0, 0], bound, what)


@pytest.mark.parametrize("cached", [0, 3])
def test_gradients_reach_everything(fast, cached):
    """By finite differences in float64, two query heads on each of two key heads, over three blocks of which the last is short."""
    rng = np.random.default_rng(0)
    shapes = [(1, 8, 4, 3), (1, 8, 2, 3), (1, 8, 2, 2), (1, 8, 2, 3), (1, 8, 2), (1, 2, cached, 3), (1, 2, cached, 2)]
    leaves = [inputs.tensor(rng.standard_normal(shape), "float64").requires_grad_() for shape in shapes]
    blocks = lambda *x: (lambda o, state: (o, *state))(*fast.blockwise(*x[:5], x[5:], 3))
    step = lambda *x: (lambda o, state: (o, *state))(*fast.step(x[5:], *(y[:, 0] for y in x[:5])))
    used = leaves if cached else leaves[:5]
    with_cache = lambda form: lambda *x: form(*x, *leaves[len(x) :])
    assert torch.autograd.gradcheck(with_cache(blocks), used, fast_mode=True)
    assert torch.autograd.gradcheck(with_cache(step), used, fast_mode=True)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.booleans())
@example(0, [5, 0, 19], True)
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, continued):
    """Two heads of queries on each head of keys, sequences side by side, caches of different lengths: each as if alone."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    heads = [exact_tokens(rng, T, 5, 3) for _ in range(4)]
    rows = [np.stack([head[name] for head in (heads if name == "q" else heads[::2])], 1)[None] for name in NAMES]
    before = [[exact_tokens(rng, n, 5, 3) for _ in range(2)] for n in range(1, len(lengths) + 1)]
    between = np.eye(5)[4]  # places of keys between those of the tokens
    S0 = [(np.stack([x["k"] + between for x in past])[None], np.stack([x["v"] for x in past])[None]) for past in before]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    given_ = [tuple(inputs.tensor(x, "float32") for x in state) for state in S0] if continued else None
    o, states = fast.blockwise(*(inputs.tensor(x, "float32") for x in rows), given_, 8, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 4):
        here = slice(edges[n], edges[n + 1])
        alone = [heads[h if name == "q" else h // 2 * 2][name][here] for name in NAMES]
        output, state = deltaformer.recurrent(*alone, tuple(x[0, h // 2] for x in S0[n]) if continued else None)
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        for actual, expected in zip(states[n], state, strict=True):
            exactly(actual[0, h // 2], expected, f"cache of sequence {n}, head {h}, of lengths {lengths}")


def test_no_matrix_of_all_pairs_is_made(fast):
    """Without gradients the largest tensor that any operation returns grows with T, not with T²."""
    rows, state = tensors(*real(0, 512, 0, "float32", K=4, V=3), "float32")

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else [out]
            self.elements = max([self.elements, *(x.numel() for x in parts if isinstance(x, torch.Tensor))])
            return out

    with torch.no_grad(), Largest() as seen:
        fast.blockwise(*rows, state, 8)
    assert seen.elements <= 512 * 8  # a block's rows of scores


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"w": torch.zeros(1, 5, 4, 4)}, ValueError, "w must"), ({"w": torch.zeros(1, 5, 2, 4).half()}, TypeError, "w must"),
        ({"beta": torch.zeros(1, 5, 4)}, ValueError, "beta must"), ({"beta": torch.zeros(1, 5, 2).long()}, TypeError, "beta must"),
        ({"q": torch.zeros(1, 5, 3, 4)}, ValueError, "q must have a multiple"), ({"block": 0}, ValueError, "block must"),
        ({"k": torch.zeros(1, 4, 2, 4)}, ValueError, "k must"), ({"v": torch.zeros(1, 5, 4, 3)}, ValueError, "v must"),
        ({"S0": (torch.zeros(1, 2, 6, 4),)}, ValueError, "S0 must hold keys, values: 2 tensors, not 1"),
        ({"S0": (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 5, 3))}, ValueError, r"S0\[1\] must"),
        ({"S0": (torch.zeros(1, 2, 6, 4).half(), torch.zeros(1, 2, 6, 3))}, TypeError, r"S0\[0\] must"),
        ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"cu_seqlens": torch.tensor([0, 2, 5]), "S0": []}, ValueError, "S0 must be a list of a state for each of 2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    shapes = {"q": (1, 5, 4, 4), "k": (1, 5, 2, 4), "v": (1, 5, 2, 3), "w": (1, 5, 2, 4), "beta": (1, 5, 2)}
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.blockwise(**arguments)
