"""Token recycling: the likeliest tokens of the last row that was scored, trees of a given shape, and a text whose law is the target's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, rounded, seeds, tensor
from twofold.conformance.law import models
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import greedy, match, recycling


def a_matrix(rng, V, k):
    """Known successors, distinct, then unknown ones."""
    known = rng.integers(0, k + 1, V)
    return np.array([np.where(np.arange(k) < n, np.resize(rng.permutation(V), k), -1) for n in known], dtype=int).reshape(V, k)


def laws(rng, *shape):
    """Rows with ties and zeros."""
    weights = rng.integers(0, 4, shape).astype(float)
    weights[..., 0] += weights.sum(-1) == 0
    return rounded(weights / weights.sum(-1, keepdims=True), "float32")


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(0, 7))
def test_each_token_keeps_the_likeliest_of_its_last_row_in_order(seed, V, k, N):
    rng = np.random.default_rng(seed)
    before, tokens, p = a_matrix(rng, V, k), rng.integers(0, V, N), laws(rng, N, V)
    after = recycling.update(before, tokens, p)
    for token in range(V):
        if token in tokens:
            row = p[np.flatnonzero(tokens == token)[-1]]
            ranked = sorted((v for v in range(V) if row[v] > 0), key=lambda v: (-row[v], v))[:k]
            assert after[token].tolist() == ranked + [-1] * (k - len(ranked))
        else:
            assert after[token].tolist() == before[token].tolist()


@given(seeds, st.integers(1, 5), st.integers(1, 4), rounds.shapes)
def test_the_tree_has_every_node_whose_path_of_successors_is_known(seed, V, k, parents):
    rng = np.random.default_rng(seed)
    matrix, token = a_matrix(rng, V, k), int(rng.integers(0, V))
    walked = {0: (token,)}  # of each place of the shape the tokens from the root down, walked anew from the root
    for place in range(1, len(parents)):
        rank = sum(parents[sibling] == parents[place] for sibling in range(1, place))
        above = walked.get(parents[place])
        successor = matrix[above[-1]][rank] if above and rank < k else -1
        if successor >= 0:
            walked[place] = (*above, int(successor))
    tokens, up = recycling.draft(matrix, token, parents)
    found = [(token,)]
    for each, parent in zip(tokens[1:], up[1:], strict=True):
        found.append((*found[parent], each))
    assert found == list(walked.values()) and tokens[0] == up[0] == -1
    assert all(parent < node for node, parent in enumerate(up))


@given(models(3, 2), st.integers(0, 2))
def test_a_text_that_depends_on_its_last_token_alone_is_foreseen_once_all_tokens_were_scored(target, token):
    rows = np.array([target((token,)) for token in range(3)])
    matrix = recycling.update(np.full((3, 2), -1), range(3), rows)
    chain = recycling.draft(matrix, token, [-1, 0, 1, 2, 3])[0][1:]
    kept, _ = greedy.verify([rows[each] for each in [token, *chain]], chain)
    assert kept == 4


@given(models(2, 4, greatest=2), st.integers(0, 1), st.sampled_from([[-1, 0], [-1, 0, 0, 1], [-1, 0, 1, 1, 0]]))
def test_rounds_that_recycle_every_row_lose_nothing(target, last, shape):
    def program(rng):
        text, matrix = (), np.full((2, 2), -1)
        while len(text) < 4:
            token = text[-1] if text else last
            tokens, parents = recycling.draft(matrix, token, shape)
            contexts = [text]
            for node in range(1, len(tokens)):
                contexts.append((*contexts[parents[node]], tokens[node]))
            p = [target(context[:3]) for context in contexts]
            path, drawn = match.verify_tree(p, tokens, parents, rng)
            matrix = recycling.update(matrix, [token, *tokens[1:]], p)
            text = (*text, *(tokens[node] for node in path), drawn)
        return text[:4]

    rounds.lossless(program, target, 4)


def test_rows_of_fractions_and_rows_that_are_no_law():
    matrix = recycling.update(np.full((3, 2), -1), [1], np.array([[Fraction(1, 2), Fraction(0), Fraction(1, 2)]], dtype=object))
    assert matrix.tolist() == [[-1, -1], [0, 2], [-1, -1]]
    with pytest.raises(ValueError, match="probabilities must be numbers of at least 0"):
        recycling.update(matrix, [1], np.array([[np.nan, 0.5, 0.5]]))


ids = st.sampled_from(["int64", "int32"])


@given(seeds, st.sampled_from([1, 2, 7, 40]), st.sampled_from([1, 3, 8]), st.sampled_from([0, 1, 5, 50]), ids)
@example(1, 2, 3, 5, "int64")
@example(2, 7, 8, 50, "int32")
def test_the_matrix_after_a_ragged_batch_is_the_specs(fast, seed, V, k, N, dtype):
    rng = np.random.default_rng(seed)
    before, tokens, p = a_matrix(rng, V, k), rng.integers(0, V, (3, N)), laws(rng, 3, N, V)
    lengths = rng.integers(0, N + 1, 3)
    expected = before
    for b, n in enumerate(lengths.tolist()):
        expected = recycling.update(expected, tokens[b, :n], p[b, :n])
        p[b, n:] = np.nan  # what was not scored is not read
    given_ = tensor(before, dtype)
    after = fast.update(given_, tensor(tokens, dtype), tensor(p, "float32"), lengths=tensor(lengths))
    exactly(array(after).astype(int), expected, "matrix")
    exactly(array(given_).astype(int), before, "the old matrix")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ties_zeros_and_subnormal_numbers_are_told_apart(fast, dtype):
    tiny = float(torch.finfo(getattr(torch, dtype)).smallest_normal)
    row = torch.tensor([[[0.0, tiny, -0.0, 0.5, tiny, 0.5]]], dtype=getattr(torch, dtype))
    after = fast.update(torch.full((6, 6), -1), torch.tensor([[4]]), row)
    assert after[4].tolist() == [3, 5, 1, 4, -1, -1] and (after[:4] == -1).all()


@pytest.mark.parametrize("wrong", [float("nan"), -0.5])
def test_a_row_that_is_no_law_has_no_successors(fast, wrong):
    p = torch.tensor([[[0.5, 0.5, wrong], [0.0, 0.0, 1.0]]])
    after = fast.update(torch.full((3, 2), 1), torch.tensor([[0, 2]]), p)
    assert after.tolist() == [[-1, -1], [1, 1], [2, -1]]


def test_ids_outside_the_vocabulary_are_ignored(fast):
    matrix, p = torch.tensor([[1], [0]]), torch.full((1, 3, 2), 0.5)
    assert fast.update(matrix, torch.tensor([[-1, 2, 9]]), p).tolist() == [[1], [0]]
    tokens, parents, lengths = fast.draft(matrix, torch.tensor([-1, 2, 0]), [-1, 0, 1])
    assert tokens.tolist() == [[-1, -1, -1], [-1, -1, -1], [-1, 1, 0]] and lengths.tolist() == [1, 1, 3]
    assert parents.tolist() == [[-1, -1, -1], [-1, -1, -1], [-1, 0, 1]]


@given(seeds, st.integers(1, 6), st.integers(1, 4), rounds.shapes, ids)
@example(1, 5, 2, [-1, 0, 0, 0, 1, 1, 2, 4, 4], "int64")
@example(2, 5, 3, [-1, 0, 0, 1, 1, 3, 3, 5], "int32")
def test_trees_of_a_batch_are_the_specs(fast, seed, V, k, parents, dtype):
    rng = np.random.default_rng(seed)
    matrix, token = a_matrix(rng, V, k), rng.integers(0, V, 4)
    tokens, up, lengths = (array(each).astype(int) for each in fast.draft(tensor(matrix, dtype), tensor(token, dtype), parents))
    for b in range(4):
        expected = recycling.draft(matrix, token[b], parents)
        for ours, theirs, what in ((tokens, expected[0], "tokens"), (up, expected[1], "parents")):
            exactly(ours[b], np.array(theirs + [-1] * (len(parents) - len(theirs))), what)
        assert lengths[b] == len(expected[0])


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(matrix=torch.zeros(3)), "matrix must have shape"), (dict(matrix=torch.zeros(3, 2)), "matrix must have dtype"),
    (dict(token=torch.zeros(1)), "token must have dtype"), (dict(parents=[-1, 1]), "parents must be -1"),
    (dict(parents=[]), "parents must be -1"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    right = dict(matrix=torch.zeros(3, 2, dtype=torch.int64), token=torch.zeros(1, dtype=torch.int64), parents=[-1, 0])
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**right | wrong)
    for bad, text in ((dict(p=torch.zeros(1, 2, 4)), "p must have shape"), (dict(p=torch.zeros(1, 2, 3).double()), "p must have dtype")):
        with pytest.raises((ValueError, TypeError), match=text):
            fast.update(**dict(matrix=right["matrix"], tokens=torch.zeros(1, 2, dtype=torch.int64), p=torch.zeros(1, 2, 3)) | bad)


def test_compilers_see_through(fast):
    matrix, tokens, p = torch.full((5, 2), -1), torch.tensor([[0, 3], [3, 1]]), torch.eye(5)[torch.tensor([[1, 2], [4, 0]])]
    both = lambda matrix, tokens, p: fast.draft(fast.update(matrix, tokens, p), tokens[:, 0], [-1, 0, 1])
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(matrix, tokens, p), both(matrix, tokens, p), strict=True))
