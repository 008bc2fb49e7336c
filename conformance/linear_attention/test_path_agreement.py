"""PaTH attention on real values, within derived bounds; gradients, packed sequences and heads, memory; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.paths import forgetting_tokens
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import path

NAMES = ("q", "k", "v", "w", "beta", "F")


def real(seed, T, S, dtype, K=20, V=7):
    """Directions of length 1, strengths of 2 sigmoid, gates around -0.7; a cache of S keys."""
    shapes = [(T, K), (T, K), (T, V), (T, K), (T,), (T,)]
    q, k, v, w, x, f = inputs.values("normal", shapes, seed)
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    rows = [inputs.rounded(x, dtype) for x in (q / 2, k, v, w, 2 / (1 + np.exp(-x)))]
    keys, values, past = inputs.values("normal", [(S, K), (S, V), (S,)], seed + 1, "float32")
    return (*rows, inputs.rounded(-np.cumsum(np.logaddexp(0, f)), "float32")), (keys, values, np.abs(past))


def tensors(tokens, state, dtype):
    *rows, F = (inputs.tensor(x[None, :, None], dtype if n < 5 else "float32") for n, x in enumerate(tokens))
    return rows, F, tuple(inputs.tensor(x[None, None], "float32") for x in state)


def flat(form):
    return lambda *x, **options: (lambda o, state: (o, *state))(*form(*x[:5], x[6:], F=x[5], **options))


@few
@given(inputs.seeds, st.sampled_from([(1, 5), (17, 0), (35, 21)]), st.sampled_from(["float32", "bfloat16", "float16"]))
@example(0, (35, 21), "float32")
@example(0, (35, 21), "bfloat16")
@example(0, (35, 21), "float16")
def test_outputs_and_caches_agree_with_the_definition(fast, seed, sizes, dtype):
    """In blocks; operands of products stay in float32, whatever the inputs are, and so does the cache."""
    tokens, cache = real(seed % 2**31, *sizes, dtype)
    rows, F, state = tensors(tokens, cache, dtype)
    o, after = fast.blockwise(*rows, state, 8, F)
    precision, formats = Precision(dtype, operand="float32"), (dtype, *["float32"] * 3)
    expected = bounded(flat(path.blockwise), *tokens, *cache, block=8, precision=precision, outputs=formats)
    output, state = path.parallel_forgetting(*tokens, cache)
    actual = o[0, :, 0], *(x[0, 0] for x in after)
    for one, bound, value, what in zip(actual, expected, (output, *state), ("output", "keys", "values", "sums"), strict=True):
        bound.value = value
        agree(one, bound, what, independent=True)


@few
@given(inputs.seeds, st.sampled_from(["float32", "bfloat16"]))
def test_steps_agree_with_the_definition(fast, seed, dtype):
    """Nine tokens, one at a time, from a cache of five; the last output is held to the bound of the whole."""
    tokens, cache = real(seed % 2**31, 9, 5, dtype)
    rows, F, state = tensors(tokens, cache, dtype)
    for t in range(9):
        o, state = fast.step(state, *(x[:, t] for x in rows), F[:, t])
    precision, formats = Precision(dtype, operand="float32"), (dtype, *["float32"] * 3)
    expected = bounded(flat(path.blockwise), *tokens, *cache, block=1, precision=precision, outputs=formats)
    agree(o[0], expected[0][8:], "output")
    for one, bound, what in zip(state, expected[1:], ("keys", "values", "sums"), strict=True):
        agree(one[0, 0], bound, what)


@pytest.mark.parametrize("form", ["step", "blockwise", "parallel_forgetting"])
def test_two_texts_go_on_from_one_cache(fast, form):
    """The tensors that were given are not written to, and those that come back are others."""
    tokens, cache = real(0, 1, 9, "float32")
    rows, F, state = tensors(tokens, cache, "float32")
    forms = {
        "step": lambda rows: fast.step(state, *(x[:, 0] for x in rows), F[:, 0]),
        "blockwise": lambda rows: fast.blockwise(*rows, state, 8, F),
        "parallel_forgetting": lambda rows: fast.parallel_forgetting(*rows, F, state),
    }
    _, first = forms[form](rows)
    kept = [x.clone() for x in first]
    forms[form]([*rows[:3], -rows[3] + 1, rows[4]])
    for one, before, what in zip(first, kept, ("keys", "values", "sums"), strict=True):
        exactly(one, before, f"{what} of the first text after the second")
    for one, given_, what in zip(state, cache, ("keys", "values", "sums"), strict=True):
        exactly(one[0, 0], given_, f"{what} of the prefix after both")


def test_only_differences_of_gates_count(fast):
    """A million more in all sums, as late in a long text, and the outputs have the same bits."""
    tokens, cache = real(0, 35, 21, "float32")
    eighths = lambda x: np.round(8 * x) / 8  # which float32 holds beside a million
    outputs = []
    for more in (0.0, -(2.0**20)):
        rows, F, state = tensors((*tokens[:5], eighths(tokens[5]) + more), (*cache[:2], eighths(cache[2]) + more), "float32")
        first = tuple(x[:, 0] for x in rows)
        outputs.append(
            (fast.blockwise(*rows, state, 8, F)[0], fast.parallel_forgetting(*rows, F, state)[0], fast.step(state, *first, F[:, 0])[0])
        )
    for one, other, what in zip(*outputs, ("blocks", "all pairs", "a step"), strict=True):
        exactly(other, one, what)


@pytest.mark.parametrize("gates", [False, True])
def test_gradients_reach_everything(fast, gates):
    """By finite differences in float64, two query heads on each of two key heads, over three blocks, from a cache of three keys."""
    rng = np.random.default_rng(0)
    shapes = [(1, 8, 4, 3), (1, 8, 2, 3), (1, 8, 2, 2), (1, 8, 2, 3), (1, 8, 2), (1, 2, 3, 3), (1, 2, 3, 2)]
    shapes += [(1, 8, 4), (1, 4, 3)] if gates else []
    leaves = [inputs.tensor(rng.standard_normal(shape), "float64").requires_grad_() for shape in shapes]

    def call(*x):
        keys_values, F, past = x[5:7], (x[7] if gates else None), x[8:]
        o, state = fast.blockwise(*x[:5], (*keys_values, *past), 3, F)
        return o, *state

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    step = lambda *x: (lambda o, state: (o, *state))(
        *fast.step((*x[5:7], *x[8:]), *(y[:, 0] for y in x[:5]), x[7][:, 0] if gates else None)
    )
    assert torch.autograd.gradcheck(step, leaves, fast_mode=True)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.booleans(), st.booleans())
@example(0, [5, 0, 19], True, True)
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, continued, gates):
    """Two heads of queries on each head of keys, sequences side by side, caches of different lengths: each as if alone."""
    rng, T, names = np.random.default_rng(seed), sum(lengths), NAMES[: 5 + gates]
    heads = [forgetting_tokens(rng, T, 5, 3) for _ in range(4)]
    chosen = {name: heads if name in ("q", "F") else heads[::2] for name in NAMES}
    rows = {name: inputs.tensor(np.stack([head[name] for head in chosen[name]], 1)[None], "float32") for name in names}
    S0 = []
    for n in range(1, len(lengths) + 1):
        past = [forgetting_tokens(rng, n, 5, 3) for _ in range(4)]
        keys = [x["k"] + np.eye(5)[4] for x in past[::2]]  # places between those of the tokens
        parts = keys, [x["v"] for x in past[::2]], [-x["F"] for x in past]
        S0.append(tuple(np.stack(x)[None] for x in parts[: 2 + gates]))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    given_ = [tuple(inputs.tensor(x, "float32") for x in state) for state in S0] if continued else None
    o, states = fast.blockwise(**rows, S0=given_, block=8, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), 4):
        here = slice(edges[n], edges[n + 1])
        alone = [(heads[h] if name in ("q", "F") else heads[h // 2 * 2])[name][here] for name in names]
        start = tuple(x[0, h if m == 2 else h // 2] for m, x in enumerate(S0[n])) if continued else None
        output, state = (path.parallel_forgetting if gates else path.parallel)(*alone, start)
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        for m, (actual, expected) in enumerate(zip(states[n], state, strict=True)):
            exactly(actual[0, h if m == 2 else h // 2], expected, f"cache of sequence {n}, head {h}, of lengths {lengths}")


def test_no_matrix_of_all_pairs_is_made(fast):
    """Without gradients the largest tensor that any operation returns grows with T, not with T²."""
    tokens, cache = real(0, 512, 0, "float32", K=4, V=3)
    rows, F, state = tensors(tokens, cache, "float32")

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            parts = out if isinstance(out, tuple | list) else [out]
            self.elements = max([self.elements, *(x.numel() for x in parts if isinstance(x, torch.Tensor))])
            return out

    with torch.no_grad(), Largest() as seen:
        fast.blockwise(*rows, state, 8, F)
    assert seen.elements <= 512 * (8 + 4)  # a block's scores, or what is solved for, for every token


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"w": torch.zeros(1, 5, 4, 4)}, ValueError, "w must"), ({"w": torch.zeros(1, 5, 2, 4).half()}, TypeError, "w must"),
        ({"beta": torch.zeros(1, 5, 4)}, ValueError, "beta must"), ({"beta": torch.zeros(1, 5, 2).long()}, TypeError, "beta must"),
        ({"F": torch.zeros(1, 5, 2)}, ValueError, "F must"), ({"F": torch.full((1, 5, 4), -torch.inf)}, ValueError, "F must hold finite"),
        ({"q": torch.zeros(1, 5, 3, 4), "F": None}, ValueError, "q must have a multiple"), ({"block": 0}, ValueError, "block must"),
        ({"k": torch.zeros(1, 4, 2, 4)}, ValueError, "k must"), ({"v": torch.zeros(1, 5, 4, 3)}, ValueError, "v must"),
        ({"S0": (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 6, 3))}, ValueError, "S0 must hold .* 3 tensors, not 2"),
        ({"S0": (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 6, 3)), "F": None, "q": torch.zeros(1, 5, 2, 4).double()}, TypeError, "k must"),
        ({"S0": (torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 5, 3)), "F": None}, ValueError, r"S0\[1\] must"),
        ({"S0": (torch.zeros(1, 2, 6, 4).half(), torch.zeros(1, 2, 6, 3)), "F": None}, TypeError, r"S0\[0\] must"),
        ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"cu_seqlens": torch.tensor([0, 2, 5]), "S0": []}, ValueError, "S0 must be a list of a state for each of 2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    shapes = {"q": (1, 5, 4, 4), "k": (1, 5, 2, 4), "v": (1, 5, 2, 3), "w": (1, 5, 2, 4), "beta": (1, 5, 2), "F": (1, 5, 4)}
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.blockwise(**arguments)


@pytest.mark.parametrize("keys, error", [(torch.zeros(1, 4, 6, 4), ValueError), (torch.zeros(1, 2, 6, 4).double(), TypeError)])
def test_bad_cached_keys_are_named(fast, keys, error):
    rows = [inputs.tensor(np.ones(shape), "float32") for shape in ((1, 5, 4, 4), (1, 5, 2, 4), (1, 5, 2, 4), (1, 5, 2))]
    with pytest.raises(error, match="keys must"):
        fast.scores(*rows, keys.to(inputs.target.device()))
