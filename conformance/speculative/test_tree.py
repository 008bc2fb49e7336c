"""Laws of token trees: a masked pass is many causal passes, and what is committed is what plain decoding would have stored."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import tree

V, D, PLACES = 7, 6, 16


def forward(weights, tokens, positions, visible):
    """A small transformer of two layers: hidden states `(T, D)`, and what each layer stores for each token, `(T, 2 layers D)`."""
    embed, place, layers = weights
    x, stored = embed[tokens] + place[positions], []
    for query, key, value, up, down in layers:
        k, v = x @ key, x @ value
        stored += [k, v]
        scores = np.where(visible, (x @ query) @ k.T, -np.inf)
        weight = np.exp(scores - scores.max(1, keepdims=True))
        x = x + weight @ v / weight.sum(1, keepdims=True)
        x = x + np.tanh(x @ up) @ down
    return x, np.concatenate(stored, 1)


def transformer(rng):
    half = lambda *shape: (0.5 * rng.standard_normal(shape)).astype(np.float32)
    return half(V, D), half(PLACES, D), [[half(D, D) for _ in range(5)] for _ in range(2)]


def passes(rng, parents, text):
    """The weights, and one masked pass over a text and the tree behind it: tokens, positions and who sees whom; the root ends the text."""
    N, before = len(parents), text - 1
    tokens = rng.integers(0, V, before + N)
    positions = np.concatenate([np.arange(before), before + tree.depth(parents)])
    visible = np.tri(before + N, dtype=bool)
    visible[before:, before:] = tree.mask(parents)
    return transformer(rng), tokens, positions, visible


def wide(weights):
    embed, place, layers = weights
    return embed.astype(float), place.astype(float), [[matrix.astype(float) for matrix in layer] for layer in layers]


def causal(weights, tokens):
    """The plain pass over a text in float64, with the bound that a float32 pass must keep."""
    T = len(tokens)
    run = lambda weights: forward(weights, tokens, np.arange(T), np.tri(T, dtype=bool))
    embed, place, layers = wide(weights)
    flat = [embed, place, *(matrix for layer in layers for matrix in layer)]
    return bounded(lambda *flat: run((flat[0], flat[1], [flat[2:7], flat[7:12]])), *flat, precision=Precision("float32"))


@given(rounds.shapes, st.integers(1, 4), inputs.seeds)
@example(rounds.branching(2, 2), 3, 0)
def test_a_masked_pass_gives_every_path_what_its_own_causal_pass_gives_it(parents, text, seed):
    weights, tokens, positions, visible = passes(np.random.default_rng(seed), parents, text)
    hidden, stored = forward(weights, tokens, positions, visible)
    for line in tree.paths(parents):
        rows = [*range(text - 1), *(text - 1 + np.array(line))]
        expected = causal(weights, tokens[rows])
        agree(hidden[rows], expected[0], "hidden states")
        agree(stored[rows], expected[1], "stored keys and values")


@given(rounds.shapes, st.integers(1, 4), inputs.seeds, st.booleans())
@example(rounds.branching(2, 2), 3, 0, True)  # the path is not the first nodes
def test_what_is_committed_is_what_plain_decoding_would_have_stored(fast, parents, text, seed, in_place):
    rng = np.random.default_rng(seed)
    weights, tokens, positions, visible = passes(rng, parents, text)
    cache = forward(weights, tokens, positions, visible)[1].astype(np.float32)
    line = tree.paths(parents)[-1]
    accepted = line[1 : 1 + rng.integers(0, len(line))]
    rows = [*range(text - 1), *(text - 1 + np.array([0, *accepted]))]
    path, start = inputs.tensor(np.array([[*accepted, -1]])), inputs.tensor(np.array([text - 1]))
    kept = inputs.array(fast.commit(inputs.tensor(cache[None].copy()), path, start=start, in_place=in_place))[0]
    kept = kept[text - 1 :] if in_place else kept
    exactly(kept[: 1 + len(accepted)], tree.commit(cache[text - 1 :], accepted), "committed rows")
    agree(np.concatenate([cache[: text - 1], kept[: 1 + len(accepted)]]), causal(weights, tokens[rows])[1], "cache of the text")


@given(rounds.shapes)
def test_the_mask_inverts_the_tree(parents):
    up = np.zeros((len(parents), len(parents)), int)
    up[range(1, len(parents)), parents[1:]] = 1
    exactly(tree.mask(parents) @ (np.eye(len(parents), dtype=int) - up), np.eye(len(parents), dtype=int))


@given(rounds.shapes, inputs.seeds)
def test_siblings_and_branches_may_come_in_any_order(parents, seed):
    rng, old = np.random.default_rng(seed), [0]
    while len(old) < len(parents):  # any node whose parent is already there
        old.append(rng.choice([n for n, parent in enumerate(parents) if n not in old and parent in old]))
    renamed = [-1, *(old.index(parents[node]) for node in old[1:])]
    exactly(tree.mask(renamed), tree.mask(parents)[np.ix_(old, old)])
    exactly(tree.depth(renamed), tree.depth(parents)[old])
    lines = {tuple(old[node] for node in line) for line in tree.paths(renamed)}
    assert lines == {tuple(line) for line in tree.paths(parents)}


@given(rounds.shapes)
def test_a_node_sees_as_many_nodes_as_it_is_deep_and_a_path_is_what_its_leaf_sees(parents):
    mask, lines = tree.mask(parents), tree.paths(parents)
    exactly(mask.sum(1) - 1, tree.depth(parents))
    leaves = [node for node in range(len(parents)) if not (mask[:, node].sum() > 1)]
    assert lines == [np.flatnonzero(mask[leaf]).tolist() for leaf in leaves]


SHAPES = {
    "root only": ([-1], [[1]], [0], [[0]]),
    "one level": (rounds.branching(3), [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], [0, 1, 1, 1], [[0, 1], [0, 2], [0, 3]]),
    "an empty level": (rounds.branching(2, 0, 4), [[1, 0, 0], [1, 1, 0], [1, 0, 1]], [0, 1, 1], [[0, 1], [0, 2]]),
    "a chain": (rounds.branching(1, 1), [[1, 0, 0], [1, 1, 0], [1, 1, 1]], [0, 1, 2], [[0, 1, 2]]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_degenerate_shapes(fast, shape):
    parents, mask, depth, paths = SHAPES[shape]
    assert (tree.mask(parents).tolist(), tree.depth(parents).tolist(), tree.paths(parents)) == (mask, depth, paths)
    batch = inputs.tensor(np.array([parents]))
    exactly(fast.mask(batch)[0], mask, "mask")
    exactly(fast.depth(batch)[0], depth, "depth")
    lines = [[node for node in line if node >= 0] for line in fast.paths(batch)[0].tolist()]
    assert lines[: len(paths)] == paths and not any(lines[len(paths) :])
    exactly(fast.commit(batch, batch[:, :0])[0], [-1], "nothing accepted: the root")


@pytest.mark.parametrize("parents", [[], [0], [-1, 1], [-1, 0, 2], [-1, 2, 0], [-1, -1], [-2], [-1, 0, -1]])
def test_parents_out_of_order_are_an_error(parents):
    for form in (tree.mask, tree.depth, tree.paths):
        with pytest.raises(ValueError, match="parents"):
            form(parents)
