"""The laws of the delta rules, each a test of every chapter of which it is true.

A chapter's test file imports them beside those of `laws.py` and provides, with `operation`, the fixture `model`, an `erasing.Model`.
Those of the second half hold the implementation alone, so they take `fast` instead of `operation`.
"""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention import battery, erasing
from twofold.conformance.linear_attention.battery import cases, few
from twofold.conformance.linear_attention.laws import ACROSS
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.spec.linear_attention import affine


@few
@given(cases(), st.booleans())
def test_the_drawn_tokens_are_exact(model, case, identity):
    """Integers, and no sum of theirs leaves float32, even with the identity as values."""
    tokens, S0, *_ = battery.run_of(case, model.exact)
    rng, row = np.random.default_rng(case.seed), model.row(tokens)
    assert all(np.all((x == np.rint(x)) | np.isneginf(x)) for x in row)
    do, dS = np.zeros((len(row[0]), case.V)), rng.integers(-2, 3, S0.shape).astype(float)
    do[model.steps - 1 :: model.steps] = rng.integers(-1, 2, (case.T, case.V))
    if identity:
        count = len(row[0])
        row = *row[:2], np.eye(count), *row[3:]
        do, dS, S0 = np.ones((count, count)), np.ones((case.K, count)), np.zeros((case.K, count))
    assert erasing.largest_sum(*row, do, dS, S0) < erasing.LIMIT


@few
@given(cases())
@example(ACROSS)
def test_it_is_a_row_of_the_core(model, case):
    """Its recurrence, token by token and in chunks, is that of the core with its write keys and what it looks up."""
    tokens, S0, *_ = battery.run_of(case, model.exact)
    q, w, v, g, a = model.row(tokens)
    expected = model.recurrent(tokens, S0)
    by_token = affine.recurrent(q, w, v, erasing.spread(g, case.K), a, -w, S0)
    for what, (outputs, state) in (("by token", by_token), ("in chunks", erasing.in_chunks(q, w, v, g, a, S0, 32))):
        exactly(model.read(outputs), expected[0], f"outputs of the core {what}")
        exactly(state, expected[1], f"state of the core {what}")
    do, dS = (np.random.default_rng(case.seed).integers(-1, 2, shape).astype(float) for shape in (v.shape, S0.shape))
    forms = erasing.adjoint_by_token, erasing.adjoint, lambda *x: erasing.adjoint_in_chunks(*x, 16)
    wanted, *others = (form(q, w, v, g, a, do, dS, S0) for form in forms)
    for gradients in others:
        for name, one, two in zip(("dq", "dw", "dv", "dg", "da", "dS0"), gradients, wanted, strict=True):
            exactly(one, two, f"{name} of the core")


@few
@given(inputs.seeds, st.integers(1, 34))
def test_the_future_does_not_change_a_bit(model, operation, seed, at):
    """On real tokens, where a solver that does not go from the top row down would round earlier rows otherwise."""
    rng = np.random.default_rng(seed)
    tokens, others = (model.real(rng, "mild", "drawn", 35, 5, 3, "float32") for _ in range(2))
    S0, changed = rng.standard_normal((5, 3)), {name: np.concatenate([tokens[name][:at], others[name][at:]]) for name in tokens}
    for name, form in operation.forms.items():
        exactly(form(changed, S0)[0][:at], form(tokens, S0)[0][:at], f"{name}: outputs before token {at}, which changed")


def plain(operation, k, v, beta):
    """Tokens that do not fade and look up their own key; queries are of no interest."""
    drawn = operation.tokens_of(np.random.default_rng(0), len(k), k.shape[1], v.shape[1])
    still = {"k": k, "v": v, "beta": beta, "g": np.zeros_like(drawn.get("g", beta)), "p": k}
    return drawn | {name: x for name, x in still.items() if name in drawn}


@few
@given(cases())
def test_strength_zero_writes_nothing_and_one_replaces(operation, case):
    tokens, S0, *_ = operation.run(case)
    k, v = np.eye(case.K)[np.arange(case.T) % case.K], tokens["v"]
    for name, form in operation.forms.items():
        exactly(form(plain(operation, k, v, np.zeros(case.T)), S0)[1], S0, f"{name}: a state to which nothing was written")
        state = form(plain(operation, k, v, np.ones(case.T)), S0)[1]
        exactly(k[-1] @ state, v[-1], f"{name}: what is stored under the last key")
        for t in range(max(case.T - case.K, 0), case.T):  # orthogonal keys do not disturb each other
            exactly(k[t] @ state, v[t], f"{name}: what is stored under key {t}")


