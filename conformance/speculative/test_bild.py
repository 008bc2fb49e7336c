"""Two thresholds between a small and a large model: limits, what every token satisfies, and the batched text."""

from math import exp, inf

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import models
from twofold.spec.speculative import bild

fallbacks = st.sampled_from([0.0, 0.5, 0.7, 1.0, 1.5])
rollbacks = st.sampled_from([0.0, 0.3, 1.0, 3.0, inf])


@st.composite
def pairs(draw, vocabulary=3, length=4):
    """A small and a large model in floats, a row of their own after every context of fewer than `length` tokens."""
    tables = [draw(models(vocabulary, length)) for _ in range(2)]
    return [lambda context, table=table: table(context[: length - 1]).astype(float) for table in tables]


def greedy(model, n):
    text = []
    for _ in range(n):
        text.append(int(np.argmax(model(text))))
    return text


@given(pairs(), fallbacks, st.integers(0, 4))
def test_with_no_surprise_allowed_the_text_is_the_large_models(pair, fallback, n):
    new, calls = bild.generate(*pair, [], fallback, 0.0, n)
    assert new == greedy(pair[1], n) and calls <= n


@given(pairs(), rollbacks, st.integers(0, 4))
def test_a_small_model_that_is_never_sure_writes_nothing(pair, rollback, n):
    assert bild.generate(*pair, [], 1.5, rollback, n) == (greedy(pair[1], n), n)


@given(pairs(), st.integers(1, 4))
def test_a_small_model_that_is_always_sure_and_never_surprises_writes_everything(pair, n):
    assert bild.generate(*pair, [], 0.0, inf, n) == (greedy(pair[0], n), 1)


@given(pairs(), fallbacks, rollbacks, st.integers(0, 4))
def test_two_equal_models_write_the_greedy_text_at_any_thresholds(pair, fallback, rollback, n):
    assert bild.generate(pair[1], pair[1], [], fallback, rollback, n)[0] == greedy(pair[1], n)


@given(pairs(), fallbacks, rollbacks, st.integers(0, 4))
def test_every_token_is_the_large_models_choice_or_one_that_it_lets_pass(pair, fallback, rollback, n):
    small, large = pair
    new, calls = bild.generate(small, large, [], fallback, rollback, n)
    assert len(new) == n and calls <= n
    for i, x in enumerate(new):
        q, p = small(new[:i]), large(new[:i])
        passed = q.max() >= fallback and x == np.argmax(q) and p[x] >= exp(-rollback)
        assert passed or x == np.argmax(p)
        assert passed or not (q.max() >= fallback and p[np.argmax(q)] >= exp(-rollback))  # what passes is not replaced


def test_the_text_goes_on_behind_what_was_taken_back():
    """Small counts up; large finds 2 after 1 impossible and says 0 there."""
    small = lambda context: np.eye(4)[min(len(context), 3)]
    large = lambda context: np.array([1.0, 0, 0, 0]) if len(context) == 2 else np.full(4, 0.25)
    assert bild.generate(small, large, [], 0.5, 2.0, 5) == ([0, 1, 0, 3, 3], 2)


def test_a_large_model_that_breaks_is_an_error():
    broken = lambda context: np.array([np.nan, 0.5])
    for rollback in (0.0, inf):
        with pytest.raises(ValueError, match="must be numbers"):
            bild.generate(lambda context: np.eye(2)[0], broken, [], 0.5, rollback, 2)


# The batch


def tables(rng):
    """Two models of three tokens as tables: a row after nothing and after each last token, in eighths."""
    return [rng.multinomial(8, rng.dirichlet(np.full(3, 0.5), 4)) / 8 for _ in range(2)]


def batched(table):
    table = tensor(table, "float32")
    return lambda tokens, ends: table[torch.where(ends > 0, 1 + tokens.gather(1, (ends - 1).clamp(min=0)), 0)]


@given(seeds, st.sampled_from([0.0, 0.5, 0.625, 1.0, 1.5]), rollbacks, st.integers(0, 6), st.sampled_from(["int64", "int32"]))
@example(42, 0.625, 1.0, 6, "int64")  # texts of different lengths, a confidence on the threshold, tokens taken back
def test_a_batch_is_its_requests(fast, seed, fallback, rollback, n, dtype):
    small, large = tables(np.random.default_rng(seed))
    prompts = [[], [2], [0, 1], [1]]
    padded = tensor(np.array([prompt + [10**6] * (3 - len(prompt)) for prompt in prompts]), dtype)
    lengths = tensor(np.array([len(prompt) for prompt in prompts]))
    new, calls = fast.generate(batched(small), batched(large), padded, fallback, rollback, n, lengths=lengths)
    row = lambda table: lambda context: table[context[-1] + 1 if len(context) else 0]
    expected = [bild.generate(row(small), row(large), prompt, fallback, rollback, n) for prompt in prompts]
    exactly(array(new), np.array([text for text, _ in expected], dtype=np.int64), "text")
    exactly(array(calls), np.array([count for _, count in expected], dtype=np.int64), "calls")


def test_a_text_that_is_done_asks_no_model_again(fast):
    asked = []
    certain = lambda tokens, ends: torch.eye(2)[torch.ones_like(ends)]
    unsure = lambda tokens, ends: asked.append(len(ends)) or torch.where(ends[:, :, None] > 1, torch.full((2,), 0.5), torch.eye(2)[1])
    new, calls = fast.generate(unsure, certain, torch.tensor([[0, 0], [0, 0]]), 0.75, 1.0, 2, lengths=torch.tensor([2, 0]))
    assert new.tolist() == [[1, 1], [1, 1]] and calls.tolist() == [2, 1] and asked == [2, 1, 1]


def test_edges_and_broken_rows(fast):
    certain, broken = (lambda tokens, ends: torch.eye(2)[ends * 0]), (lambda tokens, ends: torch.full((*ends.shape, 2), torch.nan))
    prompt = torch.tensor([[1]])
    assert fast.generate(certain, certain, prompt[:0], 0.5, 1.0, 3)[0].shape == (0, 3)
    assert fast.generate(certain, certain, prompt, 0.5, 1.0, 0)[0].shape == (1, 0)
    assert fast.generate(broken, certain, prompt, 0.0, 1.0, 2)[0].tolist() == [[0, 0]]  # the small one hands over
    with pytest.raises(ValueError, match="large holds a NaN"):
        fast.generate(certain, broken, prompt, 0.5, 1.0, 2)
    with pytest.raises(ValueError, match="large holds a NaN"):
        fast.generate(certain, broken, prompt, 0.5, inf, 2)
    assert prompt.tolist() == [[1]]


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(prompt=torch.zeros(2)), "prompt must have shape"), (dict(prompt=torch.zeros(1, 2)), "prompt must have dtype"),
    (dict(n=-1), "n must be at least 0"), (dict(rollback=-0.5), "rollback and n must"), (dict(fallback=float("nan")), "fallback, rollback"),
    (dict(lengths=torch.tensor([1, 2])), "lengths must have shape"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    certain = lambda tokens, ends: torch.eye(2)[ends * 0]
    right = dict(small=certain, large=certain, prompt=torch.tensor([[0]]), fallback=0.5, rollback=1.0, n=2)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.generate(**right | arguments)
