r"""Masks: which keys a row may see, as boolean matrices; and ALiBi, a bias that only knows how far a key is.

Paper: Press, Smith and Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2021,
arXiv:2108.12409, Sec. 3 (`slopes`, `alibi`). The masks are folklore; windows as in Beltagy et al., "Longformer", 2020, arXiv:2004.05150.

Row i stands at position $p_i = i + N_k - N_q$: rows are aligned to the end of the keys, since the newest tokens ask about all of them.

$$\text{causal: } j \le p_i, \qquad \text{window: } -l \le j - p_i \le r, \qquad \text{document: } d_i = d_j, \qquad
\text{chunked: } j \le p_i,\ \lfloor j/c\rfloor = \lfloor p_i/c\rfloor,$$
$$\text{prefix: } j < n \text{ or } j \le p_i, \qquad \text{tree: } j \text{ is context, } i \text{ itself or an ancestor}, \qquad
\text{ALiBi: } b_{hij} = -m_h\,|p_i - j|.$$

Masks combine with `&`, `|` and `~`. A kernel sees them in blocks, and asks of each: is it empty, so that it need not be visited, or full,
so that it need not be masked, or neither?

| name | shape | meaning |
|---|---|---|
| `nq`, `nk` | | rows and keys |
| `left`, `right` | | how far a window reaches to each side of a row's position; None: without end |
| `id_q`, `id_k` | `(Nq,)`, `(Nk,)` | the document of each row and key |
| `n`, `c` | | length of a prefix that all see, length of a chunk |
| `parent`, `context` | `(T,)` | of each node of a drafted tree an earlier node or -1; tokens before the tree |
| `slopes` | `(H,)` | how fast each head forgets |
| `bq`, `bk` | | rows and columns of a block |

Deviations: the distance of ALiBi is absolute, so that it also serves rows that see what comes later. For numbers of heads that are no power
of two the paper's released code interleaves the slopes of the next power; here the formula of the text is used for every number.
"""

import numpy as np

__all__ = ["causal", "window", "document", "prefix_lm", "chunked", "tree", "slopes", "alibi", "blocks"]


def causal(nq, nk):
    """Nothing that comes later.

    >>> causal(2, 3).astype(int).tolist(), causal(3, 1).astype(int).tolist()              # rows before the first key see nothing
    ([[1, 1, 0], [1, 1, 1]], [[0], [0], [1]])
    """
    return window(nq, nk, None, 0)


def window(nq, nk, left, right):
    """Nothing further away than this.

    >>> window(3, 3, 1, 0).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    ahead = np.arange(nk)[None, :] - _positions(nq, nk)[:, None]      # (Nq, Nk)
    return (ahead >= (-nk - nq if left is None else -left)) & (ahead <= (nk + nq if right is None else right))


def document(id_q, id_k):
    """Nothing of another document."""
    return id_q[:, None] == id_k[None, :]


def prefix_lm(nq, nk, n):
    """All of the first n tokens, and nothing later otherwise."""
    return causal(nq, nk) | (np.arange(nk) < n)[None, :]


def chunked(nq, nk, c):
    """Nothing later, and nothing of another chunk of c tokens."""
    return causal(nq, nk) & (_positions(nq, nk)[:, None] // c == np.arange(nk)[None, :] // c)


def tree(parent, context):
    """The nodes of a tree behind a context `(T, context + T)`: all of the context, and the way from the root.

    >>> tree([-1, 0, 0, 2], 1).astype(int).tolist()
    [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    """
    ways = []
    for node, above in enumerate(parent):
        itself = np.arange(len(parent)) == node
        ways.append(itself if above < 0 else itself | ways[above])
    ancestors = np.array(ways, dtype=bool).reshape(len(parent), len(parent))
    return np.concatenate([np.ones((len(parent), context), dtype=bool), ancestors], axis=1)


def slopes(h):
    """The slopes of h heads, from the one that forgets fastest.

    >>> slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    return 2.0 ** (-8 * np.arange(1, h + 1) / h)


def alibi(nq, nk, slopes):
    """The bias `(H, Nq, Nk)` of each head: minus its slope for every token in between."""
    distance = np.abs(_positions(nq, nk)[:, None] - np.arange(nk)[None, :])
    return -slopes[:, None, None] * distance[None]


def blocks(mask, bq, bk):
    """Of every block of bq rows and bk keys: 0 if no row sees a key, 2 if every row sees all of them, else 1.

    >>> blocks(causal(4, 4), 2, 2).tolist()
    [[1, 0], [2, 1]]
    """
    rows = [mask[i : i + bq] for i in range(0, mask.shape[0], bq)]
    kinds = [[int(row[:, j : j + bk].any()) + int(row[:, j : j + bk].all()) for j in range(0, mask.shape[1], bk)] for row in rows]
    return np.array(kinds, dtype=int).reshape(len(rows), -(-mask.shape[1] // bk))


def _positions(nq, nk):
    return np.arange(nq) + nk - nq