@few
@given(cases())
def test_reflections_keep_lengths_and_undo_themselves(operation, case):
    """With beta |k|² = 2 and nothing to write each token is a reflection: lengths stay, and the mirrored sequence leads back."""
    rng = np.random.default_rng(case.seed)
    k, S0 = erasing.exact_keys(rng, case.T, case.K), rng.integers(-2, 3, (case.K, case.V)).astype(float)
    beta, nothing = 2 / np.sum(k * k, axis=1), np.zeros((case.T, case.V))
    for name, form in operation.forms.items():
        state = form(plain(operation, k, nothing, beta), S0)[1]
        exactly(np.sum(state**2, axis=0), np.sum(S0**2, axis=0), f"{name}: squared lengths after reflections")
        exactly(form(plain(operation, np.flip(k, 0).copy(), nothing, np.flip(beta).copy()), state)[1], S0, f"{name}: the way back")


@few
@given(cases())
@example(ACROSS)
def test_keys_and_strengths_scale_against_each_other(operation, case):
    """Keys twice as large and a quarter of the strength: the same transition, half of the state; queries twice as large read the same."""
    tokens, S0, *_ = operation.run(case)
    scales = {"q": 2, "k": 2, "beta": 1 / 4, "p": 2}
    scaled = {name: x * scales.get(name, 1) for name, x in tokens.items()}
    expected = operation.definition(tokens, S0)
    for name, form in operation.forms.items():
        output, state = form(scaled, S0 / 2)
        exactly(output, expected[0], f"{name}: outputs with twice the keys")
        exactly(state, expected[1] / 2, f"{name}: final state with twice the keys")


def test_it_counts_modulo_two(operation):
    """Parity of a word of bits, with weights set by hand: a 1 reflects the only number of the state. No decay above 0 can do that."""
    bits = np.random.default_rng(0).integers(0, 2, 35)
    for name, form in operation.forms.items():
        tokens = plain(operation, np.ones((35, 1)), np.zeros((35, 1)), 2.0 * bits)
        for T in (1, 17, 35):
            state = form({key: x[:T] for key, x in tokens.items()}, np.ones((1, 1)))[1]
            exactly(state, np.array([[(-1.0) ** bits[:T].sum()]]), f"{name}: parity of {T} bits")


def test_it_exchanges(operation):
    """A word of transpositions of five things: k = e_i - e_j with beta = 1 exchanges i and j, as any group of permutations needs."""
    rng, things = np.random.default_rng(1), np.arange(1.0, 6)
    pairs = np.array([rng.choice(5, 2, replace=False) for _ in range(35)])
    k = np.eye(5)[pairs[:, 0]] - np.eye(5)[pairs[:, 1]]
    for i, j in pairs:
        things[[i, j]] = things[[j, i]]
    for name, form in operation.forms.items():
        state = form(plain(operation, k, np.zeros((35, 1)), np.ones(35)), np.arange(1.0, 6)[:, None])[1]
        exactly(state[:, 0], things, f"{name}: five things after 35 exchanges")


# The implementation alone


def contract(dtype):
    """float32 products may be three tf32 products; 16-bit ones take operands that were computed in 16 bits."""
    return Precision(dtype, operand="tf32x3" if dtype == "float32" else None)


def tensors(model, tokens, S0, dtype):
    rows = [inputs.tensor(tokens[name][None, :, None], "float32" if name in ("g", "beta") else dtype) for name in model.names]
    return *rows, inputs.tensor(S0[None, None], "float32")


