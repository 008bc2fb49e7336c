"""Laws of EAGLE-2's draft trees; the batched form is the spec's, bit for bit: probabilities are sixteenths, so no product is rounded."""

from fractions import Fraction as F
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, as_law, law, models, total_variation
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import eagle2, match

DEPTH = 3


def paths_of(tokens, parents):
    """The token ids on the path to each node."""
    paths = [()]
    for token, parent in zip(tokens[1:], parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


def greatest_value(expand, nodes, depth):
    """The greatest total value of a tree of up to `nodes` drafted nodes: every tree is tried."""
    worth = lambda path: prod(expand(path[:i])[token] for i, token in enumerate(path))
    trees, best = {frozenset([()])}, F(0)
    for _ in range(nodes):
        grown = (tree | {(*path, v)} for tree in trees for path in tree if len(path) < depth for v in range(len(expand(()))))
        trees = {tree for tree in grown if len(tree) > 1} - trees
        best = max([best, *(sum(worth(path) for path in tree if path) for tree in trees)])
    return best


drafters = st.sampled_from([1, 2, 3]).flatmap(lambda V: models(V, DEPTH))
sizes = st.tuples(st.integers(1, 3), st.integers(0, DEPTH), st.integers(0, 9))


@given(drafters, sizes)
def test_what_is_kept_is_a_tree_of_likeliest_tokens_worth_their_paths(drafter, size):
    k, depth, total = size
    tokens, parents, values = eagle2.grow(drafter, k, depth, total)
    paths = paths_of(tokens, parents)
    assert len(set(paths)) == len(paths) <= 1 + total and max(map(len, paths)) <= depth
    assert all(0 <= parent < n for n, parent in enumerate(parents) if n) and (tokens[0], parents[0]) == (-1, -1)
    assert values == [prod(drafter(path[:i])[token] for i, token in enumerate(path)) for path in paths] and min(values) > 0
    order = [(len(path), -value) for path, value in zip(paths, values, strict=True)]
    assert order == sorted(order)
    for path in paths[1:]:
        row = drafter(path[:-1])
        assert sum((row[v], -v) > (row[path[-1]], -path[-1]) for v in range(len(row))) < k  # one of the k likeliest, ties by id


@given(drafters, sizes)
def test_a_larger_total_only_adds_nodes(drafter, size):
    k, depth, total = size
    smaller, larger = (set(paths_of(*eagle2.grow(drafter, k, depth, n)[:2])) for n in (total, total + 1))
    assert smaller <= larger and len(larger - smaller) <= 1


@given(st.sampled_from([2, 3]).flatmap(lambda V: models(V, 3)), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
def test_no_tree_is_worth_more_and_with_enough_room_none_is_missed(drafter, k, depth, total):
    value = lambda k, depth: sum(eagle2.grow(drafter, k, depth, total)[2][1:])
    best = greatest_value(drafter, total, total)
    assert value(k, depth) <= best == value(total, total)


def test_a_depth_limit_alone_misses_the_best_tree():
    sure = lambda path: np.array([F(9, 10), F(1, 10)])
    assert sum(eagle2.grow(sure, 3, 2, 3)[2][1:]) < greatest_value(sure, 3, 3) == sum(eagle2.grow(sure, 3, 3, 3)[2][1:])


@given(models(2, 4), models(2, 4), st.integers(1, 2), st.integers(0, 3), st.integers(0, 5))
def test_exact_match_on_this_tree_loses_nothing(target, drafter, k, depth, total):
    def program(rng):
        tokens, parents, _ = eagle2.grow(drafter, k, depth, total)
        p = [target(path) for path in paths_of(tokens, parents)]
        path, token = match.verify_tree(p, tokens, parents, rng)
        return (*(tokens[node] for node in path), token)

    rounds.lossless(program, target, 4)


def test_a_ratio_test_with_the_drafters_probabilities_is_biased():
    """The siblings are the likeliest tokens, not draws from q: recursive rejection, right for draws, favors them."""
    p, q = TARGET(()), DRAFT(())
    drafts = eagle2.grow(DRAFT, k=2, depth=1, total=2)[0][1:]

    def program(rng):
        left = p
        for token in drafts:
            if rng.bernoulli(left[token] / q[token]):
                return token
            left = np.maximum(left - q, 0)
            left = left / left.sum()
        return rng.categorical(left)

    assert total_variation(law(program), as_law(p)) == F(1, 6)


def test_a_child_of_probability_one_never_goes_before_its_parent():
    sure = lambda path: np.array([F(1), F(0)])
    assert eagle2.grow(sure, k=2, depth=3, total=2) == ([-1, 0, 0], [-1, 0, 1], [1, 1, 1])
    tied = lambda path: np.array([F(1, 2), F(1, 2)]) if not path else np.array([F(0), F(1)])
    assert eagle2.grow(tied, k=2, depth=2, total=3)[:2] == ([-1, 0, 1, 1], [-1, 0, 0, 1])


def test_more_is_asked_for_than_there_is():
    only = lambda path: np.array([F(0), F(3, 4), F(1, 4)]) if len(path) < 1 else np.array([F(0), F(0), F(1)])
    tokens, parents, _ = eagle2.grow(only, k=3, depth=2, total=50)
    assert (tokens, parents) == ([-1, 1, 2, 2, 2], [-1, 0, 0, 1, 2])


def test_a_row_of_nan_is_an_error():
    with pytest.raises(ValueError, match="at least 0"):
        eagle2.grow(lambda path: np.array([0.5, np.nan]), 2, 1, 1)


class Drafters:
    """One drafter of random sixteenths per request, and what `expand` of a batch is: it follows the paths by the parents it is told."""

    def __init__(self, seed, B, V, sure=False):
        self.seed, self.B, self.V, self.sure, self.paths = seed, B, V, sure, []

    def row(self, b, path):
        rng = np.random.default_rng([self.seed, b, *path])
        return rng.multinomial(16, rng.dirichlet(np.full(self.V, 0.1 if self.sure else 1))) / 16

    def expand(self, tokens, parents):
        first = not self.paths
        assert tokens.shape == parents.shape and (not first or tokens.tolist() == parents.tolist() == [[-1]] * self.B)
        before, self.paths = self.paths, []
        for b in range(self.B):
            told = list(zip(tokens[b].tolist(), parents[b].tolist(), strict=True))
            assert first or all(before[b][parent] is not None for token, parent in told if token >= 0), "its parent does not exist"
            self.paths.append([() if first else None if token < 0 else (*before[b][parent], token) for token, parent in told])
        nothing = np.resize([np.inf, np.nan], self.V)  # of a node that does not exist nothing may be read
        rows = [nothing if path is None else self.row(b, path) for b, paths in enumerate(self.paths) for path in paths]
        return tensor(np.array(rows).reshape(*tokens.shape, self.V), "float32")


def held_to(result, expected, width):
    """A padded batch is the spec's trees, request by request."""
    for b, tree in enumerate(expected):
        for field, answer, what in zip(result, tree, ("tokens", "parents", "values"), strict=True):
            exactly(field[b], [*map(float, answer), *[-1] * (width - len(answer))], what)


@given(seeds, st.integers(0, 3), st.sampled_from([1, 2, 3, 17]), st.integers(1, 4), st.integers(0, 4), st.integers(0, 20), st.booleans())
@example(1, 3, 3, 3, 4, 7, True)  # ties on every layer
def test_every_request_has_the_specs_tree(fast, seed, B, V, k, depth, total, sure):
    drafters = Drafters(seed, B, V, sure)
    result = fast.grow(drafters.expand, k, depth, total, batch=B, device=target.device())
    held_to(result, [eagle2.grow(lambda path, b=b: drafters.row(b, path), k, depth, total) for b in range(B)], 1 + total)
    assert all(field.shape == (B, 1 + total) for field in result)


def test_a_request_alone_is_the_request_in_a_batch(fast):
    run = lambda requests: fast.grow(
        lambda tokens, parents: torch.softmax(torch.stack([noise[b, : tokens.shape[1]] for b in requests]), -1), 3, 3, 8,
        batch=len(requests), device=target.device(),
    )  # fmt: skip
    noise = tensor(np.random.default_rng(0).standard_normal((4, 3, 50)), "float32")
    together = run([0, 1, 2, 3])
    for b in range(4):
        for alone, all_ in zip(run([b]), together, strict=True):
            exactly(alone[0], all_[b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_probabilities_go_to_the_lowest_id(fast, dtype):
    row = torch.full((5000,), 2.0**-14, device=target.device())
    row[[4000, 3000, 17, 4999]] = torch.tensor([0.25, 0.125, 0.25, 0.125], device=row.device)
    tokens, parents, values = fast.grow(lambda tokens, parents: row.to(dtype).expand(*tokens.shape, -1), 6, 1, 6, device=row.device)
    assert tokens.tolist() == [[-1, 17, 4000, 3000, 4999, 0, 1]] and parents.tolist() == [[-1] + [0] * 6]
    exactly(values[0], [1, 0.25, 0.25, 0.125, 0.125, 2.0**-14, 2.0**-14])


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_what_is_no_probability_is_no_child(fast, bad):
    row = torch.tensor([0.5, bad, 0.25], device=target.device())
    tokens, _, _ = fast.grow(lambda tokens, parents: row.expand(*tokens.shape, 3), 3, 1, 3, device=row.device)
    assert tokens.tolist() == [[-1, 0, 2, -1]]


def test_compilers_see_through(fast):
    table = torch.softmax(tensor(np.random.default_rng(3).standard_normal((8, 7)), "float32"), -1)
    call = lambda table: fast.grow(lambda tokens, parents: table[tokens + 1], 2, 3, 5, batch=2, device=table.device)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(call(table), compiled(table), strict=True):
        exactly(traced, array(eager))


WRONG = {
    "k must be at least 1": dict(k=0), "depth must be at least 0": dict(depth=-1), "total must be at least 0": dict(total=-1),
    "batch must be at least 0": dict(batch=-1), "expand must return rows of shape": dict(expand=lambda tokens, parents: torch.ones(2, 3)),
    "expand must return float32": dict(expand=lambda tokens, parents: torch.ones(*tokens.shape, 3, dtype=torch.float64)),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(expand=lambda tokens, parents: torch.ones(*tokens.shape, 3, device=tokens.device), k=2, depth=2, total=2)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.grow(**right | WRONG[message])
