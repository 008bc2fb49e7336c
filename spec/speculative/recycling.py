r"""Token recycling: keep the runners-up that the target names in every pass, and draft from them the next time.

Paper: Luo et al., "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling", 2024,
arXiv:2408.08696, Sec. 3.

A pass that scores a drafted tree gives a row of probabilities at every node, and all but a few of these rows are thrown away. But the
likeliest successors of a token here are good guesses of its successors elsewhere. So a matrix $M$ holds, for every token, the $k$ likeliest
tokens after it, best first, as they were when it was last scored, whether on the accepted path or not:

$$M_{x,\cdot} \leftarrow \mathrm{top}_k\, p(\cdot \mid \dots x) \quad \text{for every scored node with token } x.$$

A draft is a tree of a fixed shape, filled from the root: the $j$-th child of a node is the $j$-th successor of its token,
$x_{\mathrm{child}_j(n)} = M_{x_n,\,j}$. The matrix is all there is to store, a few numbers per token, and one step fills a level.

| name | paper | shape | meaning |
|---|---|---|---|
| `matrix` | $M$ | `(V, k)` | the last seen successors of each token, best first; -1 where none is known, everywhere at the start |
| `tokens` | $x$ | `(N,)` | the tokens of the scored nodes, in order |
| `p` | | `(N, V)` | the target's law after each |
| `token` | | integer | the last committed token |
| `parents` | | `(N,)` | the shape of the tree, -1 at the root; the children of a node by id are its first, second, … |

Deviations: a token of probability 0 is no successor. Ties go to the lowest id. A token that is scored twice in a pass keeps the later row;
the paper's parallel write leaves that open, as remembered. Nodes without a known successor are left out, with all below them. The paper's
shape, a tree of 80 nodes found by search, is an argument here.
"""

import numpy as np

__all__ = ["update", "draft"]


def update(matrix, tokens, p):
    """The matrix after a pass that scored these nodes; the old one stays as it was.

    >>> nobody = np.full((3, 2), -1)
    >>> update(nobody, [2, 0], np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])).tolist()
    [[1, -1], [-1, -1], [1, 2]]
    """
    for token, row in zip(tokens, p, strict=True):
        if not np.all(row >= 0):
            raise ValueError(f"probabilities must be numbers of at least 0, not {row}")
        order = np.argsort(-row, kind="stable")  # of equals the lowest id
        best = [*(int(v) for v in order if row[v] > 0), *[-1] * matrix.shape[1]][: matrix.shape[1]]
        matrix = np.where(np.arange(len(matrix))[:, None] == token, best, matrix)  # (V, k)
    return matrix


def draft(matrix, token, parents):
    """The tree: tokens and parents of the nodes that could be filled, the root first with token -1.

    >>> matrix = np.array([[1, 2], [0, -1], [-1, -1]])
    >>> draft(matrix, 0, [-1, 0, 0, 1, 1, 2, 3])               # 1 has one successor, 2 has none
    ([-1, 1, 2, 0, 1], [-1, 0, 0, 1, 3])
    >>> draft(matrix, 2, [-1, 0])
    ([-1], [-1])
    """
    tokens, up, number = [int(token)], [-1], {0: 0}  # number: the node that fills a place of the shape
    for place in range(1, len(parents)):
        rank = list(parents[1:place]).count(parents[place])  # older siblings
        if parents[place] in number and rank < matrix.shape[1]:
            parent = number[parents[place]]
            successor = int(matrix[tokens[parent], rank])
            if successor >= 0:
                number[place] = len(tokens)
                tokens, up = [*tokens, successor], [*up, parent]
    return [-1, *tokens[1:]], up
