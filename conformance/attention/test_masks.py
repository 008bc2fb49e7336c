"""Masks: each against its sentence, pair by pair; what they are when they mean nothing; and trees against their branches."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.compare import exactly
from twofold.spec.attention import dense, masks

sizes = st.sampled_from([0, 1, 2, 5, 16, 17, 33])
bounds = st.sampled_from([None, 0, 1, 3, 40])


@st.composite
def trees(draw, most=8):
    return np.array([draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, most)))], dtype=np.int64)


def sentences(n_q, n_k, left, right, n, c):
    """Every mask in the words of its definition, one pair at a time."""
    said = {
        "causal": lambda p, j: j <= p,
        "window": lambda p, j: (left is None or j >= p - left) and (right is None or j <= p + right),
        "prefix_lm": lambda p, j: j < n or j <= p,
        "chunked": lambda p, j: j <= p and j // c == p // c,
    }
    matrix = lambda rule: np.array([[rule(i + n_k - n_q, j) for j in range(n_k)] for i in range(n_q)], bool).reshape(n_q, n_k)
    return {name: matrix(rule) for name, rule in said.items()}


@given(sizes, sizes, bounds, bounds, st.integers(0, 40), st.sampled_from([1, 2, 7, 40]))
@example(17, 5, 0, 0, 3, 2)
def test_masks_say_what_their_sentences_say(fast, n_q, n_k, left, right, n, c):
    """More rows than keys included: the first rows stand before the first key, in chunks of negative numbers."""
    device = inputs.target.device()
    arguments = {"causal": (), "window": (left, right), "prefix_lm": (n,), "chunked": (c,)}
    for name, expected in sentences(n_q, n_k, left, right, n, c).items():
        exactly(getattr(masks, name)(n_q, n_k, *arguments[name]), expected, f"spec, {name}")
        exactly(getattr(fast, name)(n_q, n_k, *arguments[name], device=device), expected, f"fast, {name}")


@given(sizes, sizes)
def test_masks_without_meaning_are_causal(n_q, n_k):
    exactly(masks.window(n_q, n_k, None, 0), masks.causal(n_q, n_k), "a window without end")
    exactly(masks.prefix_lm(n_q, n_k, 0), masks.causal(n_q, n_k), "an empty prefix")
    exactly(masks.chunked(n_q, n_k, n_q + n_k + 1)[max(n_q - n_k, 0) :], masks.causal(n_q, n_k)[max(n_q - n_k, 0) :], "one chunk")
    exactly(masks.window(n_q, n_k, None, None), np.ones((n_q, n_k), bool), "no bound at all")
    exactly(masks.tree(np.arange(n_q) - 1, n_k), masks.causal(n_q, n_k + n_q), "a tree that is a chain")


@given(trees(), st.integers(0, 5))
@example(np.array([-1, 0, 1, 2, 3, 4, 5, 6]), 2)
@example(np.array([-1, -1, 0, 1]), 0)
def test_a_node_sees_the_way_from_its_root(fast, parent, context):
    """Walked up one by one; siblings, though at one position, do not see each other."""
    expected = np.zeros((len(parent), context + len(parent)), bool)
    expected[:, :context] = True
    for node in range(len(parent)):
        at = node
        while at >= 0:
            expected[node, context + at] = True
            at = parent[at]
    exactly(masks.tree(parent, context), expected, "spec")
    exactly(fast.tree(inputs.tensor(parent), context), expected, "fast")
    exactly(fast.tree(inputs.tensor(np.stack([parent, parent])), context)[1], expected, "fast, a batch")


@given(inputs.seeds, trees(most=6), st.integers(0, 4))
def test_a_packed_tree_is_every_branch_alone(seed, parent, context):
    """Without rounding: a node's output among all nodes is its output at the end of its own path."""
    nodes = len(parent)
    q, k, v = field.problem(seed, nodes, context + nodes, 2)
    o, lse = dense.attention(q, k, v, mask=masks.tree(parent, context), scale=1)
    for node in range(nodes):
        path, at = [], node
        while at >= 0:
            path.insert(0, context + at)
            at = parent[at]
        alone = [*range(context), *path]
        field.exactly((o[node : node + 1], lse[node : node + 1]), dense.attention(q[node : node + 1], k[alone], v[alone], scale=1))


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_documents_see_themselves(fast, id_q, id_k):
    expected = np.array([[a == b for b in id_k] for a in id_q], bool).reshape(len(id_q), len(id_k))
    arrays = np.array(id_q, dtype=np.int64), np.array(id_k, dtype=np.int64)
    exactly(masks.document(*arrays), expected, "spec")
    exactly(fast.document(*(inputs.tensor(x) for x in arrays)), expected, "fast")


