r"""Sequoia: the best fixed draft tree of a given size and depth, from how often the target accepts a first, second, third child.

Paper: Chen, May, Svirschevski, Huang, Ryabinin, Jia, Chen, "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding", 2024,
arXiv:2402.12374, Sec. 3.1 (the tree by dynamic programming), 3.3 (the hardware-aware optimizer).

Let $a_j$ be the chance that the $j$-th child of a node is the one accepted, given that the node is. Assume that it is the same at every
node. Then the expected number of tokens per round, the target's own included, is the sum over nodes of the product of $a$ down the path,

$$F(\tau) = \sum_{n \in \tau}\ \prod_{m \,\in\, \text{path to } n} a_{\mathrm{rank}(m)}, \qquad
T(n, d) = \max_{|\tau| = n,\ \mathrm{depth}(\tau) \le d} F(\tau).$$

The root counts 1. What hangs below it is a forest: a first child with $s$ nodes, and the rest of the forest from the next child on:

$$T(n, d) = 1 + C(n-1, d-1, 1), \qquad C(m, d, j) = \max_{1 \le s \le m}\ a_j\,T(s, d) + C(m-s, d, j+1), \qquad C(0, d, j) = 0.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `accept` | $p_1, p_2, \dots$ | `(J,)` | the acceptance vector $a$; a node has at most J children |
| `nodes` | $n$ | integer, at least 1 | size of the tree, the root included |
| `depth` | $d$ | integer | the tree has at most this many levels below the root |
| `cost` | $t(n)$ | `(N,)` | `cost[n - 1]` is the time of a target pass over n nodes |
| `c` | $c$ | number | the time of a drafter pass, one for each level |

Deviations: the tree has exactly `nodes` nodes, and where that is impossible an error is raised. Of trees worth the same the one whose
first child has the fewest nodes is returned, and so on down. Section numbers are from memory.
Where `accept` never rises the optimum is also the `nodes` greatest path products; the recurrence does not need that.
"""

from functools import cache
from math import inf

__all__ = ["optimize", "hardware"]


def optimize(accept, nodes, depth):
    """The definition: (expected tokens per round, parents of the best tree), numbered level by level, the root first.

    >>> optimize([0.5, 0.25], nodes=4, depth=2)                  # 1 + 1/2 + 1/4 + 1/4: a second child is worth a grandchild
    (2.0, [-1, 0, 0, 1])
    >>> optimize([0.75, 0.125], nodes=4, depth=3)[1], optimize([0.5], nodes=1, depth=0)
    ([-1, 0, 1, 2], (1, [-1]))
    """
    tree = solver(accept)
    value, sizes = tree(nodes, depth)
    if value == -inf:
        raise ValueError(f"nodes must fit: no tree of {nodes} nodes has at most {depth} levels below its root and {len(accept)} children")
    parents, levels = [-1], [(0, depth, sizes)]                  # ids, what is left of the depth, and the sizes of its children
    for node, left, children in levels:                          # grows while it is walked
        for size in children:
            levels.append((len(parents), left - 1, tree(size, left - 1)[1]))
            parents.append(node)
    return value, parents


def hardware(accept, cost, c):
    """The size and depth (n, d) of most tokens per time, F / (t(n) + d c); the smallest n of equals, then the smallest d.

    >>> hardware([0.5, 0.25], cost=[1, 1, 1, 4], c=0)            # three nodes cost no more than one
    (3, 1)
    """
    tree = solver(accept)
    sizes = [(n, d) for n in range(1, len(cost) + 1) for d in range(n) if tree(n, d)[0] > -inf]
    return max(sizes, key=lambda size: tree(*size)[0] / (cost[size[0] - 1] + size[1] * c))


def solver(accept):
    """T(n, d) as a function, which also tells the sizes of the root's subtrees; -inf where there is no such tree."""

    @cache
    def tree(n, d):
        value, sizes = forest(n - 1, d - 1, 0)
        return 1 + value, sizes

    @cache
    def forest(m, d, j):
        if m == 0:
            return 0, ()
        if d < 0 or j == len(accept):
            return -inf, ()
        options = [(accept[j] * tree(s, d)[0] + forest(m - s, d, j + 1)[0], s) for s in range(1, m + 1) if tree(s, d)[0] > -inf]
        value, size = max(options, key=lambda option: option[0], default=(-inf, 0))  # the smallest size of equals
        return value, (size, *forest(m - size, d, j + 1)[1])

    return tree
