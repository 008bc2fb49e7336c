r"""OPT-Tree: of all draft trees of a given size, the one from which the target is expected to accept most tokens.

Paper: Wang, Su, Li, Xia, Ye, Duan, Wang, Zhang, "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure", 2024,
arXiv:2406.17276, Sec. 3 and Alg. 1.

If the drafter's probabilities are the chances of acceptance, a tree yields as many tokens as its nodes are worth together,

$$E(T) = \sum_{n \in T} V(n), \qquad V(n) = \prod_{m \,\in\, \text{path to } n} q(m).$$

A child is never worth more than its parent, so the $n$ most valuable nodes of all form a tree, and no other is worth more. On each layer
only the $n$ best can be among them; and if a layer adds nothing, no deeper one does. So the tree is found layer by layer, in at most
$n + 1$ calls of the drafter. A layer costs a call: where it adds less than `gain`, drafting ends.

| name | paper | shape | meaning |
|---|---|---|---|
| `expand` | $q$ | path -> `(V,)` | the drafter's law after the token ids on the path from the root |
| `nodes` | $n$ | integer | size of the tree, the root not counted |
| `gain` | $\delta$ | number | least growth of $E$ for which another layer is drafted; 0 gives the optimum |
| `values` | $\hat p$ | one per node | probability of the node's path under the drafter; 1 at the root |

Deviations: a layer that adds nothing ends the drafting even where `gain` is 0. What the last layer brought is kept, however little it was
(from memory of Alg. 1). Ties as in EAGLE-2: the shallower node, then the one made first.
Derives from: speculative.eagle2.
"""

from twofold.spec.speculative import eagle2

__all__ = ["grow"]


def grow(expand, nodes, gain):
    """The definition: the tree as (tokens, parents, values), numbered by depth, then by value; `tokens[0]` = -1 is for the caller to fill.

    >>> import numpy as np
    >>> sure = lambda path: np.array([0.75, 0.25])
    >>> grow(sure, nodes=3, gain=0)[:2]                       # a chain: 3/4, 9/16 and 27/64 are all worth more than token 1, 1/4
    ([-1, 0, 0, 0], [-1, 0, 1, 2])
    >>> grow(sure, nodes=3, gain=1)[:2]                       # the second layer adds 9/16, less than 1: the last
    ([-1, 0, 1, 0], [-1, 0, 0, 1])
    """
    root = ((), 1)                                            # (path, value)
    best, layer = [], [root]
    while True:
        layer = eagle2.most_valuable([child for node in layer for child in eagle2.children(expand, node, nodes)], nodes)
        better = eagle2.most_valuable(best + layer, nodes)
        growth = worth(better) - worth(best)
        best = better
        if growth <= 0 or growth < gain:
            return eagle2.numbered([root, *best])


def worth(nodes):
    return sum(value for _, value in nodes)
