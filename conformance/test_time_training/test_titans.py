"""Titans: exact laws of a memory with momentum; chunks of one token are the definition, longer ones the sum that the paper writes."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine
from twofold.spec.test_time_training import titans

lengths = st.sampled_from([0, 1, 2, 15, 16, 17, 35])
RATES = ("alpha", "eta", "theta")


def exact_tokens(seed, T, K=3, V=2):
    """Small integers that stay small: unit keys, decay and momentum 0 or 1, three tokens that carry momentum, step 0 or 1."""
    rng = np.random.default_rng(seed)
    k = np.eye(K)[rng.integers(0, K, T)] * (rng.random((T, 1)) < 0.9)
    rates = {"alpha": rng.integers(0, 2, T) * (rng.random(T) < 0.3), "eta": 1 * (rng.permutation(T) < 3), "theta": rng.integers(0, 2, T)}
    S0 = tuple(rng.integers(-2, 3, (2, K, V)).astype(float))
    q, v = rng.integers(-1, 2, (T, K)).astype(float), rng.integers(-2, 3, (T, V)).astype(float)
    return [q, k, v, *(rates[name].astype(float) for name in RATES)], S0


def on_fast(form, tokens, S0, **options):
    rows = [inputs.tensor(x[None, :, None], "float32") for x in tokens]
    output, state = form(*rows, None if S0 is None else tuple(inputs.tensor(x[None, None], "float32") for x in S0), **options)
    return inputs.array(output)[0, :, 0], tuple(inputs.array(x)[0, 0] for x in state)


def equal(actual, expected, what):
    for name, a, e in zip(("outputs", "memory", "momentum"), flat(actual), flat(expected), strict=True):
        exactly(a, e, f"{name}, {what}")


def flat(result):
    return result[0], *result[1]


def cut(tokens, where):
    return [x[where] for x in tokens]


@given(inputs.seeds, lengths)
@example(0, 35)
def test_chunks_of_one_token_are_the_definition(fast, seed, T):
    tokens, S0 = exact_tokens(seed, T)
    expected = titans.recurrent(*tokens, S0)
    equal(titans.chunked(*tokens, S0, chunk=1), expected, "chunked by 1, spec")
    equal(on_fast(fast.recurrent, tokens, S0), expected, "recurrent")
    equal(on_fast(fast.chunked, tokens, S0, chunk=1), expected, "chunked by 1")


@given(inputs.seeds, lengths, st.sampled_from([2, 7, 16, 64]))
@example(1, 35, 16)
def test_a_chunk_is_its_gradients_at_the_start_taken_one_by_one(fast, seed, T, chunk):
    """The same loop as the definition's, but for where gradients are taken."""
    tokens, S0 = exact_tokens(seed, T)
    (memory, momentum), start, outputs = S0, S0[0], [np.zeros((0, 2))]
    for t, (q, k, v, alpha, eta, theta) in enumerate(zip(*tokens, strict=True)):
        start = memory if t % chunk == 0 else start
        momentum = eta * momentum - theta * np.outer(k, k @ start - v)
        memory = (1 - alpha) * memory + momentum
        outputs.append((q @ memory)[None])
    expected = np.concatenate(outputs), (memory, momentum)
    equal(titans.chunked(*tokens, S0, chunk=chunk), expected, f"chunked by {chunk}, spec")
    equal(on_fast(fast.chunked, tokens, S0, chunk=chunk), expected, f"chunked by {chunk}")


@given(inputs.seeds, st.integers(1, 20))
def test_answers_before_learning_are_those_of_the_token_before(fast, seed, T):
    """With one query for all tokens, the order of reading and writing shifts the outputs by one token, and nothing else."""
    tokens, S0 = exact_tokens(seed, T)
    tokens[0] = np.ones_like(tokens[0])
    late, state = titans.recurrent(*tokens, S0)
    expected = np.concatenate([(tokens[0][0] @ S0[0])[None], late[:-1]]), state
    equal(titans.retrieve_first(*tokens, S0), expected, "retrieve_first, spec")
    equal(on_fast(fast.retrieve_first, tokens, S0), expected, "retrieve_first")
    assert np.any(late != expected[0]) or T < 4 or not tokens[5].any()  # the two orders differ