@few
@given(inputs.seeds, erasing.gates, st.sampled_from(["drawn", "the same"]), st.sampled_from([1, 17, 35]), inputs.dtypes())
@example(0, "none", "drawn", 35, "bfloat16")
@example(0, "mixed", "drawn", 35, "float32")
def test_outputs_and_final_state_agree_with_the_definition(model, fast, seed, gates, keys, T, dtype):
    """The value is the recurrence's; the bound is that of the core's chunks, with rows stored in the format of the inputs."""
    rng, (K, V) = np.random.default_rng(seed), (20, 7)
    tokens, S0 = model.real(rng, gates, keys, T, K, V, dtype), inputs.rounded(rng.standard_normal((K, V)), "float32")
    with torch.no_grad():
        o, state = model.fast(fast.chunked)(*tensors(model, tokens, S0, dtype), chunk=32)
    stored = lambda x: x.rounded_to(dtype) if isinstance(x, Rounded) else x

    def core(S0, *rows):
        q, w, v, g, a = model.row(dict(zip(model.names, rows, strict=True)))
        outputs, state = erasing.in_chunks(stored(q), stored(w), v, g, stored(a), S0, 32, stored=stored)
        return model.read(outputs), state

    expected = bounded(core, S0, *model.arguments(tokens), precision=contract(dtype), outputs=(dtype, "float32"))
    values = model.recurrent(tokens, S0)
    for actual, bound, value, what in zip((o[0, :, 0], state[0, 0]), expected, values, ("output", "final state"), strict=True):
        bound.value = value
        agree(actual, bound, what, independent=keys == "drawn")


@few
@given(inputs.seeds, erasing.gates, st.sampled_from([17, 35]))
def test_gradients_agree_with_the_adjoint(model, fast, seed, gates, T):
    rng, (K, V) = np.random.default_rng(seed), (12, 7)
    tokens = model.real(rng, gates, "drawn", T, K, V, "float32")
    do, S0, dS = (inputs.rounded(rng.standard_normal(shape), "float32") for shape in ((T, V), (K, V), (K, V)))
    leaves = [x.requires_grad_() for x in tensors(model, tokens, S0, "float32")]
    upstream = inputs.tensor(do[None, :, None], "float32"), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad(model.fast(fast.chunked)(*leaves, chunk=32), leaves, upstream)
    by_token = lambda *x: gradients_of(model, erasing.adjoint, *x)
    expected = bounded(by_token, do, dS, S0, *model.arguments(tokens), precision=contract("float32"))
    for name, actual, bound in zip((*model.names, "S0"), gradients, expected, strict=True):
        agree(actual[0, 0] if name == "S0" else actual[0, :, 0], bound, f"d{name}")


@few
@given(inputs.seeds, erasing.gates, st.sampled_from([1, 17, 35]), inputs.dtypes())
@example(0, "mild", 35, "bfloat16")
def test_gradients_agree_in_every_format(model, fast, seed, gates, T, dtype):
    """Chunks of one sub-chunk: there the adjoint of each chunk rounds what an implementation rounds, decayed rows and states."""
    rng, (K, V) = np.random.default_rng(seed), (12, 7)
    tokens, do = model.real(rng, gates, "drawn", T, K, V, dtype), inputs.rounded(rng.standard_normal((T, V)) / 4, dtype)
    S0, dS = (inputs.rounded(x, "float32") for x in rng.standard_normal((2, K, V)))
    leaves = [x.requires_grad_() for x in tensors(model, tokens, S0, dtype)]
    upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS[None, None], "float32")
    gradients = torch.autograd.grad(model.fast(fast.chunked)(*leaves, chunk=16), leaves, upstream)
    stored = lambda x: x.rounded_to(dtype) if isinstance(x, Rounded) else x

    def in_chunks(q, w, v, g, a, do, dS, S0):
        dq, dw, dv, dg, da, dS0 = erasing.adjoint_in_chunks(stored(q), stored(w), v, g, stored(a), do, dS, S0, 16, stored)
        return stored(dq), stored(dw), stored(dv), dg, stored(da), dS0

    formats = *("float32" if name in ("g", "beta") else dtype for name in model.names), "float32"
    run = lambda *x: gradients_of(model, in_chunks, *x)
    expected = bounded(run, do, dS, S0, *model.arguments(tokens), precision=contract(dtype), outputs=formats)
    values = gradients_of(model, erasing.adjoint_by_token, do, dS, S0, *model.arguments(tokens))
    for name, actual, bound, value in zip((*model.names, "S0"), gradients, expected, values, strict=True):
        bound.value = value
        agree(actual[0, 0] if name == "S0" else actual[0, :, 0], bound, f"d{name}", independent=True)


