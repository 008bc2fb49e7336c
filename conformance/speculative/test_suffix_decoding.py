"""Suffix decoding: naive counts, the best connected tree by brute force, the best of all matches, and a text whose law is the target's."""

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.inputs import seeds
from twofold.conformance.law import models
from twofold.conformance.speculative import rounds
from twofold.fast.speculative import suffix_decoding as ours
from twofold.spec.speculative import match, suffix_decoding

alphas = st.sampled_from([Fraction(1, 2), 1, 1.5, 3])


def texts(rng, V):
    """Up to three short texts, each ended by -1, and the text of a request."""
    past = [[*rng.integers(0, V, rng.integers(0, 8)).tolist(), -1] for _ in range(rng.integers(0, 4))]
    return sum(past, []), rng.integers(0, V, rng.integers(1, 12)).tolist()


def occurrences(tokens, substring):
    """How often a substring stands in the texts between the -1s."""
    n = len(substring)
    return sum(tuple(tokens[i : i + n]) == tuple(substring) for i in range(len(tokens) - n + 1))


def followers(tokens, matched, depth):
    """Every continuation of a match up to this depth, with how often it stands in the texts."""
    found, layer = {}, [()]
    for _ in range(depth):
        layer = [(*path, token) for path in layer for token in set(tokens) - {-1} if occurrences(tokens, (*matched, *path, token))]
        found |= {path: occurrences(tokens, (*matched, *path)) for path in layer}
    return found


def below(tokens, matched, most):
    """Every continuation of a match up to `most` tokens deep, with its D."""
    return {path: Fraction(count, occurrences(tokens, matched)) for path, count in followers(tokens, matched, most).items()}


def trees(paths, size):
    """Every connected tree of this many nodes, as a set of paths."""
    found = {frozenset()}
    for _ in range(size):
        found = {tree | {path} for tree in found for path in paths if path not in tree and (len(path) == 1 or path[:-1] in tree)}
    return found


def paths(tokens, parents):
    found = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        found.append((*found[parent], token))
    return found[1:]


@given(seeds, st.integers(1, 3))
def test_counts_are_how_often_a_substring_occurs(seed, V):
    past, own = texts(np.random.default_rng(seed), V)
    tokens = past + own
    trie = suffix_decoding.extend(None, tokens)
    pieces = {tuple(tokens[i:j]) for i, j in product(range(len(tokens)), range(len(tokens) + 1)) if i < j and -1 not in tokens[i:j]}
    for piece in pieces | {(*piece, token) for piece in pieces for token in range(V)}:
        assert trie.count(piece) == occurrences(tokens, piece)
    assert {(*piece, token) for piece, after in trie.followed.items() for token in after} == pieces


@given(seeds, st.integers(0, 8))
def test_a_text_may_be_written_in_pieces_and_the_old_trie_stays(seed, cut):
    past, own = texts(np.random.default_rng(seed), 2)
    tokens = past + own
    start = suffix_decoding.extend(None, tokens[:cut])
    assert suffix_decoding.extend(start, tokens[cut:]) == suffix_decoding.extend(None, tokens)
    assert start == suffix_decoding.extend(None, tokens[:cut])


@given(seeds, st.integers(1, 3), st.integers(0, 4))
@example(seed=7, V=3, size=4)
def test_the_tree_is_the_best_connected_one_of_its_size(seed, V, size):
    """Matches of one token, so that alpha is the number of nodes."""
    past, own = texts(np.random.default_rng(seed), V)
    tokens = past + own
    tree, parents, scores = suffix_decoding.draft([suffix_decoding.extend(None, tokens)], own, size, 1)
    worth = below(tokens, own[-1:], size)
    assert paths(tree, parents) == sorted(set(paths(tree, parents)), key=paths(tree, parents).index)  # no node twice
    assert [worth[path] for path in paths(tree, parents)] == scores[1:] and scores[0] == 1
    assert all(parent < node for node, parent in enumerate(parents))  # connected, parents first
    assert sum(scores[1:]) == max(sum(worth[path] for path in chosen) for chosen in trees(worth, min(size, len(worth))))