@given(inputs.seeds, st.integers(1, 35), st.data())
def test_a_run_resumes_and_steps_are_the_prefill(fast, seed, T, data):
    """At any token; of the chunked form at any boundary of chunks."""
    tokens, S0 = exact_tokens(seed, T)
    at = data.draw(st.integers(0, T))
    for form, where, options in ((fast.recurrent, at, {}), (fast.retrieve_first, at, {}), (fast.chunked, at // 4 * 4, {"chunk": 4})):
        whole = on_fast(form, tokens, S0, **options)
        first, state = on_fast(form, cut(tokens, slice(0, where)), S0, **options)
        second, state = on_fast(form, cut(tokens, slice(where, None)), state, **options)
        equal((np.concatenate([first, second]), state), whole, f"resumed at {where}")
    state = tuple(inputs.tensor(x[None, None], "float32") for x in S0)
    for t in range(T):
        output, state = fast.step(state, *(inputs.tensor(x[t][None, None], "float32") for x in tokens))
        exactly(output[0, 0], titans.recurrent(*cut(tokens, slice(0, t + 1)), S0)[0][t], f"step {t}")


@given(inputs.seeds, st.integers(1, 20), st.data())
def test_the_future_does_not_matter(fast, seed, T, data):
    tokens, S0 = exact_tokens(seed, T)
    at, others = data.draw(st.integers(0, T - 1)), exact_tokens(seed + 1, T)[0]
    changed = [np.concatenate([x[:at], y[at:]]) for x, y in zip(tokens, others, strict=True)]
    for form, options in ((fast.recurrent, {}), (fast.chunked, {"chunk": 16}), (fast.chunked, {"chunk": 3})):
        exactly(on_fast(form, changed, S0, **options)[0][:at], on_fast(form, tokens, S0, **options)[0][:at], "earlier outputs")


@given(inputs.seeds, lengths)
def test_outputs_are_linear_in_values_and_state(seed, T):
    """Jointly; the memory is a linear function of what it is told."""
    tokens, S0 = exact_tokens(seed, T)
    v, S1 = exact_tokens(seed + 1, T)[0][2], exact_tokens(seed + 1, T)[1]
    mixed = [*tokens[:2], tokens[2] + 2 * v, *tokens[3:]]
    for form in (titans.recurrent, titans.chunked, titans.retrieve_first):
        a, b = form(*tokens, S0), form(*tokens[:2], v, *tokens[3:], S1)
        both = form(*mixed, tuple(x + 2 * y for x, y in zip(S0, S1, strict=True)))
        equal(both, (a[0] + 2 * b[0], tuple(x + 2 * y for x, y in zip(a[1], b[1], strict=True))), "of v + 2 v'")


@given(inputs.seeds, st.integers(1, 12))
def test_memory_and_momentum_together_are_affine(seed, T):
    """Stacked, a step is the map [[(1-a)I - t kk, hI], [-t kk, hI]] and the write t [k; k] v."""
    tokens, (memory, momentum) = exact_tokens(seed, T)
    state, eye = np.concatenate([memory, momentum]), np.eye(3)
    for _, k, v, alpha, eta, theta in zip(*tokens, strict=True):
        erase = theta * np.outer(k, k)
        transition = np.block([[(1 - alpha) * eye - erase, eta * eye], [-erase, eta * eye]])
        state = transition @ state + theta * np.outer(np.concatenate([k, k]), v)
    exactly(np.concatenate(titans.recurrent(*tokens, (memory, momentum))[1]), state, "memory over momentum")


@given(inputs.seeds, lengths, st.booleans())
def test_without_momentum_it_is_an_affine_recurrence(seed, T, decays):
    """eta = 0: decay 1 - alpha, and k erases what it reads before the decay; alpha = 0 as well: the delta rule, beta = theta."""
    (q, k, v, alpha, eta, theta), (memory, _) = exact_tokens(seed, T)
    alpha = alpha if decays else 0 * alpha
    state = titans.recurrent(q, k, v, alpha, 0 * eta, theta, (memory, 0 * memory))
    g = np.where(alpha == 1, -np.inf, 0.0)[:, None] * np.ones(3)
    write = theta[:, None] * k
    expected = affine.recurrent(q, write, v, g, k, -write, memory)
    exactly(state[0], expected[0], "outputs")
    exactly(state[1][0], expected[1], "memory")


@given(inputs.seeds)
def test_the_surprise_is_the_gradient_of_half_the_squared_error(seed):
    """A quadratic's central difference is its derivative."""
    rng = np.random.default_rng(seed)
    k, v, memory = rng.integers(-2, 3, 3).astype(float), rng.integers(-2, 3, 2).astype(float), rng.integers(-2, 3, (3, 2)).astype(float)
    loss = lambda m: np.sum((k @ m - v) ** 2) / 2
    moved = titans.step((memory, 0 * memory), k, k, v, 0.0, 0.0, 1.0)[1][1]
    for index in np.ndindex(memory.shape):
        e = np.zeros_like(memory)
        e[index] = 1
        exactly(-moved[index], (loss(memory + e) - loss(memory - e)) / 2, f"gradient {index}")


@given(inputs.seeds, st.permutations([0, 1, 5, 17]))
def test_packed_sequences_are_sequences(fast, seed, sizes):
    """Boundaries inside chunks, one token, none: each has its own start and its own end."""
    parts = [exact_tokens(seed + n, size) for n, size in enumerate(sizes)]
    columns = lambda which: zip(*(part[which] for part in parts), strict=True)
    rows = [inputs.tensor(np.concatenate(column)[None, :, None], "float32") for column in columns(0)]
    S0 = tuple(inputs.tensor(np.stack(column)[:, None], "float32") for column in columns(1))
    ends = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32)
    for form, options in ((fast.recurrent, {}), (fast.retrieve_first, {}), (fast.chunked, {"chunk": 4})):
        output, state = form(*rows, S0, cu_seqlens=ends.to(rows[0].device), **options)
        for n, (tokens, own) in enumerate(parts):
            got = inputs.array(output)[0, ends[n] : ends[n + 1], 0], tuple(inputs.array(x)[n, 0] for x in state)
            equal(got, on_fast(form, tokens, own, **options), f"sequence {n}")


@given(inputs.seeds, inputs.dtypes(), inputs.layouts)
def test_real_numbers_agree_within_the_bound(fast, seed, dtype, layout):
    """Two heads, two sequences; inputs are left as they were."""
    rng = np.random.default_rng(seed)
    q, k, v = inputs.values("normal", [(2, 21, 2, 5), (2, 21, 2, 5), (2, 21, 2, 3)], seed, dtype)
    k = inputs.rounded(k / np.linalg.norm(k, axis=-1, keepdims=True), dtype)
    rates = [inputs.rounded(rng.uniform(0, top, (2, 21, 2)), "float32") for top in (0.5, 0.5, 1.0)]
    tensors = [inputs.tensor(x, dtype, layout) for x in (q, k, v)] + [inputs.tensor(x, "float32") for x in rates]
    contract = {"precision": Precision(dtype, operand="float32"), "outputs": (dtype, "float32", "float32")}
    for name, options in (("recurrent", {}), ("chunked", {"chunk": 8})):
        output, state = getattr(fast, name)(*tensors, **options)
        assert output.dtype == tensors[2].dtype
        form = getattr(titans, name)
        for b, h in ((0, 1), (1, 0)):
            expected = bounded(lambda *x, f=form, o=options: flat(f(*x, **o)), *(x[b, :, h] for x in (q, k, v, *rates)), **contract)
            actual = output[b, :, h], *(x[b, h] for x in state)
            for a, e, what in zip(actual, expected, ("output", "memory", "momentum"), strict=True):
                agree(a, e, f"{what} of {name}")
    for tensor, x in zip(tensors, (q, k, v, *rates), strict=True):
        exactly(tensor, x, "input")


def test_gradients_are_those_of_finite_differences(fast):
    """Of everything, the start state included, through outputs and final state."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.4).to(inputs.target.device()).requires_grad_()
    arguments = [draw(1, 5, 1, 2), draw(1, 5, 1, 2), draw(1, 5, 1, 3), *(draw(1, 5, 1) for _ in RATES), draw(1, 1, 2, 3), draw(1, 1, 2, 3)]
    for form, options in ((fast.recurrent, {}), (fast.retrieve_first, {}), (fast.chunked, {"chunk": 2})):
        run = lambda *x, f=form, o=options: flat(f(*x[:6], x[6:], **o))
        assert torch.autograd.gradcheck(run, arguments)


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "k", {"k": torch.zeros(1, 5, 2, 3)}),
        (TypeError, "v", {"v": torch.zeros(1, 5, 2, 3, dtype=torch.float16)}),
        (ValueError, "eta", {"eta": torch.zeros(1, 5, 2, 1)}),
        (ValueError, "chunk", {"chunk": 0}),
        (ValueError, "S0", {"S0": (torch.zeros(1, 2, 4, 3),)}),
        (ValueError, "S0", {"S0": (torch.zeros(1, 2, 3, 4),) * 2}),
        (TypeError, "S0", {"S0": (torch.zeros(1, 2, 4, 3, dtype=torch.float16),) * 2}),
        (ValueError, "cu_seqlens", {"cu_seqlens": torch.tensor([0, 4])}),
        (ValueError, "cu_seqlens", {"cu_seqlens": torch.tensor([0, 4, 2, 5])}),
        (TypeError, "cu_seqlens", {"cu_seqlens": torch.tensor([0.0, 5.0])}),
    ],
)
def test_bad_input_is_named(fast, error, name, change):
    device = inputs.target.device()
    arguments = {"q": torch.zeros(1, 5, 2, 4), "k": torch.zeros(1, 5, 2, 4), "v": torch.zeros(1, 5, 2, 3)}
    arguments |= {name: torch.zeros(1, 5, 2) for name in RATES} | change
    place = lambda x: tuple(map(place, x)) if isinstance(x, tuple) else x.to(device) if isinstance(x, torch.Tensor) else x
    with pytest.raises(error, match=name):
        fast.chunked(**{name: place(x) for name, x in arguments.items()})
