r"""FlashAttention-2: the same attention tile by tile, with a running maximum, and never the whole score matrix.

Paper: Dao, "FlashAttention-2", 2023, arXiv:2307.08691, Alg. 1 (forward), Alg. 2 (backward).

A block of queries walks over the blocks of keys. It keeps, per row, the largest logit seen so far m, the sum l of $e^{s-m}$, and the
unnormalized output a. When a new tile raises the maximum, what has been summed was measured against the old one and is rescaled:

$$m' = \max(m, \max_j s_j), \qquad l' = e^{m-m'} l + \textstyle\sum_j e^{s_j-m'}, \qquad a' = e^{m-m'} a + \sum_j e^{s_j-m'} v_j.$$

After the last tile $o = a/l$ and $L = m + \log l$. Only L is kept for the backward pass, which makes each tile of $P = w\,e^{s-L}$ again:

$$D = \text{rowsum}(\bar o\circ o), \qquad dS = P\circ(\bar o v^\top - D) + e^{s-L}\,\bar L, \qquad dX = dS\circ(1-\tanh^2(x/c)),$$
$$dv = P^\top \bar o, \qquad dq = \text{scale}\,dX\,k, \qquad dk = \text{scale}\,dX^\top q.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v`, `o` | $Q, K, V, O$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)`, `(Nq, Dv)` | queries, keys, values, output |
| `lse` | $L$ | `(Nq,)` | natural log-sum-exp of each row's logits |
| `block_q`, `block_k` | $B_r, B_c$ | | rows and columns of a tile; any sizes, dividing or not |
| `mask`, `scale`, `softcap`, `bias`, `sink` | | | as in `attention.dense` |
| `m`, `l`, `acc` | $m, \ell, \tilde O$ | `(B,)`, `(B,)`, `(B, Dv)` | running maximum, sum and unnormalized output |

Deviations: a tile without an allowed pair is skipped, and a row whose maximum is still -inf is measured against 0, so that rows without
keys end as output 0 and log-sum-exp -inf. Cap, bias, sink and the gradient of L are not in the paper. dQ is summed over key blocks in
order, which is what a deterministic kernel does; the paper's adds atomically.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention.dense import logits, share

__all__ = ["forward", "backward"]


def forward(q, k, v, *, block_q=64, block_k=64, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`: `dense.attention` for every size of block.

    >>> q = k = v = np.array([[0.0], [1.0], [2.0]])
    >>> o, lse = forward(q, k, v, block_q=2, block_k=1, mask=np.tri(3, dtype=bool))
    >>> float(o[0, 0]), float(lse[0])                                             # the first token sees only itself
    (0.0, 0.0)
    >>> [x.tolist() for x in forward(q[:1], k[:0], v[:0])]                        # no keys
    [[[0.0]], [-inf]]
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    outputs, sums = [np.zeros((0, v.shape[1]))], [np.zeros(0)]
    for rows in _blocks(len(q), block_q):
        m, l, acc = np.full(len(q[rows]), -np.inf), np.zeros(len(q[rows])), np.zeros((len(q[rows]), v.shape[1]))
        for keys in _blocks(len(k), block_k):
            if mask is not None and not mask[rows, keys].any():
                continue
            s = logits(q[rows], k[keys], scale=scale, softcap=softcap, **_tile(rows, keys, mask, bias))  # (block_q, block_k)
            m_new = np.maximum(m, np.max(s, axis=1))
            m_safe = np.where(m_new == -np.inf, 0.0, m_new)           # nothing seen yet: -inf - -inf is no logit
            p = np.exp(s - m_safe[:, None])
            rescale = np.exp(m - m_safe)                              # what was summed so far, against the new maximum   (block_q,)
            l = rescale * l + np.sum(p, axis=1)
            acc = rescale[:, None] * acc + p @ v[keys]
            m = m_new
        total = np.where(l == 0, 1.0, l)
        lse = np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total))
        outputs.append(share(lse, sink)[:, None] * (acc / total[:, None]))
        sums.append(lse)
    return np.concatenate(outputs), np.concatenate(sums)


def backward(q, k, v, o, lse, do, *, block_q=64, block_k=64, dlse=None, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """Gradients `(dq, dk, dv, dbias, dsink)` from what `forward` returned: `dense.backward` for every size of block.

    `dlse` is the gradient of the loss by the log-sum-exp; None stands for a gradient of something that was not given.
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    w = share(lse, sink)
    d = np.sum(do * o, axis=1)                                        # (Nq,)
    delta = w * d if dlse is None else w * d - dlse           # what dS subtracts in every column of a row   (Nq,)
    lse = np.where(lse == -np.inf, np.inf, lse)                       # a row without keys: e^(s - inf) = 0
    dq = [np.zeros((len(q[rows]), q.shape[1])) for rows in _blocks(len(q), block_q)]
    dk, dv, dbias = [np.zeros((0, k.shape[1]))], [np.zeros((0, v.shape[1]))], [np.zeros((len(q), 0))]
    for keys in _blocks(len(k), block_k):
        dk_tile, dv_tile, columns = np.zeros((len(k[keys]), k.shape[1])), np.zeros((len(k[keys]), v.shape[1])), []
        for i, rows in enumerate(_blocks(len(q), block_q)):
            s = logits(q[rows], k[keys], scale=scale, softcap=softcap, **_tile(rows, keys, mask, bias))  # (block_q, block_k)
            p = np.exp(s - lse[rows, None])                           # without the sink's share
            ds = p * (w[rows, None] * (do[rows] @ v[keys].T) - delta[rows, None])
            x = scale * (q[rows] @ k[keys].T)
            dx = ds if softcap is None else ds * (1 - np.square(np.tanh(x / softcap)))
            dv_tile = dv_tile + (w[rows, None] * p).T @ do[rows]
            dk_tile = dk_tile + scale * (dx.T @ q[rows])
            dq[i] = dq[i] + scale * (dx @ k[keys])
            columns.append(ds)
        dk.append(dk_tile)
        dv.append(dv_tile)
        dbias.append(np.concatenate(columns) if columns else np.zeros((0, len(k[keys]))))
    dsink = None if sink is None else -np.sum((1 - w) * d)
    dq = np.concatenate([np.zeros((0, q.shape[1])), *dq])
    return dq, np.concatenate(dk), np.concatenate(dv), None if bias is None else np.concatenate(dbias, axis=1), dsink


def _blocks(length, size):
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _tile(rows, keys, mask, bias):
    return {"mask": None if mask is None else mask[rows, keys], "bias": None if bias is None else bias[rows, keys]}
