"""REST: sorted suffixes, the longest end of the context that goes on, naive counts, the best connected tree, and the target's law."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import models
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_suffix_decoding import followers, occurrences, paths
from twofold.spec.speculative import match, rest, suffix_decoding

budgets = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 6))  # n_max, depth, nodes


def corpus(rng, V, parts=4, longest=8):
    """Short texts, each ended by -1, the last one sometimes not."""
    texts = [rng.integers(0, V, rng.integers(0, longest + 1)).tolist() for _ in range(rng.integers(0, parts + 1))]
    tokens = [token for text in texts for token in [*text, -1]]
    return tokens[: len(tokens) - int(rng.integers(0, 2))]


@given(seeds, st.integers(1, 3))
def test_the_index_is_every_place_sorted_by_what_stands_there(seed, V):
    tokens = corpus(np.random.default_rng(seed), V)
    kept, places = rest.index(tokens)
    assert list(kept) == tokens and sorted(places) == list(range(len(tokens)))
    assert all(tokens[one:] < tokens[other:] for one, other in zip(places, places[1:], strict=False))


@given(seeds, st.integers(1, 3), budgets)
@example(seed=0, V=2, budget=(3, 3, 4))  # a long prefix that stands more often than another token
@example(seed=13, V=2, budget=(3, 3, 4))
@example(seed=40, V=2, budget=(3, 3, 4))
def test_the_tree_is_the_best_connected_one_below_the_longest_match(seed, V, budget):
    rng = np.random.default_rng(seed)
    tokens, context, (n_max, depth, nodes) = corpus(rng, V), rng.integers(0, V, 5).tolist(), budget
    tree, parents, counts = rest.draft(rest.index(tokens), context, n_max, depth, nodes)
    below = {n: followers(tokens, context[5 - n :], depth) for n in range(1, n_max + 1)}
    worth = below[max((n for n in below if below[n]), default=0)] if any(below.values()) else {}
    found = paths(tree, parents)
    assert len(set(found)) == len(found) == min(nodes, len(worth)) and [worth[path] for path in found] == counts[1:]
    assert all(parent < node for node, parent in enumerate(parents))
    assert counts[0] == sum(count for path, count in worth.items() if len(path) == 1)
    chosen = {frozenset()}
    for _ in found:  # all connected trees of this size
        chosen = {tree | {path} for tree in chosen for path in worth if path not in tree and (len(path) == 1 or path[:-1] in tree)}
    assert sum(counts[1:]) == max(sum(worth[path] for path in tree) for tree in chosen)
    assert found == sorted(found, key=lambda path: (-worth[path], len(path), path))


@given(seeds, st.integers(1, 3), st.integers(1, 6))
def test_below_one_token_it_counts_as_suffix_decoding_does(seed, V, nodes):
    rng = np.random.default_rng(seed)
    tokens, context = corpus(rng, V), [0]
    counts = rest.draft(rest.index(tokens), context, 1, 9, nodes)[2]
    worth = suffix_decoding.draft([suffix_decoding.extend(None, tokens)], context, nodes, 1)[2]
    stands = tokens.count(0)  # how often it goes on is the root's count there
    assert counts[1:] == [each * stands for each in worth[1:]]


def test_an_end_of_text_is_no_match(fast):
    """3 4 stands at the end of a text only; 4 goes on elsewhere. Nothing is copied across the end."""
    tokens = [3, 4, -1, 9, 4, 7, -1, 7, 9]
    expected = ([-1, 7], [-1, 0], [1, 1])
    assert rest.draft(rest.index(tokens), [3, 4], 2, 2, 5) == expected
    tree = fast.draft(fast.index(torch.tensor(tokens)), torch.tensor([[3, 4], [0, 9]]), 2, 2, 2)
    assert [each.tolist() for each in tree] == [[[-1, 7, -1], [-1, 4, 7]], [[-1, 0, -1], [-1, 0, 1]], [[1, 1, -1], [1, 1, 1]], [2, 3]]


@given(models(2, 4, greatest=2), st.lists(st.integers(0, 1), min_size=1, max_size=4))
def test_rounds_of_trees_and_matching_lose_nothing(target, prompt):
    store = rest.index([0, 1, 1, 0, -1, 1, 0, 0, 1, -1])

    def program(rng):
        text = ()
        while len(text) < 4:
            tokens, parents, _ = rest.draft(store, [*prompt, *text], 3, 2, 3)
            contexts = [text] + [(*text, *path) for path in paths(tokens, parents)]
            path, token = match.verify_tree([target(context[:3]) for context in contexts], tokens, parents, rng)
            text = (*text, *(tokens[node] for node in path), token)
        return text[:4]

    rounds.lossless(program, target, 4)


TEXTS = {
    "short": lambda rng: corpus(rng, 2),
    "longer": lambda rng: corpus(rng, 3, parts=6, longest=60),
    "many ids": lambda rng: corpus(rng, 40, parts=3, longest=60),
    "one id": lambda rng: [0] * int(rng.integers(1, 40)),
    "empty": lambda rng: [],
}


@given(st.sampled_from(sorted(TEXTS)), seeds)
@example("one id", 1)
@example("empty", 1)
def test_the_suffix_array_is_the_specs(fast, kind, seed):
    tokens = np.array(TEXTS[kind](np.random.default_rng(seed)), dtype=int)
    store = fast.index(tensor(tokens))
    exactly(array(store[0]), tokens, "tokens")
    exactly(array(store[1]), np.array(rest.index(tokens.tolist())[1], dtype=int), "places")


@given(st.sampled_from(sorted(TEXTS)), seeds, budgets, st.integers(0, 7), st.sampled_from(["int64", "int32"]))
@example("short", 5, (4, 3, 6), 5, "int64")
@example("longer", 6, (4, 3, 6), 7, "int32")
@example("longer", 7, (2, 3, 40), 7, "int64")
@example("one id", 8, (4, 3, 6), 7, "int64")
@example("empty", 9, (4, 3, 2), 3, "int64")
def test_trees_of_a_ragged_batch_are_the_specs(fast, kind, seed, budget, L, dtype):
    rng = np.random.default_rng(seed)
    tokens = TEXTS[kind](rng)
    contexts, lengths = rng.integers(0, 3, (4, L)), rng.integers(0, L + 1, 4)
    for b in range(0, 4, 2):  # ends of contexts that stand in the text
        n = min(L, len(tokens))
        start = int(rng.integers(0, len(tokens) - n + 1))
        contexts[b, L - n :], lengths[b] = tokens[start : start + n], L
    store = fast.index(tensor(np.array(tokens, dtype=int), dtype))
    tree = [array(each) for each in fast.draft(store, tensor(contexts, dtype), *budget, lengths=tensor(lengths))]
    for b, n in enumerate(lengths.tolist()):
        expected = rest.draft(rest.index(tokens), contexts[b, :n].tolist(), *budget)
        for ours, theirs, what in zip(tree, expected, ("tokens", "parents", "counts"), strict=False):
            exactly(ours[b], np.array(theirs + [-1] * (budget[2] + 1 - len(theirs)), dtype=ours.dtype), what)
        assert tree[3][b] == len(expected[0])


@given(seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, seed):
    rng = np.random.default_rng(seed)
    store = fast.index(tensor(np.array(corpus(rng, 3, parts=9, longest=30), dtype=int)))
    contexts = tensor(rng.integers(0, 3, (5, 6)))
    together = fast.draft(store, contexts, 4, 3, 5)
    for b in range(5):
        alone = fast.draft(store, contexts[b : b + 1], 4, 3, 5)
        assert all(torch.equal(one[0], all_[b]) for one, all_ in zip(alone, together, strict=True))


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    store, context = fast.index(torch.tensor([1, 2, 3, -1])), torch.tensor([[1, 2], [1, 2]])
    tree = fast.draft(store, context, 2, 1, 1, lengths=torch.tensor([-4, 9]))
    assert tree[0].tolist() == [[-1, -1], [-1, 3]] and tree[3].tolist() == [1, 2]
    assert [len(each) for each in fast.draft(store, context[:0], 2, 1, 1)] == [0, 0, 0, 0]
    assert context.tolist() == [[1, 2], [1, 2]] and store[0].tolist() == [1, 2, 3, -1]


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(n_max=-1), "n_max must be"), (dict(depth=-1), "depth must be"), (dict(nodes=-2), "nodes must be"),
    (dict(context=torch.zeros(3, dtype=torch.int64)), r"context must have shape \(B, L\)"),
    (dict(context=torch.zeros(2, 3)), "context must have dtype"), (dict(lengths=torch.zeros(3, dtype=torch.int64)), "lengths must have"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    right = dict(store=fast.index(torch.tensor([1])), context=torch.zeros(2, 3, dtype=torch.int64), n_max=1, depth=1, nodes=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**right | wrong)
    for tokens in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises((ValueError, TypeError), match="tokens must have"):
            fast.index(tokens)


def test_every_context_of_a_text_finds_itself(fast):
    tokens = np.random.default_rng(2).integers(0, 50, 300)
    store = fast.index(tensor(tokens))
    contexts = np.stack([tokens[end - 4 : end] for end in range(4, 300)])
    tree = fast.draft(store, tensor(contexts), 4, 1, 1)
    alone = [end for end, row in enumerate(contexts, 4) if occurrences(tokens.tolist(), row) == 1]
    assert len(alone) > 250
    exactly(array(tree[0])[np.array(alone) - 4, 1], tokens[alone], "the token that follows")
