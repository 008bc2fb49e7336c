"""The n-gram model: exact laws of its rows, and the packed tables equal to the counted ones within the roundings of the recursion."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.inputs import array, seeds
from twofold.spec.speculative import ngram_lm

texts = st.integers(1, 4).flatmap(lambda V: st.tuples(st.just(V), st.lists(st.integers(0, V - 1), max_size=30)))
orders = st.integers(1, 5)
ONE = Fraction(1)


@given(texts, orders, st.lists(st.integers(0, 3), max_size=6))
def test_rows_sum_to_one_and_leave_nothing_out(text, order, context):
    V, tokens = text
    row = ngram_lm.probs(ngram_lm.fit(tokens, order, V), context, ONE)
    assert row.sum() == 1 and all(probability > 0 for probability in row)


@given(texts, orders, st.data())
def test_the_row_is_the_recursion(text, order, data):
    """Counted anew from the text, longest context first: the definition as the paper's recursion."""
    V, tokens = text
    context = data.draw(st.lists(st.integers(0, V - 1), max_size=5))

    def recursion(c):
        if c is None:
            return [Fraction(1, V)] * V
        after = Counter(tokens[i + len(c)] for i in range(len(tokens) - len(c)) if tokens[i : i + len(c)] == c)
        shorter = recursion(c[1:] if c else None)
        total = sum(after.values()) + len(after)
        return [(after[v] + len(after) * shorter[v]) / total for v in range(V)] if total else shorter

    expected = recursion(context[max(0, len(context) - order + 1) :] if order > 1 else [])
    assert ngram_lm.probs(ngram_lm.fit(tokens, order, V), context, ONE).tolist() == expected


@given(texts, st.lists(st.integers(0, 3), max_size=4))
def test_order_one_is_the_smoothed_unigram(text, context):
    V, tokens = text
    counts = np.bincount(np.array(tokens, dtype=int), minlength=V)
    distinct = int((counts > 0).sum())
    expected = [(Fraction(int(n)) + Fraction(distinct, V)) / (len(tokens) + distinct) if tokens else Fraction(1, V) for n in counts]
    assert ngram_lm.probs(ngram_lm.fit(tokens, 1, V), context, ONE).tolist() == expected


@given(texts, orders, st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_only_the_last_tokens_matter(text, order, before, context):
    V, tokens = text
    model = ngram_lm.fit(tokens, order, V)
    last = context[max(0, len(context) - order + 1) :] if order > 1 else []
    if len(last) == order - 1:
        assert ngram_lm.probs(model, before + context, ONE).tolist() == ngram_lm.probs(model, last, ONE).tolist()


@given(seeds, st.sampled_from([1, 2, 5, 96, 256]), orders, st.sampled_from([0, 1, 2, 50, 400]), st.sampled_from([0, 1, 4, 7]))
@example(seed=0, V=2, order=4, length=50, width=4)  # the text's start and an unknown token, within the model's reach
def test_tables_agree_with_counting(fast, seed, V, order, length, width):
    """Per order four operations on positive numbers, each of one rounding: 1 / V first, then two roundings more for the quotient."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.geometric(0.4, length) - 1, V - 1)  # repetitive, so that contexts recur
    contexts = np.minimum(rng.geometric(0.4, (6, width)) - 1, V - 1)
    if width > 1 and length > width:
        contexts[0] = tokens[:width]
        contexts[1, : width // 2] = -1  # the text began later
        contexts[2, -2] = V + 3  # a token nobody has seen
    model, counted = fast.fit(torch.from_numpy(tokens), order, V), ngram_lm.fit(tokens.tolist(), order, V)
    rows = array(fast.probs(model, torch.from_numpy(contexts)))
    assert rows.shape == (6, V)
    for row, context in zip(rows, contexts.tolist(), strict=True):
        known = [token for token in context if token >= 0]
        expected = ngram_lm.probs(counted, known, ONE)
        assert all(abs(Fraction(x) - e) <= 6 * (order + 1) * Fraction(1, 2**24) * e for x, e in zip(row, expected, strict=True))


def test_leading_axes_are_free(fast):
    model = fast.fit(torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8), 3, 2)
    contexts = torch.tensor([[[0, 1], [1, 1], [-1, 0]]], dtype=torch.int32)
    together = fast.probs(model, contexts)
    assert together.shape == (1, 3, 2) and together.dtype == torch.float32
    assert torch.equal(together[0, 1], fast.probs(model, torch.tensor([1, 1])))
    assert torch.equal(together[0, 2], fast.probs(model, torch.tensor([0])))


@pytest.mark.parametrize(("arguments", "message"), [
    ((torch.tensor([0, 3]), 2, 3), "tokens must lie in 0"),
    ((torch.tensor([0]), 0, 3), "at least 1"), ((torch.tensor([0]), 8, 256), "below 2"),
    ((torch.tensor([0.5]), 2, 3), "tokens must have dtype"), ((torch.tensor([[0]]), 2, 3), "tokens must have shape"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.fit(*arguments)
    with pytest.raises(TypeError, match="context"):
        fast.probs(fast.fit(torch.tensor([0]), 1, 2), [0])


def test_it_compiles(fast):
    model = fast.fit(torch.tensor([0, 1, 1, 0, 1]), 3, 2)
    compiled = torch.compile(lambda context: fast.probs(model, context), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([[0, 1]])), fast.probs(model, torch.tensor([[0, 1]])))