def gradients_of(model, adjoint, do, dS, S0, *rows):
    """Gradients of the tokens, in order, and of S0: the adjoint of the core, then the chain rule to its rows."""
    tokens = dict(zip(model.names, rows, strict=True))
    row = model.row(tokens)
    silent = np.zeros((len(do), model.steps - 1, do.shape[1]))
    spread = np.concatenate([silent, do[:, None]], axis=1).reshape(len(row[0]), do.shape[1])
    *core, dS0 = adjoint(*row, spread, dS, S0)
    by_name = model.chain(tokens, *core)
    return *(by_name[name] for name in model.names), dS0


@pytest.mark.parametrize("lengths, packed", [([3, 0, 17], True), ([5, 5], False)], ids=["packed", "in a batch"])
def test_sequences_and_heads_do_not_meet(model, fast, lengths, packed):
    """Packed or in a batch, two value heads on each query and key head: outputs, states, gradients of each as if alone, to the bit."""
    rng, (H, K, V) = np.random.default_rng(0), (4, 5, 3)
    parts = [_heads(model, rng, T, H, K, V) for T in lengths]
    S0, dS = rng.integers(-2, 3, (2, len(lengths), H, K, V)).astype(float)
    do = [rng.integers(-1, 2, (T, H, V)).astype(float) for T in lengths]
    together = lambda pieces: np.concatenate(pieces)[None] if packed else np.stack(pieces)
    group = lambda name: 2 if name in ("q", "k") else 1  # heads that share it
    rows = [together([np.stack([h[name] for h in heads[:: group(name)]], axis=1) for heads in parts]) for name in model.names]
    leaves = [inputs.tensor(x, "float32").requires_grad_() for x in (*rows, S0)]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    options = {"cu_seqlens": inputs.tensor(edges, "int32")} if packed else {}
    o, states = model.fast(fast.chunked)(*leaves, chunk=16, **options)
    upstream = inputs.tensor(together(do), "float32"), inputs.tensor(dS, "float32")
    *gradients, dS0 = torch.autograd.grad((o, states), leaves, upstream)
    for n, heads in enumerate(parts):
        here = (0, slice(edges[n], edges[n + 1])) if packed else (n, slice(None))
        alone = []
        for h, tokens in enumerate(heads):
            output, state = model.recurrent(tokens, S0[n, h])
            exactly(o[here][:, h], output, f"outputs of sequence {n}, head {h}")
            exactly(states[n, h], state, f"final state of sequence {n}, head {h}")
            if lengths[n] == 0:
                exactly(dS0[n, h], dS[n, h], f"dS0 of sequence {n}, head {h}, which has no token")
            else:
                *own, first = gradients_of(model, erasing.adjoint_by_token, do[n][:, h], dS[n, h], S0[n, h], *model.arguments(tokens))
                exactly(dS0[n, h], first, f"dS0 of sequence {n}, head {h}")
                alone.append(own)
        for name, actual, *expected in zip(model.names, gradients, *alone, strict=True) if alone else ():
            shared = [sum(expected[h : h + group(name)]) for h in range(0, H, group(name))]
            exactly(actual[here], np.stack(shared, axis=1), f"d{name} of sequence {n}, summed over the heads that share it")


def _heads(model, rng, T, H, K, V):
    """Tokens of each head, every two of them on the same queries and keys."""
    first = [model.exact(rng, T, K, V) for _ in range(H // 2)]
    return [tokens for one in first for tokens in (one, model.exact(rng, T, K, V, one["k"]) | {"q": one["q"]})]


def test_two_runs_give_the_same_bits_of_gradients(model, fast):
    rng = np.random.default_rng(0)
    tokens, S0 = model.real(rng, "mild", "drawn", 35, 20, 7, "float32"), rng.standard_normal((20, 7))
    leaves = [x.requires_grad_() for x in tensors(model, tokens, S0, "float32")]
    runs = [torch.autograd.grad([x.sum() for x in model.fast(fast.chunked)(*leaves, chunk=16)], leaves) for _ in range(2)]
    for name, one, two in zip((*model.names, "S0"), *runs, strict=True):
        exactly(one, two, f"d{name}")
