"""Laws of Sequoia's trees: none of their size and depth is worth more. The batched form makes the spec's choices, ties included."""

from fractions import Fraction as F
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import seeds, tensor
from twofold.conformance.law import law
from twofold.spec.speculative import match, sequoia, tree

quarters = st.lists(st.sampled_from([F(0), F(1, 4), F(1, 2), F(3, 4), F(1)]), min_size=0, max_size=3)
falling = quarters.map(lambda accept: sorted(accept, reverse=True))


@cache
def shapes(nodes, children):
    """All ordered trees of this size, at most so many children to a node, as parents in depth-first order."""

    @cache
    def forests(m, left):  # every way to hang m nodes below one parent: lists of trees
        if m == 0:
            return [()]
        if left == 0:
            return []
        return [(one, *rest) for s in range(1, m + 1) for one in forests(s - 1, children) for rest in forests(m - s, left - 1)]

    def flat(forest, parents, parent):
        for child in forest:
            parents = flat(child, [*parents, parent], len(parents))
        return parents

    return [flat(forest, [-1], 0) for forest in forests(nodes - 1, children)]


def expected_tokens(parents, accept):
    """The sum over nodes of the product of `accept` down the path; children of a node are ranked by id."""
    worth, seen = [F(1)], [0] * len(parents)
    for parent in parents[1:]:
        worth.append(worth[parent] * accept[seen[parent]])
        seen[parent] += 1
    return sum(worth)


@given(quarters, st.integers(1, 6), st.integers(0, 5))
@example([F(1, 4), F(3, 4)], 4, 2)  # a second child that is better than the first
@example([F(1, 2)], 4, 2)  # one child each and two levels: no tree of four nodes
def test_no_tree_of_its_size_and_depth_is_worth_more(accept, nodes, depth):
    trees = [parents for parents in shapes(nodes, len(accept)) if max(tree.depth(parents)) <= depth]
    if not trees:
        with pytest.raises(ValueError, match="nodes must fit"):
            sequoia.optimize(accept, nodes, depth)
        return
    value, parents = sequoia.optimize(accept, nodes, depth)
    assert value == max(expected_tokens(parents, accept) for parents in trees) == expected_tokens(parents, accept)
    assert len(parents) == nodes and max(tree.depth(parents)) <= depth
    assert all(a <= b for a, b in pairwise(parents)), "level by level"


@given(falling, st.integers(1, 8), st.integers(0, 4))
def test_where_acceptance_never_rises_the_best_nodes_are_the_greatest_products(accept, nodes, depth):
    layer, products = [F(1)], [F(1)]
    for _ in range(depth):
        layer = [product * a for product in layer for a in accept]
        products += layer
    if len(products) >= nodes:
        assert sequoia.optimize(accept, nodes, depth)[0] == sum(sorted(products, reverse=True)[:nodes])


@given(st.lists(st.sampled_from([F(1, 4), F(1, 2), F(1)]), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 5))
def test_more_nodes_and_more_depth_never_hurt(accept, nodes, depth):
    value = {(n, d): sequoia.solver(accept)(n, d)[0] for n in (nodes, nodes + 1) for d in (depth, depth + 1)}
    assert value[nodes, depth] <= value[nodes, depth + 1]
    assert value[nodes + 1, depth] == -np.inf or value[nodes, depth] <= value[nodes + 1, depth]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=3), st.integers(1, 5))
def test_the_value_is_the_mean_number_of_tokens_of_a_round(weights, nodes):
    """A target that forgets its context accepts child j, which carries token j, with probability p(j)."""
    p = np.array([F(w + 1, sum(weights) + len(weights)) for w in weights], dtype=object)
    value, parents = sequoia.optimize(list(p), nodes, nodes)
    tokens = [sum(other == parent for other in parents[:n]) for n, parent in enumerate(parents)]
    emitted = law(lambda rng: 1 + len(match.verify_tree([p] * nodes, tokens, parents, rng)[0]))
    assert value == sum(n * weight for n, weight in emitted.items())