@given(seeds, st.integers(1, 3), alphas, st.integers(0, 5))
@example(seed=11, V=2, alpha=1, longest=5)
def test_the_draft_is_the_best_tree_of_all_matches_and_tries(seed, V, alpha, longest):
    """D never grows along a path, so the score of the best tree of n nodes is the sum of the n greatest D."""
    past, own = texts(np.random.default_rng(seed), V)
    tries = [suffix_decoding.extend(None, tokens) for tokens in (own, past)]
    tree, parents, scores = suffix_decoding.draft(tries, own, alpha, longest)
    found = [(0, 0, 0, {})]
    for m, (order, tokens) in product(range(1, min(longest, len(own)) + 1), enumerate([own, past])):
        if occurrences(tokens, own[-m:]):
            worth = below(tokens, own[-m:], floor(alpha * m))
            found.append((sum(sorted(worth.values(), reverse=True)[: floor(alpha * m)]), m, -order, worth))
    score, m, _, worth = max(found, key=lambda each: each[:3])
    assert sum(scores[1:]) == score and len(tree) - 1 <= alpha * m
    assert [worth[path] for path in paths(tree, parents)] == scores[1:]


def drafted(side, tries, *arguments):
    tokens, parents, _ = side.draft([side.extend(None, each) for each in tries], *arguments)
    return tokens, parents


def test_ties_go_to_the_shallower_the_older_parent_and_the_lower_id(fast):
    past = [1, 3, 4, -1, 1, 2, 5, -1]  # all below "1" has D = 1/2
    for side in (suffix_decoding, fast):
        assert drafted(side, [past], [1], 4, 1) == ([-1, 2, 3, 5, 4], [-1, 0, 0, 1, 2])


def test_ties_between_trees_go_to_the_longer_match_and_the_first_trie(fast):
    own, past = [7, 1, 7, 1, 7], [7, 2, -1, 7, 2, -1, 7]  # after 7: twice of three times
    for side in (suffix_decoding, fast):
        assert drafted(side, [own, past], own, 1, 1)[0] == [-1, 1] and drafted(side, [past, own], own, 1, 1)[0] == [-1, 2]
        assert drafted(side, [[8, 7, 5, -1, 7, 6]], [8, 7], Fraction(1, 2), 2)[0] == [-1, 5]  # D = 1, one node
        assert drafted(side, [[8, 7, 5, -1, 9, 7, 5]], [8, 7], 1, 1)[0] == [-1, 5]


@pytest.mark.parametrize(("context", "alpha", "most"), [([1, 2], Fraction(1, 3), 2), ([3], 5, 9), ([4], 5, 9), ([1, 2], 5, 0), ([], 5, 9)])
def test_no_budget_no_continuation_and_no_match_draft_nothing(fast, context, alpha, most):
    """3 stands at the end of its text only, 4 nowhere."""
    for side in (suffix_decoding, fast):
        tokens, parents, scores = side.draft([None, side.extend(None, [1, 2, 3, -1])], context, alpha, most)
        assert (tokens, parents, scores) == ([-1], [-1], [1])


@given(models(2, 4, greatest=2), st.lists(st.integers(0, 1), min_size=1, max_size=5))
def test_rounds_of_trees_and_matching_lose_nothing(target, prompt):
    past = suffix_decoding.extend(None, [0, 1, 1, 0, -1, 1, 0, 0, 1, -1])

    def program(rng):
        text, own = (), suffix_decoding.extend(None, prompt)
        while len(text) < 4:
            tokens, parents, _ = suffix_decoding.draft([own, past], [*prompt, *text], 1, 3)
            contexts = [text] + [(*text, *path) for path in paths(tokens, parents)]
            path, token = match.verify_tree([target(context[:3]) for context in contexts], tokens, parents, rng)
            emitted = [*(tokens[node] for node in path), token]
            text, own = (*text, *emitted), suffix_decoding.extend(own, emitted)
        return text[:4]

    rounds.lossless(program, target, 4)


