"""The suffix automaton against brute force, after every token of every short text; and its fast twin against it, on texts made to split."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.inputs import seeds
from twofold.conformance.law import models
from twofold.conformance.speculative import rounds
from twofold.fast.speculative import suffix_automaton as ours
from twofold.spec.speculative import chain, prompt_lookup, suffix_automaton

ALPHABETS = [(1, 6), (2, 8), (3, 5)]  # ids, and the length of the texts that are made of them, all of them


def grown(V, most, text=(), state=None):
    """Every text over V ids with its state, each state extended from that of the text's prefix."""
    yield list(text), state
    if len(text) < most:
        for token in range(V):
            yield from grown(V, most, (*text, token), suffix_automaton.extend(state, token))


def of(text):
    state = None
    for token in text:
        state = suffix_automaton.extend(state, token)
    return state


def ends(text, piece):
    n = len(piece)
    return tuple(end for end in range(n, len(text) + 1) if text[end - n : end] == piece)


@pytest.mark.parametrize(("V", "most"), ALPHABETS)
def test_match_and_draft_are_those_of_brute_force_after_every_token(V, most):
    for text, state in grown(V, most):
        L = len(text)
        matches = [(n, ends(text, text[L - n :])) for n in range(L) if len(ends(text, text[L - n :])) > 1 and n]
        n, found = matches[-1] if matches else (0, (L, L))  # the longest suffix that ends twice, and where
        for last, end in ((False, found[0]), (True, found[-2])):
            for gamma in (0, 1, 3, L):
                assert suffix_automaton.draft(state, gamma, last) == text[end : end + gamma], (text, gamma, last)
        if text:
            assert state.classes[state.classes[state.whole].link].longest == n


@pytest.mark.parametrize(("V", "most"), [(1, 5), (2, 7), (3, 4)])
def test_classes_are_the_sets_of_ends_and_hold_their_substrings_by_the_edges(V, most):
    for text, state in grown(V, most):
        pieces = {tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
        longest = {}
        for piece in sorted(pieces, key=len):
            longest[ends(text, list(piece))] = len(piece)
        assert {each.ends: each.longest for each in (state or suffix_automaton.State()).classes[1:]} == longest
        for piece in product(range(V), repeat=3):
            at = 0
            for token in piece:
                at = state.classes[at].edges.get(token) if state and at is not None else None
            assert (at is not None) == (piece in pieces)
            assert at is None or state.classes[at].ends == ends(text, list(piece))


@pytest.mark.parametrize(("V", "most"), ALPHABETS)
def test_there_are_at_most_two_classes_per_token(V, most):
    assert all(len(state.classes) <= 2 * len(text) for text, state in grown(V, most) if text)
    assert len(of([0] + [1] * 20).classes) == 2 * 21 - 1  # as many as there can be


@pytest.mark.parametrize("last", [False, True])
def test_it_is_prompt_lookup_without_a_greatest_length(last):
    for text, state in grown(2, 8):
        assert suffix_automaton.draft(state, 4, last) == prompt_lookup.draft(text, len(text), 1, 4, last)


@given(models(2, 4), st.lists(st.integers(0, 1), min_size=1, max_size=5), st.booleans())
def test_rounds_of_drafts_and_verification_lose_nothing(target, prompt, last):
    def program(rng):
        text, state = [], of(prompt)
        while len(text) < 4:
            draft = suffix_automaton.draft(state, min(2, 3 - len(text)), last)
            kept, token = chain.verify_onehot([target(text + draft[:i]) for i in range(len(draft) + 1)], draft, rng)
            for each in [*draft[:kept], token]:
                text, state = [*text, each], suffix_automaton.extend(state, each)
        return tuple(text)

    rounds.lossless(program, target, 4)


def fibonacci(rng, length):
    """0, 01, 010, 01001, …: every prefix repeats, at distances that never settle, so that states are split again and again."""
    text, following = [0], [0, 1]
    while len(text) < length:
        text, following = following, following + text
    return text[:length]


TEXTS = {
    "binary": lambda rng, length: rng.integers(0, 2, length).tolist(),
    "few": lambda rng, length: rng.integers(0, 4, length).tolist(),
    "many": lambda rng, length: rng.integers(0, 60, length).tolist(),
    "one": lambda rng, length: [7] * length,
    "fibonacci": fibonacci,
    "periodic": lambda rng, length: np.where(rng.random(length) < 0.05, 9, np.arange(length) % 5).tolist(),
}


@given(st.sampled_from(sorted(TEXTS)), seeds, st.sampled_from([0.0, 0.3, 1.0]))
@example("binary", 1, 0.3)
@example("fibonacci", 0, 1.0)
@example("periodic", 3, 0.1)
def test_the_fast_automaton_drafts_the_same_after_every_token(fast, kind, seed, asked):
    """Last ends are asked for now and then only: how often one asks must not matter."""
    rng = np.random.default_rng(seed)
    text, spec, state = TEXTS[kind](rng, 60), None, None
    for token in text:
        spec, state = suffix_automaton.extend(spec, token), fast.extend(state, token)
        assert fast.draft(state, 60) == suffix_automaton.draft(spec, 60)
        if rng.random() < asked:
            assert fast.draft(state, 60, last=True) == suffix_automaton.draft(spec, 60, last=True)
    assert fast.draft(state, 3, last=True) == suffix_automaton.draft(spec, 3, last=True)


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_long_texts_are_drafted_as_by_lookup(fast, kind):
    text, state = TEXTS[kind](np.random.default_rng(8), 240), None
    for start in range(0, 240, 60):
        state = fast.extend(state, text[start : start + 60])
        for last in (False, True):
            assert fast.draft(state, 5, last) == prompt_lookup.draft(text[: start + 60], 240, 1, 5, last)


def test_memory_is_linear():
    for make in TEXTS.values():
        state = ours.extend(None, make(np.random.default_rng(5), 3000))
        assert len(state.text.automaton.links) <= 2 * 3000


def test_tokens_may_come_one_by_one_or_together(fast):
    text = [3, 1, 3, 1, 4, 3, 1]
    together = [fast.extend(None, form) for form in (text, torch.tensor(text), torch.tensor(text, dtype=torch.int32), np.array(text))]
    one_by_one = None
    for token in [3, np.int64(1), torch.tensor(3), *text[3:]]:
        one_by_one = fast.extend(one_by_one, token)
    for state in [*together, one_by_one, fast.extend(one_by_one, [])]:
        assert fast.draft(state, 4) == [3, 1, 4, 3] and fast.draft(state, 4, last=True) == [4, 3, 1]


def test_no_text_and_new_tokens_draft_nothing(fast):
    assert fast.draft(None, 5) == fast.draft(fast.extend(None, []), 5) == fast.draft(fast.extend(None, [1, 2, 3]), 5) == []
    assert fast.draft(fast.extend(None, [1, 1]), 0) == []


def test_a_state_that_was_left_behind_says_so(fast):
    old = fast.extend(None, [1, 2])
    new = fast.extend(old, 1)
    for call in (lambda: fast.extend(old, 5), lambda: fast.draft(old, 2)):
        with pytest.raises(ValueError, match="state has 2 tokens and was extended to 3"):
            call()
    assert fast.draft(new, 2) == [2, 1]


@pytest.mark.parametrize("token", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)])
def test_wrong_arguments_are_named(fast, token):
    with pytest.raises(TypeError, match="token must be an id"):
        fast.extend(None, token)
    with pytest.raises(ValueError, match="gamma must be"):
        fast.draft(fast.extend(None, 1), -1)
