"""Medusa: what the heads compute, and that the tree of their candidates is the best one, complete, and loses nothing."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, regimes, seeds, tensor, values
from twofold.conformance.law import models
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import match, medusa

FLOAT32 = Precision("float32")
sizes = st.tuples(st.integers(1, 3), st.sampled_from([1, 4, 17]), st.sampled_from([1, 5, 33]))  # K, D, V
eighths = st.integers(0, 8).map(lambda n: Fraction(n, 8))
tables = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(  # accuracies (K, R): not monotone, and full of ties
    lambda size: st.lists(st.lists(eighths, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0])
)


def worth(tree, accuracy):
    return sum(np.prod([accuracy[k][rank] for k, rank in enumerate(node)]) for node in tree)


def everything(K, R):
    return [node for depth in range(1, K + 1) for node in product(range(R), repeat=depth)]


def closed(tree):
    return all(node[:-1] in tree for node in tree if len(node) > 1)


# The tree


@given(st.lists(st.lists(eighths, min_size=2, max_size=2), min_size=1, max_size=3), st.integers(1, 4))
@example([[Fraction(1, 2), Fraction(3, 8)], [Fraction(1, 2), Fraction(0)]], 2)  # 3/8 beats 1/2 of 1/2
def test_the_tree_is_worth_as_much_as_the_best_of_its_size(accuracy, nodes):
    every = everything(len(accuracy), 2)
    best = max(worth(tree, accuracy) for tree in combinations(every, min(nodes, len(every))) if closed(tree))
    assert worth(medusa.choices(accuracy, nodes), accuracy) == best


@given(tables)
def test_trees_are_closed_ordered_and_nested(accuracy):
    every, last = everything(len(accuracy), len(accuracy[0])), []
    for nodes in range(len(every) + 2):
        tree = medusa.choices(accuracy, nodes)
        assert len(set(tree)) == len(tree) == min(nodes, len(every)) and closed(tree) and set(last) <= set(tree)
        assert tree == sorted(tree, key=lambda node: (len(node), node))
        last = tree


def test_of_equals_the_shallower_then_the_lower_ranks_come_first():
    assert medusa.choices([[1, 1], [1, 1]], 3) == [(0,), (1,), (0, 0)]
    assert medusa.choices([[Fraction(1, 2), Fraction(1, 4)], [Fraction(1, 2), 0]], 2) == [(0,), (1,)]
    assert medusa.choices([[0.1, 0.9]], 1) == [(1,)]  # ranks need not be sorted by accuracy
    assert medusa.choices([], 3) == medusa.choices([[0.5]], 0) == []


@given(tables, st.integers(0, 12))
def test_fast_chooses_the_same_tree(fast, accuracy, nodes):
    assert fast.choices(accuracy, nodes) == medusa.choices(accuracy, nodes)
    table = torch.tensor([[float(a) for a in row] for row in accuracy])
    assert fast.choices(table, nodes) == medusa.choices(accuracy, nodes)


# The candidates


def paths(tokens, parents):
    """The tokens on the path from the root to each node."""
    found = {0: ()}
    for node in range(1, len(tokens)):
        assert parents[node] < node
        found[node] = (*found[parents[node]], tokens[node])
    return [found[node] for node in range(1, len(tokens))]


@given(tables, st.integers(0, 12), seeds)
def test_candidates_are_the_product_of_the_guesses_restricted_to_the_tree(accuracy, nodes, seed):
    K, R = len(accuracy), len(accuracy[0])
    topk, tree = np.random.default_rng(seed).permutation(K * R).reshape(K, R), medusa.choices(accuracy, nodes)
    tokens, parents = medusa.candidates(topk, tree[::-1])
    assert tokens[0] == parents[0] == -1
    assert paths(tokens, parents) == [tuple(topk[k, rank] for k, rank in enumerate(node)) for node in tree]


@given(tables, st.integers(0, 12), seeds)
def test_fast_lays_out_the_same_candidates_for_every_request(fast, accuracy, nodes, seed):
    K, R = len(accuracy), len(accuracy[0])
    topk, tree = np.random.default_rng(seed).integers(0, 100, (3, K, R)), medusa.choices(accuracy, nodes)
    tokens, parents = fast.candidates(tensor(topk), tree[::-1])
    for b in range(3):
        expected = medusa.candidates(topk[b], tree)
        exactly(tokens[b], np.array(expected[0]), "tokens")
        exactly(parents[b], np.array(expected[1]), "parents")


def test_a_tree_that_the_heads_cannot_fill_is_an_error(fast):
    for candidates, topk in ((medusa.candidates, [[3, 4], [5, 6]]), (fast.candidates, torch.tensor([[[3, 4], [5, 6]]]))):
        for tree, message in (([(0,), (0, 0), (0, 0, 0)], "choices"), ([(2,)], "choices"), ([(-1,)], "ranks"), ([(0,), (1, 1)], "parent")):
            with pytest.raises(ValueError, match=message):
                candidates(topk, tree)


@given(models(3, 3), seeds, st.integers(0, 6))
def test_the_heads_tree_loses_nothing_whatever_the_heads_say(target, seed, nodes):
    """The likeliest tokens of random heads, combined: exact match gives the target's joint law, and every conditional."""
    rng = np.random.default_rng(seed)
    logits = medusa.heads(rng.standard_normal(4), *(rng.standard_normal(shape) for shape in ((2, 4, 4), (2, 4), (2, 3, 4))))
    topk = np.argsort(-logits, axis=1, kind="stable")[:, :2].tolist()
    tokens, parents = medusa.candidates(topk, medusa.choices([[0.5, 0.3], [0.4, 0.2]], nodes))
    contexts = [(), *paths(tokens, parents)]

    def program(rng):
        path, token = match.verify_tree([target(context) for context in contexts], tokens, parents, rng)
        return (*(tokens[node] for node in path), token)

    rounds.lossless(program, target, 3)


