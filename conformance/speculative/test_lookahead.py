"""Lookahead decoding: the text is the target's, greedy or sampled, whatever stands in window and pool; and one masked pass is many."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree
from twofold.conformance.inputs import seeds
from twofold.conformance.law import autoregressive, law, models
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_jacobi import greedy
from twofold.conformance.speculative.test_tree import V as WORDS
from twofold.conformance.speculative.test_tree import causal, forward, transformer
from twofold.spec.rng import Sampler
from twofold.spec.speculative import jacobi, lookahead, match

V = 3
sizes = st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(0, 3))  # W, N, G


def short(model, longest=3):
    """A model on contexts of any length: only the last tokens count."""
    return lambda context: model(tuple(int(token) for token in context)[-longest:] if longest else ())


def decoded(target, drafter):
    """Three tokens after the prompt 0; nobody but the window drafts."""
    return lambda rng: tuple(lookahead.decode(short(target, 2), [0], 2, 2, 2, 3, rng)[0])


CLAIMS = [Claim("3 tokens, W = N = G = 2", decoded, 3, vocabulary=2, claimed=lambda target, _: lambda text: short(target, 2)((0, *text)))]


def anything(rng, W, N, G, current):
    """A window and a pool with arbitrary tokens in them, which no target has ever written."""
    window = rng.integers(0, V, (N - 1, W))
    window[0, 0] = current
    pool = {}
    for first in range(V):
        pool[first] = np.unique(rng.integers(0, V, (rng.integers(0, G + 1), N - 1)), axis=0).tolist()
    return window, pool


@given(models(V, 4, greatest=2), sizes, seeds)
def test_greedy_text_is_the_targets_for_every_size_window_and_pool(target, size, seed):
    (W, N, G), target, rng = size, short(target), np.random.default_rng(seed)
    text = [int(rng.integers(V))]
    expected = greedy(target, text, 8)
    window, pool = anything(rng, W, N, G, text[0])
    while len(text) < 9:
        emitted, window, pool = lookahead.step(target, text, window, pool, G)
        assert 1 <= len(emitted) <= (N if G else 1)
        text += emitted
    assert text[1:9] == expected
    assert all(len(ngrams) <= G and len({tuple(n) for n in ngrams}) == len(ngrams) for ngrams in pool.values())


@given(models(V, 4, greatest=2), sizes, st.lists(st.integers(0, V - 1), min_size=1, max_size=3), st.integers(0, 7))
def test_decoding_writes_the_greedy_text_in_no_more_calls_than_tokens(target, size, prompt, n):
    tokens, calls = lookahead.decode(short(target), prompt, *size, n)
    assert tokens == greedy(short(target), prompt, n)
    assert n / size[1] <= calls <= n


@given(models(V, 4), sizes, seeds)
def test_one_sampled_step_has_the_targets_law_for_every_pool(target, size, seed):
    (W, N, G), rng = size, np.random.default_rng(seed)
    window, pool = anything(rng, W, N, G, 0)
    program = lambda rng: tuple(lookahead.step(short(target), [0], window, pool, G, rng)[0])
    rounds.lossless(program, lambda text: short(target)((0, *text)), min(N, 3))


@given(models(2, 3, greatest=2), st.sampled_from([(1, 2, 1), (2, 2, 2), (2, 3, 2), (1, 3, 1)]))
def test_sampled_text_over_several_steps_has_the_targets_law(target, size):
    """The pool of a later step depends on earlier draws; those of the step itself are fresh."""
    target = short(target, 2)
    outputs = law(lambda rng: tuple(lookahead.decode(target, [0], *size, 4, rng)[0]))
    assert outputs == autoregressive(lambda text: target((0, *text)), 4)


@given(models(V, 4), seeds)
def test_a_draft_is_met_as_often_as_the_target_writes_what_is_in_the_pool(target, seed):
    window, pool = anything(np.random.default_rng(seed), 1, 3, 3, 0)
    outputs = law(lambda rng: tuple(lookahead.step(short(target), [0], window, pool, 3, rng)[0]))
    firsts = {ngram[0] for ngram in pool[0]}
    assert sum(w for text, w in outputs.items() if len(text) > 1) == sum(target((0,))[v] for v in firsts)


def test_verification_without_drafts_is_a_draw_from_the_target():
    p = lambda context: np.array([0.25, 0.75])
    for seed in range(8):
        emitted = lookahead.step(p, [0], np.zeros((1, 1), int), {}, 2, Sampler(np.random.default_rng(seed)))[0]
        assert emitted == [match.sequential(p([0]), [], Sampler(np.random.default_rng(seed)))[0]]


@given(models(V, 4, greatest=2), st.integers(1, 4), seeds)
def test_a_window_of_one_row_is_a_jacobi_iterate(target, W, seed):
    target, rng = short(target), np.random.default_rng(seed)
    window = rng.integers(0, V, (1, W))
    _, moved, pool = lookahead.step(target, window[0, :1].tolist(), window, {}, W)
    newest = jacobi.iterate(target, window[0, :1].tolist(), [*window[0, 1:].tolist(), 0])
    assert moved[0, 1:].tolist() == newest[1:]
    assert all(following in pool[first] for first, following in zip(window[0].tolist(), ([token] for token in newest)))


def test_the_pool_keeps_the_latest_ngrams_each_once():
    seen = lambda pool, *ngrams: lookahead._collected(pool, ngrams, 2)
    assert seen({}, (0, 1), (0, 2), (1, 1)) == {0: [[1], [2]], 1: [[1]]}
    assert seen({0: [[1], [2]]}, (0, 3)) == {0: [[2], [3]]}, "the oldest goes"
    assert seen({0: [[1], [2]]}, (0, 1), (0, 3)) == {0: [[1], [3]]}, "what comes up again is young again"
    assert lookahead._collected({}, [(0, 1)], 0) == {0: []}


def test_columns_whose_place_was_emitted_leave_on_the_left():
    """A target that counts: three tokens go out, and the window's first column moves on by three places."""
    cycle = lambda context: np.eye(10)[(context[-1] + 1) % 10]
    window = np.array([[0, 5, 6, 7], [8, 8, 3, 8]])
    emitted, moved, _ = lookahead.step(cycle, [0], window, {0: [[1, 2]]}, 1)
    assert emitted == [1, 2, 3] and moved.tolist() == [[3, 8, 8, 8], [4, 9, 9, 9]]


