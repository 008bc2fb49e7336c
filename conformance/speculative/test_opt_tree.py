"""Laws of OPT-Trees: nothing of their size is worth more. The batched form is the spec's, bit for bit, on sixteenths."""

from fractions import Fraction as F

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import models
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_eagle2 import Drafters, greatest_value, held_to, paths_of
from twofold.spec.speculative import eagle2, match, opt_tree

NODES = 3
drafters = st.sampled_from([1, 2, 3]).flatmap(lambda V: models(V, NODES + 1))
gains = st.sampled_from([F(0), F(1, 10), F(1, 2), F(1)])


def worth(tree):
    return sum(tree[2][1:])


@given(drafters, st.integers(0, NODES))
def test_no_tree_of_its_size_is_worth_more(drafter, nodes):
    assert worth(opt_tree.grow(drafter, nodes, gain=0)) == greatest_value(drafter, nodes, nodes)


@given(drafters, st.integers(1, NODES), st.integers(1, NODES), st.integers(1, NODES))
def test_it_bounds_eagle2_which_reaches_it_with_enough_room(drafter, nodes, k, depth):
    best = worth(opt_tree.grow(drafter, nodes, gain=0))
    assert worth(eagle2.grow(drafter, k, depth, nodes)) <= best == worth(eagle2.grow(drafter, nodes, nodes, nodes))


@given(drafters, st.integers(1, NODES), gains)
def test_a_layer_is_drafted_only_after_one_that_gained_enough(drafter, nodes, gain):
    asked = []
    tree = opt_tree.grow(lambda path: (asked.append(len(path)), drafter(path))[1], nodes, gain)
    layers = 1 + max(asked)  # asked of nodes of depth 0 … layers - 1
    values = [worth(eagle2.grow(drafter, nodes, depth, nodes)) for depth in range(layers + 1)]
    growth = np.diff(np.array(values, dtype=object))
    assert worth(tree) == values[-1] and layers <= nodes + 1
    assert all(each > 0 and each >= gain for each in growth[:-1]) and (growth[-1] == 0 or growth[-1] < gain)


@given(drafters, st.integers(0, NODES), gains)
def test_it_is_a_tree_and_its_values_are_its_paths_probabilities(drafter, nodes, gain):
    tokens, parents, values = opt_tree.grow(drafter, nodes, gain)
    paths = paths_of(tokens, parents)
    assert len(set(paths)) == len(paths) <= 1 + nodes and all(parent < n for n, parent in enumerate(parents))
    assert values == [np.prod([F(1), *(drafter(path[:i])[token] for i, token in enumerate(path))]) for path in paths]
    order = [(len(path), -value) for path, value in zip(paths, values, strict=True)]
    assert order == sorted(order)


@given(models(2, NODES + 1), models(2, NODES + 1), st.integers(0, NODES), gains)
def test_exact_match_on_this_tree_loses_nothing(target, drafter, nodes, gain):
    def program(rng):
        tokens, parents, _ = opt_tree.grow(drafter, nodes, gain)
        p = [target(path) for path in paths_of(tokens, parents)]
        path, token = match.verify_tree(p, tokens, parents, rng)
        return (*(tokens[node] for node in path), token)

    rounds.lossless(program, target, NODES + 1)


def test_ties_and_certainty():
    coin, sure = (lambda path: np.array([F(1, 2), F(1, 2)])), (lambda path: np.array([F(0), F(1)]))
    assert opt_tree.grow(coin, 3, 0)[:2] == ([-1, 0, 1, 0], [-1, 0, 0, 1])  # of four equals the one made first
    assert opt_tree.grow(sure, 3, 0) == ([-1, 1, 1, 1], [-1, 0, 1, 2], [1, 1, 1, 1])
    assert opt_tree.grow(coin, 0, 0) == ([-1], [-1], [1])


@given(seeds, st.integers(0, 3), st.sampled_from([1, 2, 3, 17]), st.integers(0, 4), st.sampled_from([0, 1 / 8, 1 / 2, 2]), st.booleans())
@example(2, 3, 17, 4, 1 / 2, True)  # requests that stop on different layers, though another one would have changed their trees
@example(2, 3, 17, 4, 0, True)
def test_every_request_has_the_specs_tree(fast, seed, B, V, nodes, gain, sure):
    drafters = Drafters(seed, B, V, sure)
    result = fast.grow(drafters.expand, nodes, gain, batch=B, device=target.device())
    held_to(result, [opt_tree.grow(lambda path, b=b: drafters.row(b, path), nodes, gain) for b in range(B)], 1 + nodes)
    assert all(field.shape == (B, 1 + nodes) for field in result)


def test_a_request_that_has_stopped_is_not_asked_for(fast):
    """The second request gains nothing after one layer; the call that finds that out is its last."""
    rows, seen = torch.tensor([[0.9, 0.1], [0.5, 0.5]], device=target.device()), []

    def expand(tokens, parents):
        seen.append(tokens)
        return rows[:, None].expand(2, tokens.shape[1], 2)

    fast.grow(expand, 2, 0.5, batch=2, device=target.device())
    assert len(seen) == 3 and (seen[1] >= 0).all() and (seen[2][0] >= 0).all() and (seen[2][1] == -1).all()


def test_a_request_alone_is_the_request_in_a_batch(fast):
    noise = tensor(np.random.default_rng(0).standard_normal((4, 9, 50)) * np.array([1, 3, 5, 9])[:, None, None], "float32")
    run = lambda requests: fast.grow(
        lambda tokens, parents: torch.softmax(torch.stack([noise[b, : tokens.shape[1]] for b in requests]), -1), 9, 0.05,
        batch=len(requests), device=target.device(),
    )  # fmt: skip
    together = run([0, 1, 2, 3])
    for b in range(4):
        for alone, all_ in zip(run([b]), together, strict=True):
            exactly(alone[0], array(all_)[b])


@pytest.mark.parametrize("wrong", [dict(nodes=-1), dict(gain=-0.5), dict(gain=float("nan")), dict(batch=-1)])
def test_wrong_arguments_are_named(fast, wrong):
    right = dict(expand=lambda tokens, parents: torch.ones(*tokens.shape, 3), nodes=2, gain=0)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 0"):
        fast.grow(**right | wrong)
