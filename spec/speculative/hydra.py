r"""Hydra: Medusa's heads, one after another, each told the tokens that were drafted before its own.

Paper: Ankner, Parthasarathy, Nrusimha, Rinard, Ragan-Kelley, Brandon, "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding",
2024, arXiv:2402.05109, Sec. 3.

Medusa's heads do not hear each other, so their guesses need not fit together. Head $k$ of Hydra reads, beside the state $h$, the embeddings
of the last written token $x_{-1}$, which the state has not seen yet, and of the drafted tokens up to its own:

$$c_k = [\,h;\, e(x_{-1});\, e(x_0);\, \dots;\, e(x_{k-1})\,], \qquad
q(\cdot \mid x_{<k}) = \mathrm{softmax}\left(W_2^{(k)}(\mathrm{SiLU}(W_1^{(k)} c_k + b_1^{(k)}) + h)\right).$$

The draft law is a chain of conditionals and no product any more; with zeros in all columns of $W_1$ but those of $h$ it is Medusa's. In a
tree of candidates a node of ranks $(r_0 \dots r_{d-1})$ carries the token of rank $r_{d-1}$ *given its own path*.

| name | paper | shape | meaning |
|---|---|---|---|
| `h` | $h_{t-1}$ | `(D,)` | last hidden state, of the token before the last |
| `token` | $x_t$ | integer | the last written token, the root of a tree |
| `told` | | `(K,)` or fewer | that token, then the drafted ones: head k reads the first k + 1 |
| `embed` | $E$ | `(V, D)` | the target's embedding |
| `w1`, `b1` | | K of `(D, (k + 2) D)`, `(K, D)` | the heads: columns for h, then for each token told |
| `w2` | | `(K, V, D)` | their output matrices |
| `choices` | | tuples of ranks | a tree, as `medusa.choices` makes it |

Deviations: heads are counted from 0. The skip connection is h, as in Medusa; the released heads skip the whole input through one more
matrix. Hydra++ (deeper heads, a layer over the prefix, distillation) is not here. The section number is from memory.
Derives from: speculative.medusa.
"""

import numpy as np

from twofold.spec.speculative import eagle, medusa

__all__ = ["head", "heads", "draft", "candidates"]


def head(h, told, embed, w1, b1, w2):
    """The definition: logits `(V,)` of head k, the one that is told k + 1 tokens."""
    k = len(told) - 1
    if not 0 <= k < len(w1):
        raise ValueError(f"told must hold 1 to {len(w1)} tokens, one for head 0 and one more for each head after, not {len(told)}")
    read = np.concatenate([h, *embed[told]])                                            # ((k + 2) D,)
    return w2[k] @ (medusa.silu(w1[k] @ read + b1[k]) + h)


def heads(h, told, embed, w1, b1, w2):
    """All of them at once where the tokens are known, as in training `(K, V)`; `medusa.loss` is the loss of such rows."""
    return np.stack([head(h, told[: k + 1], embed, w1, b1, w2) for k in range(len(told))])


def draft(h, token, embed, w1, b1, w2, gamma, rng=None):
    """A chain: the drafted tokens `(gamma,)`, at most one per head, and the law that each was drawn from `(gamma, V)`.

    >>> eye = np.eye(3)                                   # one head that passes on the token it was told
    >>> draft(np.zeros(3), 2, eye, [np.hstack([0 * eye, eye])], np.zeros((1, 3)), eye[None], gamma=1)[0]
    [2]
    """
    told, q = [token], []
    for _ in range(gamma):
        q.append(eagle.softmax(head(h, told, embed, w1, b1, w2)))                       # (V,)
        told.append(eagle.choose(q[-1], rng))
    return told[1:], np.stack(q) if q else np.zeros((0, len(embed)))


def candidates(h, token, embed, w1, b1, w2, choices):
    """A tree as (tokens, parents), node 0 the last written token; then by depth, then by ranks. Ties go to the lowest id."""
    nodes = [(), *sorted(set(choices), key=lambda node: (len(node), node))]
    path, parents = {(): [token]}, [-1]
    for node in nodes[1:]:
        if node[:-1] not in path or node[-1] not in range(len(embed)):
            raise ValueError(f"choices holds {node}: its parent must be there too, and its rank below V = {len(embed)}")
        logits = head(h, path[node[:-1]], embed, w1, b1, w2)                            # (V,)
        likeliest = np.argsort(-logits, kind="stable")
        path[node] = [*path[node[:-1]], int(likeliest[node[-1]])]
        parents.append(nodes.index(node[:-1]))
    return [path[node][-1] for node in nodes], parents
