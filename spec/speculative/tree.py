r"""Token trees: many drafts that share their beginnings, scored by the target in one pass, each token seeing only its own past.

Paper: Miao, Oliaro, Zhang, et al., "SpecInfer: Accelerating Generative Large Language Model Serving with Tree-based Speculative Inference
and Verification", 2023, arXiv:2305.09781, Sec. 4 (tree attention and its topology-aware causal mask).

Node 0 is the last committed token; every other node continues its parent. A pass over all nodes at once gives each node the row that
plain causal decoding would give it after its own path from the root, if

$$\mathrm{mask}_{ij} = [\,j = i \text{ or } j \text{ is an ancestor of } i\,], \qquad
\mathrm{mask} = I + A + A^2 + \dots = (I - A)^{-1}, \quad A_{n,\,\mathrm{parent}(n)} = 1,$$

and if node $n$ stands at the position (root's position) + depth$(n)$: siblings share one. All of the text before the root stays visible
to every node and is left out of the mask.

| name | paper | shape | meaning |
|---|---|---|---|
| `parents` | $\mathcal N$ | `(N,)` | the node that each node continues: -1 for the root, else a smaller id |
| `path` | | any length | the accepted nodes, from the root down, the root itself left out |
| `cache` | | `(N, ...)` | what this pass has stored for its nodes: keys, values, hidden states |

Deviations: the paper describes the mask over a depth-first order of the nodes; any order in which parents come first is the same tree, so
only that is asked for. Committing the accepted path is described there in words.
"""

import numpy as np

__all__ = ["mask", "depth", "paths", "commit"]


def mask(parents):
    """The definition: which nodes each node sees, `(N, N)`: itself and its ancestors.

    >>> mask([-1, 0, 0, 1]).astype(int).tolist()              # node 3 continues node 1 and does not see node 2
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    nodes = np.arange(len(parents))
    return np.stack([np.isin(nodes, line) for line in _lines(parents)])


def depth(parents):
    """How far each node is from the root `(N,)`: its position in the text, counted from the root's.

    >>> depth([-1, 0, 0, 1]).tolist(), depth([-1]).tolist()
    ([0, 1, 1, 2], [0])
    """
    return np.array([len(line) - 1 for line in _lines(parents)])


def paths(parents):
    """One list of node ids per leaf, from the root to the leaf; leaves by id. A root alone is a leaf.

    >>> paths([-1, 0, 0, 1]), paths([-1])
    ([[0, 2], [0, 1, 3]], [[0]])
    """
    return [line for node, line in enumerate(_lines(parents)) if node not in parents]


def commit(cache, path):
    """What the text keeps of this pass `(1 + len(path), ...)`: the root and the accepted path, side by side.

    The path is seldom the first nodes of the tree, so a tree is not rewound by moving an end mark: its entries must be gathered.

    >>> commit(np.array([10, 11, 12, 13]), [2]).tolist(), commit(np.array([10, 11, 12, 13]), []).tolist()
    ([10, 12], [10])
    """
    return cache[[0, *path]]


def _lines(parents):
    """The ids from the root to each node, the node included."""
    lines = []
    for node, parent in enumerate(parents):
        if not (0 <= parent < node or node == 0 and parent == -1):
            raise ValueError(f"parents[{node}] must be {f'a node before {node}' if node else '-1, for the root'}, not {parent}")
        lines.append([*lines[parent], node] if node else [0])
    if not lines:
        raise ValueError("parents must hold at least the root")
    return lines