# The heads


@given(seeds, sizes)
def test_a_fresh_head_is_the_lm_head(fast, seed, size):
    K, D, V = size
    rng = np.random.default_rng(seed)
    h, lm_head = rng.integers(-3, 4, (2, D)).astype(float), rng.integers(-3, 4, (V, D)).astype(float)
    fresh = np.zeros((K, D, D)), np.zeros((K, D)), np.stack([lm_head] * K)
    expected = np.stack([h @ lm_head.T] * K, 1)  # integers: every order of adding them gives the same bits
    exactly(np.stack([medusa.heads(x, *fresh) for x in h]), expected, "logits of the spec")
    exactly(fast.heads(*(tensor(x, "float32") for x in (h, *fresh))), expected, "logits")


@given(regimes, seeds, sizes)
def test_logits_agree(fast, regime, seed, size):
    K, D, V = size
    h, w1, b1, w2 = values(regime, [(2, D), (K, D, D), (K, D), (K, V, D)], seed, "float32")
    logits = fast.heads(*(tensor(x, "float32") for x in (h, w1, b1, w2)))
    assert logits.shape == (2, K, V)
    for b in range(2):
        agree(logits[b], bounded(medusa.heads, h[b], w1, b1, w2, precision=FLOAT32), "logits")


def test_states_do_not_meet_and_leading_axes_are_free(fast):
    rng = np.random.default_rng(1)
    h, *heads = (torch.tensor(rng.integers(-2, 3, shape), dtype=torch.float32) for shape in ((2, 3, 4), (2, 4, 4), (2, 4), (2, 5, 4)))
    logits = fast.heads(h, *heads)
    assert logits.shape == (2, 3, 2, 5) and fast.heads(h[0, 0], *heads).shape == (2, 5) and fast.heads(h[:0], *heads).shape == (0, 3, 2, 5)
    h[1, 1] = torch.nan
    poisoned = fast.heads(h, *heads)
    assert poisoned[1, 1].isnan().all()
    logits[1, 1] = torch.nan
    exactly(poisoned, array(logits), "logits beside a NaN")


# The loss


def labeled(seed, T, K=3, V=5):
    (logits,) = values("normal", [(T, K, V)], seed, "float32")
    return logits, np.random.default_rng(seed).integers(0, V, T)