@given(sizes, st.integers(1, 4), seeds)
@example((3, 3, 2), 2, 0)
def test_one_masked_pass_gives_window_and_candidates_what_separate_passes_give(size, text, seed):
    (W, N, G), rng = size, np.random.default_rng(seed)
    weights, before = transformer(rng), text - 1  # the current token ends the text and is the window's first
    window, candidates = rng.integers(0, WORDS, (N - 1, W)), rng.integers(0, WORDS, (G, N - 1))
    row, place = np.arange(N - 1), np.arange(before)
    tokens = np.concatenate([rng.integers(0, WORDS, before), window.ravel(), candidates.ravel()])
    positions = np.concatenate([place, before + np.add.outer(row, np.arange(W)).ravel(), before + 1 + np.tile(row, G)])
    visible = np.tri(len(tokens), dtype=bool)
    visible[before:, before:] = lookahead.mask(W, N, G)
    hidden = forward(weights, tokens, positions, visible)[0]
    index = before + np.arange((N - 1) * W).reshape(N - 1, W)
    branches = [[*index[0, : i + 1], *index[1:, i]] for i in range(W)]
    branches += [[before, *(before + (N - 1) * (W + g) + row)] for g in range(G)]
    for branch in branches:
        rows = [*place, *branch]
        agree(hidden[rows], causal(weights, tokens[rows])[0], "hidden states")


@pytest.mark.parametrize(("call", "message"), [
    (lambda target: lookahead.decode(target, [], 1, 2, 1, 1), "a token long"),
    (lambda target: lookahead.decode(target, [0], 0, 2, 1, 1), "W must be at least 1"),
    (lambda target: lookahead.decode(target, [0], 1, 1, 1, 1), "N at least 2"),
    (lambda target: lookahead.step(target, [1], np.zeros((1, 1), int), {}, 1), "last token of the context"),
    (lambda target: lookahead.decode(lambda context: np.array([np.nan, 1]), [0], 1, 2, 1, 1), "not nan"),
])  # fmt: skip
def test_wrong_arguments_of_the_spec_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda context: np.eye(2)[0])