@given(seeds, st.integers(1, 4), alphas, st.integers(0, 6), st.sampled_from([1, 3, 100]))
@example(seed=3, V=2, alpha=3, longest=6, pieces=3)
@example(seed=9, V=3, alpha=1.5, longest=4, pieces=1)
def test_the_automaton_drafts_the_trees_of_the_trie(fast, seed, V, alpha, longest, pieces):
    rng = np.random.default_rng(seed)
    past, own = texts(rng, V)
    state, spec = None, suffix_decoding.extend(None, own)
    for start in range(0, len(own), pieces):
        state = fast.extend(state, own[start : start + pieces])
    theirs, our = [spec, suffix_decoding.extend(None, past)], [state, fast.extend(None, past)]
    for order in (slice(None), slice(None, None, -1)):
        for context in (own, own[:-1], rng.integers(0, V, 6).tolist()):
            tokens, parents, scores = suffix_decoding.draft(theirs[order], context, alpha, longest)
            assert fast.draft(our[order], context, alpha, longest) == (tokens, parents, [float(score) for score in scores])


def test_a_second_text_shares_what_it_has_and_nothing_before_it(fast):
    """The second text starts with 1, of which the first had "0 1" only; the third makes the same again."""
    past = [0, 1, 2, -1, 1, 3, -1, 0, 1, 3, -1, 2, 0]
    theirs, our = suffix_decoding.extend(None, past), fast.extend(None, past)
    for context in ([0], [1], [0, 1], [2], [1, 3]):
        tokens, parents, scores = suffix_decoding.draft([theirs], context, 3, 3)
        assert fast.draft([our], context, 3, 3) == (tokens, parents, [float(score) for score in scores])
    assert fast.draft([our], [0], 1, 1) == ([-1, 1], [-1, 0], [1.0, 2 / 3])


@pytest.mark.parametrize("V", [2, 30])
def test_in_long_texts_the_likeliest_continuation_is_drafted(fast, V):
    tokens = np.random.default_rng(V).integers(0, V, 3000).tolist()
    trie = fast.extend(None, torch.tensor(tokens))
    for token in range(V):
        after = [occurrences(tokens, (token, each)) for each in range(V)]
        expected = ([-1, int(np.argmax(after))], [-1, 0], [1, max(after) / tokens.count(token)])
        assert fast.draft([trie], torch.tensor([token]), 1, 1) == expected


def test_memory_is_linear():
    trie = ours.extend(None, np.random.default_rng(5).integers(0, 3, 4000).tolist() + [-1] + [1, 2] * 500)
    assert len(trie.texts.counts) <= 2 * 5000


def test_a_trie_that_was_left_behind_says_so(fast):
    old = fast.extend(None, [1, 2])
    fast.extend(old, [1])
    for call in (lambda: fast.extend(old, [5]), lambda: fast.draft([old], [1], 1, 1)):
        with pytest.raises(ValueError, match="the trie has 2 tokens and was extended to 3"):
            call()


def test_wrong_arguments_are_named(fast):
    trie, ids = fast.extend(None, [1]), torch.tensor([1])
    with pytest.raises(TypeError, match="tokens must be a list of ids"):
        fast.extend(None, ids.float())
    with pytest.raises(TypeError, match="context must be a list of ids"):
        fast.draft([trie], ids[None], 1, 1)
    for alpha, longest in ((-1, 1), (1, -1), (float("nan"), 1)):
        with pytest.raises(ValueError, match="alpha and max_match must be at least 0"):
            fast.draft([trie], ids, alpha, longest)
