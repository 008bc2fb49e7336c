r"""Flexible attention: a mask and a score given as functions, and lists of the blocks that are worth a visit.

Paper: Dong, Feng, Guessous, Liang, He, "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", 2024,
arXiv:2412.05496, Sec. 3.

Nearly every kind of attention changes one of two things: which keys a row may see, or what a logit is. Both are functions of where one
stands, of batch b, head h, row i and key j; a score may depend on the logit as well. They are applied after scaling, the score first:

$$s_{ij} = \mathrm{score}(\text{scale}\; q_i^\top k_j,\, b, h, i, j) \ \text{ if } \mathrm{mask}(b, h, i, j), \qquad
o_i = \frac{\sum_j e^{s_{ij}} v_j}{\sum_j e^{s_{ij}}}.$$

A mask may leave most blocks of the score matrix empty. Asked once, block by block, it says which are *full*, so that nothing in them need
be masked, and which are *partial*; no other block is visited.

| name | paper | shape | meaning |
|---|---|---|---|
| `mask_mod(b, h, i, j)` | mask_mod | broadcasts | whether row i sees key j; all if None |
| `score_mod(s, b, h, i, j)` | score_mod | broadcasts | the logit in place of s; s if None |
| `i`, `j` | q_idx, kv_idx | `(Nq, 1)`, `(1, Nk)` | index of a row and of a key, without any offset between the two |
| `full`, `partial` | BlockMask | | for each line of `bq` rows an ascending list of blocks of `bk` keys |

Deviations: none known. A NaN that a score returns where the mask is false does not count. Lists made for a longer problem serve a
shorter one.
Derives from: attention.online_softmax
"""

import numpy as np

from twofold.spec.attention import online_softmax

__all__ = ["attention", "sparse", "block_mask"]


def attention(q, k, v, mask_mod=None, score_mod=None, *, b=0, h=0, scale=None):
    """The definition, on the whole score matrix. Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`.

    >>> q = k = np.zeros((3, 1)); v = np.array([[1.0], [3.0], [8.0]])
    >>> attention(q, k, v, lambda b, h, i, j: j <= i)[0].ravel().tolist()
    [1.0, 2.0, 4.0]
    >>> attention(q, k, v, lambda b, h, i, j: j == i, lambda s, b, h, i, j: s + np.where(j == i, 0.0, np.nan))[0].ravel().tolist()
    [1.0, 3.0, 8.0]
    >>> attention(q, k, v, lambda b, h, i, j: j < i)[1].tolist()[0]               # the first row sees nothing
    -inf
    """
    rows, keys = np.arange(len(q)), np.arange(len(k))
    state = online_softmax.update(_nothing(q, v), _scores(q, k, rows, keys, mask_mod, score_mod, b, h, scale), v)
    return online_softmax.finish(state)


def block_mask(mask_mod, nq, nk, bq, bk, *, b=0, h=0):
    """The lists (full, partial) of `mask_mod`, one of each for every line of `bq` rows. What lies behind the last key does not count.

    >>> block_mask(lambda b, h, i, j: j <= i, 5, 5, 2, 2)
    ([[], [0], [0, 1, 2]], [[0], [1], []])
    """
    full, partial = [], []
    for start in range(0, nq, bq):
        rows = np.arange(start, min(start + bq, nq))
        blocks = [_allowed(mask_mod, rows, np.arange(at, min(at + bk, nk)), b, h) for at in range(0, nk, bk)]
        full.append([n for n, block in enumerate(blocks) if block.all()])
        partial.append([n for n, block in enumerate(blocks) if block.any() and not block.all()])
    return full, partial


def sparse(q, k, v, mask_mod, score_mod, blocks, bq, bk, *, b=0, h=0, scale=None):
    """The same from lists: each line of rows visits its full blocks, without asking the mask, and then its partial ones."""
    full, partial = blocks
    outputs, sums = [v[:0]], [v[:0, 0]]
    for line, start in enumerate(range(0, len(q), bq)):
        rows = np.arange(start, min(start + bq, len(q)))
        state = _nothing(q[rows], v)
        for lists, mask in ((full, None), (partial, mask_mod)):
            for n in lists[line]:
                keys = np.arange(n * bk, min(n * bk + bk, len(k)))                # none, if the lists were made for more keys
                s = _scores(q[rows], k[keys], rows, keys, mask, score_mod, b, h, scale)
                state = online_softmax.update(state, s, v[keys])
        o, lse = online_softmax.finish(state)
        outputs.append(o)
        sums.append(lse)
    return np.concatenate(outputs), np.concatenate(sums)


def _nothing(q, v):
    m, l, a = online_softmax.identity(v.shape[1])
    return np.full(len(q), m), np.full(len(q), l), np.zeros((len(q), 1)) + a


def _scores(q, k, rows, keys, mask_mod, score_mod, b, h, scale):
    s = (q.shape[1] ** -0.5 if scale is None else scale) * (q @ k.T)
    s = s if score_mod is None else score_mod(s, b, h, rows[:, None], keys[None, :])
    return np.where(_allowed(mask_mod, rows, keys, b, h), s, -np.inf)


def _allowed(mask_mod, rows, keys, b, h):
    everything = np.ones((len(rows), len(keys)), dtype=bool)
    return everything if mask_mod is None else everything & mask_mod(b, h, rows[:, None], keys[None, :])