@given(quarters, st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sampled_from([F(0), F(1, 8), F(1)]))
@example([F(3, 4)], [1, 1, 1, 1], F(1))  # a level of drafting costs more than it yields
def test_the_size_is_the_one_of_most_tokens_per_time(accept, cost, c):
    rate = {}
    for n in range(1, len(cost) + 1):
        for parents in shapes(n, len(accept)):
            for depth in range(max(tree.depth(parents)), n):
                per_time = expected_tokens(parents, accept) / F(cost[n - 1] + depth * c)
                rate[n, depth] = max(rate.get((n, depth), 0), per_time)
    best = max(rate.values())
    assert sequoia.hardware(accept, cost, c) == min(size for size, each in rate.items() if each == best)


def test_of_equal_trees_the_first_child_is_the_smallest():
    assert sequoia.optimize([F(1), F(1)], 4, 3)[1] == [-1, 0, 0, 2]
    assert sequoia.hardware([F(1)], [1, 2, 3], F(0)) == (1, 0)


@given(st.integers(0, 4), st.integers(1, 12), st.integers(0, 12), seeds, st.sampled_from(["quarters", "falling", "uniform"]))
@example(3, 7, 12, 50, "quarters")  # the last level changes a choice between equals, and no value
def test_every_row_of_a_batch_has_the_specs_tree(fast, J, nodes, depth, seed, kind):
    rng = np.random.default_rng(seed)
    accept = rng.random((3, J)) if kind != "quarters" else rng.integers(0, 5, (3, J)) / 4
    accept = -np.sort(-accept, axis=1) if kind == "falling" else accept
    trees = [_or_none(sequoia.optimize, row.tolist(), nodes, depth) for row in accept]
    if trees[0] is None:
        with pytest.raises(ValueError, match="nodes must fit"):
            fast.optimize(tensor(accept), nodes, depth)
        return
    values, parents = fast.optimize(tensor(accept), nodes, depth)
    exactly(values, [value for value, _ in trees], "expected tokens")
    exactly(parents, [each for _, each in trees], "parents")


def _or_none(function, *arguments):
    try:
        return function(*arguments)
    except ValueError:
        return None


@given(st.integers(0, 3), st.integers(1, 9), seeds, st.sampled_from([0, 1 / 8, 2]))
def test_every_row_of_a_batch_has_the_specs_size(fast, J, N, seed, c):
    rng = np.random.default_rng(seed)
    accept, cost = rng.integers(0, 5, (3, J)) / 4, np.sort(rng.integers(1, 5, N))
    n, d = fast.hardware(tensor(accept), tensor(cost), c)
    exactly(torch.stack([n, d], 1), [sequoia.hardware(row.tolist(), cost.tolist(), c) for row in accept])


def test_a_row_alone_is_the_row_in_a_batch(fast):
    accept = tensor(np.random.default_rng(3).integers(0, 5, (4, 3)) / 4)
    values, parents = fast.optimize(accept, 40, 7)
    for b in range(4):
        alone = fast.optimize(accept[b : b + 1], 40, 7)
        exactly(alone[0][0], values[b])
        exactly(alone[1][0], parents[b])
    assert fast.optimize(accept[:0], 3, 2)[1].shape == (0, 3)


WRONG = {
    "accept must have shape": ("optimize", dict(accept=torch.ones(2))),
    "accept must have dtype": ("optimize", dict(accept=torch.ones(1, 2, dtype=torch.int64))),
    r"accept must lie in \[0, 1\]": ("hardware", dict(accept=torch.tensor([[0.5, torch.nan]]))),
    "nodes must be at least 1": ("optimize", dict(nodes=0)),
    "depth must be at least 0|depth at least 0": ("optimize", dict(depth=-1)),
    "cost must have shape": ("hardware", dict(cost=torch.ones(1, 2))),
    "cost must hold at least one time": ("hardware", dict(cost=torch.ones(0))),
    "c must be at least 0": ("hardware", dict(c=-1)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    form, wrong = WRONG[message]
    right = dict(nodes=3, depth=2) if form == "optimize" else dict(cost=torch.ones(3), c=0)
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(fast, form)(**dict(accept=torch.ones(1, 2)) | right | wrong)
