r"""EAGLE-2: grow the draft tree where the drafter is confident, then keep the most promising nodes of all that it scored.

Paper: Li, Wei, Zhang, Zhang, "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees", 2024, arXiv:2406.16858, Sec. 4.1
(expansion), 4.2 (reranking).

A drafter's probability of a token is close to the chance that the target accepts it, so a node is worth about

$$V(n) = \prod_{m \,\in\, \text{path to } n} q(m), \qquad \text{expected tokens} \approx \textstyle\sum_{n \in \text{tree}} V(n).$$

*Expand*: layer by layer, the $k$ nodes of greatest value are asked for their $k$ likeliest children each. *Rerank*: of all nodes so
made, on every layer, the `total` of greatest value are kept. A child is never worth more than its parent, so what is kept is a tree.

| name | paper | shape | meaning |
|---|---|---|---|
| `expand` | $p(t_{i+1} \mid T_{1:i})$ (the drafter) | path -> `(V,)` | the drafter's law after the token ids on the path from the root |
| `k` | $k$ | integer | nodes expanded per layer, and children of each |
| `depth` | $d$ | integer | layers |
| `total` | $m$ | integer | nodes kept, the root not counted |
| `values` | $V_i$ | one per node | probability of the node's path under the drafter; 1 at the root |

Deviations: the paper accumulates confidences, this text the drafter's probabilities themselves; tokens of probability 0 are not made. Of
equal values the shallower node wins, then the one made first, so a child of probability 1 never goes before its parent. The released
code counts the first layer apart, so its depth of 6 is 7 layers here (from memory).

The tree is a function of the drafter, not of chance: verify it by exact match (`match.verify_tree`), which is lossless. The drafter's
probabilities are *not* the law its tokens were drawn from, and a test of the ratio $p/q$ with them is biased.
"""

import numpy as np

__all__ = ["grow"]


def grow(expand, k, depth, total):
    """The definition: the tree as (tokens, parents, values), numbered by depth, then by value; `tokens[0]` = -1 is for the caller to fill.

    >>> always = lambda path: np.array([0.5, 0.25, 0.25])
    >>> grow(always, k=2, depth=2, total=4)[:2]                # the last node, 1/8, ties with [1, 0], which was made after it
    ([-1, 0, 1, 0, 1], [-1, 0, 0, 1, 1])
    >>> grow(always, k=2, depth=0, total=4)
    ([-1], [-1], [1])
    """
    nodes, layer = [((), 1)], [((), 1)]                        # (path, value), the root first, in the order they are made
    for _ in range(depth):
        layer = [child for node in most_valuable(layer, k) for child in children(expand, node, k)]
        nodes = nodes + layer
    return numbered([nodes[0], *most_valuable(nodes[1:], total)])


def children(expand, node, k):
    """The k likeliest continuations of a node, those of probability 0 left out."""
    path, value = node
    row = expand(path)                                         # (V,)
    if not np.all(row >= 0):
        raise ValueError(f"expand({path}) must be numbers of at least 0, not {row}")
    likeliest = [int(token) for token in np.argsort(-row, kind="stable")[:k] if row[token] > 0]
    return [((*path, token), value * row[token]) for token in likeliest]


def most_valuable(nodes, n):
    """The n nodes of greatest value, the greatest first; of equals the earlier."""
    return sorted(nodes, key=lambda node: -node[1])[:n]        # sorted keeps the order of equals


def numbered(nodes):
    """Any nodes that form a tree, in its final order: by depth, then value, then as they come."""
    nodes = sorted(nodes, key=lambda node: (len(node[0]), -node[1]))
    place = {path: n for n, (path, _) in enumerate(nodes)}
    tokens = [path[-1] if path else -1 for path, _ in nodes]
    parents = [place[path[:-1]] if path else -1 for path, _ in nodes]
    return tokens, parents, [value for _, value in nodes]
