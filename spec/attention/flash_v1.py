r"""FlashAttention: exact attention that counts what it moves, with the keys in the outer loop and a normalized output in slow memory.

Paper: Dao, Fu, Ermon, Rudra and Ré, "FlashAttention", 2022, arXiv:2205.14135, Alg. 1 (forward), Alg. 4 (backward), Alg. 5 (block
sparse), Theorem 2.

A block of keys and values stays in fast memory while all blocks of queries pass by. Each tile makes its own $\tilde m$, $\tilde l$ and
$\tilde P = e^{s-\tilde m}$; the rows' output, which lies *normalized* in slow memory, is denormalized, added to and normalized again:

$$m' = \max(m, \tilde m), \qquad l' = e^{m-m'} l + e^{\tilde m-m'}\tilde l, \qquad
o' = \bigl(l\,e^{m-m'}\,o + e^{\tilde m-m'}\tilde P v\bigr)/l'.$$

With a fast memory of M elements, blocks of $B_c = \lceil M/4d\rceil$ keys and $B_r = \min(\lceil M/4d\rceil, d)$ queries fit, and
$\Theta(N^2 d^2/M)$ elements move. The backward pass makes $P = e^{s-L}$ again, and $D = \text{rowsum}(\bar o\circ o)$ for each tile.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v`, `o` | $Q, K, V, O$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)`, `(Nq, Dv)` | queries, keys, values, output |
| `lse` | $m + \log\ell$ | `(Nq,)` | natural log-sum-exp of each row's logits |
| `block_q`, `block_k` | $B_r, B_c$ | | rows and columns of a tile |
| `block_mask` | $\tilde M$ | `(⌈Nq/block_q⌉, ⌈Nk/block_k⌉)` | True for the tiles that are attended |
| `m`, `l` | $m, \ell$ | `(block_q,)` | maximum and sum of a block of rows, in slow memory beside its output |

Deviations: a row that has met no key would divide 0 by 0 as published; here its maximum counts as 0 and it is divided by 1. The paper
keeps m and l for the backward pass, we keep $L = m + \log l$. Dropout is left out. Zeros that an output starts from do not count as moved.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention.dense import logits

__all__ = ["forward", "backward", "block_sparse", "traffic"]


def forward(q, k, v, *, block_q=64, block_k=64, mask=None, scale=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`: `dense.attention` for every size of block.

    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> o, lse = forward(x, x, x, block_q=1, block_k=1, mask=np.array([[0, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=bool))
    >>> o.tolist(), lse.tolist()                                                  # the first tile of a row may be empty, or all of them
    ([[2.0], [1.0], [0.0]], [0.0, 1.0, -inf])
    """
    everything = np.ones((-(-len(q) // block_q), -(-len(k) // block_k)), dtype=bool)
    return block_sparse(q, k, v, everything, block_q=block_q, block_k=block_k, mask=mask, scale=scale)


def block_sparse(q, k, v, block_mask, *, block_q=64, block_k=64, mask=None, scale=None):
    """Attention to the tiles that `block_mask` names, within `mask`; the others are neither loaded nor computed."""
    scale = q.shape[1] ** -0.5 if scale is None else scale
    queries, keys = _blocks(len(q), block_q), _blocks(len(k), block_k)
    memory = _slow((np.zeros((_size(rows), v.shape[1])), np.zeros(_size(rows)), np.full(_size(rows), -np.inf)) for rows in queries)
    for j, columns in enumerate(keys):
        if not block_mask[:, j].any():
            continue
        k_tile, v_tile = k[columns], v[columns]                       # they stay while the rows pass by
        for i, rows in enumerate(queries):
            if block_mask[i, j]:
                s = logits(q[rows], k_tile, mask=None if mask is None else mask[rows, columns], scale=scale)
                memory[i] = _absorb(*memory[i], s, v_tile)
    o, l, m = (np.concatenate(parts) for parts in zip((np.zeros((0, v.shape[1])), np.zeros(0), np.zeros(0)), *memory))
    return o, np.where(l == 0, -np.inf, _safe(m) + np.log(np.where(l == 0, 1.0, l)))


def backward(q, k, v, o, lse, do, *, block_q=64, block_k=64, dlse=None, mask=None, scale=None):
    """Gradients `(dq, dk, dv)` from what `forward` returned; `dlse` is the loss's gradient by the log-sum-exp, if it has one."""
    scale = q.shape[1] ** -0.5 if scale is None else scale
    queries, keys = _blocks(len(q), block_q), _blocks(len(k), block_k)
    lse = np.where(lse == -np.inf, np.inf, lse)                       # a row without keys: e^(s - inf) = 0
    dq = [np.zeros((_size(rows), q.shape[1])) for rows in queries]
    dk, dv = [np.zeros((0, k.shape[1]))], [np.zeros((0, v.shape[1]))]
    for columns in keys:
        dk_tile, dv_tile = np.zeros((_size(columns), k.shape[1])), np.zeros((_size(columns), v.shape[1]))
        for i, rows in enumerate(queries):
            s = logits(q[rows], k[columns], mask=None if mask is None else mask[rows, columns], scale=scale)
            p = np.exp(s - lse[rows, None])                           # (block_q, block_k)
            d = np.sum(do[rows] * o[rows], axis=1)
            delta = d if dlse is None else d - dlse[rows]
            ds = p * (do[rows] @ v[columns].T - delta[:, None])
            dv_tile = dv_tile + p.T @ do[rows]
            dk_tile = dk_tile + scale * (ds.T @ q[rows])
            dq[i] = dq[i] + scale * (ds @ k[columns])
        dk.append(dk_tile)
        dv.append(dv_tile)
    return np.concatenate([np.zeros((0, q.shape[1])), *dq]), np.concatenate(dk), np.concatenate(dv)


def traffic(nq, nk, d, dv, block_q, block_k):
    """How many elements `forward` moves between the memories: each key and value once, the rows' q, o, l and m once per block of keys.

    >>> traffic(4096, 4096, 64, 64, 64, 400)                                      # M = 102400; the score matrix has 16.8 million
    9355264
    """
    return nk * (d + dv) + -(-nk // block_k) * nq * (d + 2 * dv + 4)  # o, l and m are read and written


def _absorb(o, l, m, s, v):
    """A block of rows, normalized, after one more tile of logits `s` with values `v`; normalized again."""
    m_tile = np.max(s, axis=1)
    p = np.exp(s - _safe(m_tile)[:, None])                            # (block_q, block_k)
    m_new = np.maximum(m, m_tile)
    before, now = np.exp(m - _safe(m_new)) * l, np.exp(m_tile - _safe(m_new))
    l_new = before + now * np.sum(p, axis=1)
    total = np.where(l_new == 0, 1.0, l_new)
    return (before[:, None] * o + now[:, None] * (p @ v)) / total[:, None], l_new, m_new


def _safe(m):
    return np.where(m == -np.inf, 0.0, m)                             # no key yet: -inf - -inf is no logit


def _blocks(length, size):
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _size(block):
    return block.stop - block.start


def _slow(blocks):
    return list(blocks)                                               # slow memory: o, l and m of each block of rows