@given(sizes, sizes, st.sampled_from([1, 2, 8, 16]))
def test_alibi_falls_with_the_distance(fast, n_q, n_k, heads):
    """Slopes of powers of two are powers of two, so everything is exact; adjacent keys differ by the slope, the own key has none."""
    slopes = masks.slopes(heads)
    bias = masks.alibi(n_q, n_k, slopes)
    exactly(slopes, np.array([2.0 ** -((h + 1) * 8 / heads) for h in range(heads)]), "slopes")
    for i in range(n_q):
        for j in range(n_k):
            exactly(bias[:, i, j], -slopes * abs(i + n_k - n_q - j), "bias")
    if heads <= 8:
        exactly(fast.slopes(heads), slopes, "fast, slopes")
        exactly(fast.alibi(n_q, n_k, inputs.tensor(slopes, "float32")), bias, "fast, bias")


@given(inputs.seeds, sizes, sizes, st.sampled_from([1, 3, 16]), st.sampled_from([1, 4, 16]))
@example(0, 17, 33, 16, 16)
def test_blocks_are_empty_full_or_neither(fast, seed, n_q, n_k, bq, bk):
    """Masks of random density, ragged last blocks included; every block against its own pairs."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n_q, n_k)) < rng.choice([0, 0.05, 0.5, 0.95, 1])
    shape = -(-n_q // bq), -(-n_k // bk)
    expected = np.zeros(shape, int)
    for i, j in np.ndindex(shape):
        pairs = [mask[a, b] for a in range(i * bq, min((i + 1) * bq, n_q)) for b in range(j * bk, min((j + 1) * bk, n_k))]
        expected[i, j] = 0 if not any(pairs) else 2 if all(pairs) else 1
    exactly(masks.blocks(mask, bq, bk), expected, "spec")
    exactly(fast.blocks(inputs.tensor(mask), bq, bk), expected, "fast")


@given(st.sampled_from([(5, 17), (17, 5), (16, 16)]), st.sampled_from(["causal", "window", "prefix_lm", "chunked", "tree"]))
def test_mask_tomography(fast, shape, name):
    """q = 0 and the identity as values: attention returns, times the number of keys, the mask that it was given."""
    n_q, n_k = shape
    if name == "tree":
        n_k = n_q + 3
        mask = fast.tree(inputs.tensor(np.maximum(np.arange(n_q) - 3, -1)), 3)
    else:
        more = {"causal": (), "window": (2, 1), "prefix_lm": (4,), "chunked": (6,)}[name]
        mask = getattr(fast, name)(n_q, n_k, *more, device=inputs.target.device())
    mask = inputs.array(mask).astype(bool)
    o, lse = dense.attention(np.zeros((n_q, 8)), np.ones((n_k, 8)), np.eye(n_k), mask=mask)
    exactly(np.rint(o * mask.sum(1)[:, None]), mask.astype(float), "keys")
    exactly(np.rint(np.exp(lse)), mask.sum(1).astype(float), "number of keys")


def test_wrong_arguments_are_named(fast):
    for call, error, name in (
        (lambda: fast.window(2, 2, -1, 0), ValueError, "left"),
        (lambda: fast.window(2, 2, 0, -1), ValueError, "right"),
        (lambda: fast.chunked(2, 2, 0), ValueError, "c must"),
        (lambda: fast.tree(torch.tensor([0, 0]), 1), ValueError, "parent"),
        (lambda: fast.tree(torch.tensor([-1, 2, 0]), 1), ValueError, "parent"),
        (lambda: fast.blocks(torch.ones(2, 2), 1, 1), TypeError, "mask"),
        (lambda: fast.blocks(torch.ones(2, 2, dtype=torch.bool), 0, 1), ValueError, "bq"),
    ):
        with pytest.raises(error, match=name):
            call()