@given(seeds, st.sampled_from([0, 1, 2, 3, 4, 5, 9]), st.sampled_from([0.5, 0.8, 1.0]))
def test_the_loss_agrees_and_so_do_its_gradients(fast, seed, T, decay):
    """The gradient of a mean cross-entropy: softmax less one-hot, over the number of labels; what has no label has gradient 0."""
    logits, tokens = labeled(seed, T)
    x = tensor(logits[None], "float32").requires_grad_()
    loss = fast.loss(x, tensor(tokens[None]), decay)
    if T < 3:  # nobody has a label
        assert medusa.loss(logits, tokens, decay) == 0 == loss.item()
        return
    agree(loss[None], bounded(lambda x: medusa.loss(x, tokens, decay)[None], logits, precision=FLOAT32), "loss")

    def gradient(x):
        weights = np.exp(x - x.max(axis=-1)[:, :, None])
        rows = weights / weights.sum(axis=-1)[:, :, None]
        label = np.array([[np.arange(5) == tokens[t + k + 2] if t + k + 2 < T else np.zeros(5) for k in range(3)] for t in range(T)])
        scale = np.array([[decay ** (k + 1) / (T - k - 2) if t + k + 2 < T else 0.0 for k in range(3)] for t in range(T)])
        return (rows - label) * scale[:, :, None]

    (actual,) = torch.autograd.grad(loss, x)
    agree(actual[0], bounded(gradient, logits, precision=FLOAT32), "gradient")


def test_tokens_marked_as_unlabeled_do_not_count(fast):
    logits, tokens = labeled(3, 6)
    padded = torch.cat([tensor(tokens), torch.full((2,), -100)])
    rows = torch.cat([tensor(logits, "float32"), torch.full((2, 3, 5), 7.0)])
    exactly(fast.loss(rows[None], padded[None]), fast.loss(rows[None, :6], padded[None, :6]), "loss")


def test_heads_learn(fast):
    """Fifty steps of plain gradient descent on a text that counts: every head finds its own distance."""
    V, D, K = 6, 8, 2
    generator = torch.Generator().manual_seed(0)
    embed, w2 = torch.randn(V, D, generator=generator), torch.randn(V, D, generator=generator)
    tokens = (torch.arange(14) % V)[None]
    parameters = [x.requires_grad_() for x in (torch.zeros(K, D, D), torch.zeros(K, D), w2.repeat(K, 1, 1))]
    for _ in range(50):
        loss = fast.loss(fast.heads(embed[tokens], *parameters), tokens)
        with torch.no_grad():
            for x, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                x -= 0.3 * slope
    guesses = fast.heads(embed, *parameters).argmax(-1)
    exactly(guesses, np.array([[(v + 2) % V, (v + 3) % V] for v in range(V)]), "guesses")


def some(**changes):
    shapes = {"h": (2, 4), "w1": (2, 4, 4), "b1": (2, 4), "w2": (2, 5, 4)}
    return {name: torch.ones(shape) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(("wrong", "message"), [
    ({"h": [0.0]}, "h must"), ({"h": torch.ones(2, 3)}, "h must"), ({"w1": torch.ones(2, 4, 3)}, "w1 must"),
    ({"b1": torch.ones(3, 4)}, "b1 must"), ({"w2": torch.ones(2, 4)}, "w2 must"), ({"w2": torch.ones(2, 5, 4).double()}, "w2 must"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.heads(**some(**wrong))
    with pytest.raises(TypeError, match="topk must"):
        fast.candidates(torch.ones(1, 2, 2), [])
    with pytest.raises(ValueError, match="tokens must"):
        fast.loss(torch.ones(1, 4, 2, 3), torch.ones(1, 3, dtype=torch.int64))


def test_it_compiles(fast):
    def call(h, w1, b1, w2):
        logits = fast.heads(h, w1, b1, w2)
        return fast.candidates(logits.topk(2).indices, [(0,), (1,), (0, 1)])[0], logits

    for compiled, eager in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(**some()), call(**some()), strict=True):
        exactly(compiled, eager, "compiled")
