r"""Variable-length attention: sequences of any lengths one after the other in one array, each attending itself alone.

Paper: Dao, "FlashAttention-2", 2023, arXiv:2307.08691; the interface, packed rows with cumulative lengths, is that of its released code.

A batch of texts is ragged. Padding it to its longest wastes what the others lack. Packed, all rows stand in one array, and a list of
boundaries says whose they are: sequence r has the $n_r$ rows from $c^q_r$ to before $c^q_{r+1}$, and the keys from $c^k_r$ to before
$c^k_{r+1}$, of which the first $u_r$ are used. Within its sequence, row i stands at position $p_i$:

$$p_i = i - c^q_r + u_r - n_r, \qquad o_i = \frac{\sum_j e^{s_{ij}} v_j}{\sum_j e^{s_{ij}}}
\quad\text{over used } j \text{ of its sequence that } p_i \text{ may see.}$$

| name | symbol | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | all sequences' rows and keys |
| `cu_q`, `cu_k` | $c^q, c^k$ | `(R + 1,)` | where each sequence begins, and the last ends; not decreasing, from 0 |
| `used_k` | $u$ | `(R,)` | how many keys of each are valid; all if None |
| `causal`, `window` | | | as in `attention.masks`, within each sequence |
| `scale`, `softcap`, `sink` | | | as in `attention.dense` |

Deviations: none known. Rows of no sequence, behind the last boundary, give 0 and -inf; keys that are not used get gradient 0.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention import dense, masks

__all__ = ["attention", "backward"]


def attention(q, k, v, cu_q, cu_k, *, causal=False, window=None, used_k=None, scale=None, softcap=None, sink=None):
    """The definition: dense attention of each sequence. Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`.

    >>> q = np.zeros((3, 1)); k = np.zeros((4, 1)); v = np.array([[1.0], [3.0], [8.0], [9.0]])
    >>> o, lse = attention(q, k, v, [0, 1, 1, 3], [0, 2, 3, 4], causal=True)      # the second has keys but no rows
    >>> o.ravel().tolist(), np.round(np.exp(lse), 6).tolist()                     # of the third's two rows one sees no key
    ([2.0, 0.0, 9.0], [2.0, 0.0, 1.0])
    >>> attention(q, k, v, [0, 1], [0, 2], used_k=[1])[0].ravel().tolist()        # one valid key; two rows of nobody
    [1.0, 0.0, 0.0]
    """
    outputs, sums = [v[:0]], [v[:0, 0]]
    for rows, keys in _sequences(cu_q, cu_k, used_k):
        mask = _mask(rows, keys, causal, window)
        o, lse = dense.attention(q[rows], k[keys], v[keys], mask=mask, scale=scale, softcap=softcap, sink=sink)
        outputs.append(o)
        sums.append(lse)
    nobody = len(q) - cu_q[-1]
    return np.concatenate([*outputs, np.zeros((nobody, v.shape[1]))]), np.concatenate([*sums, np.full(nobody, -np.inf)])


def backward(q, k, v, o, lse, do, cu_q, cu_k, *, dlse=None, causal=False, window=None, used_k=None, scale=None, softcap=None, sink=None):
    """Gradients `(dq, dk, dv)` of a loss, given its gradients by output and log-sum-exp. `o` and `lse` are what `attention` returned."""
    dq, dk, dv = [], [], []
    end = 0
    for rows, keys in _sequences(cu_q, cu_k, used_k):
        options = {"mask": _mask(rows, keys, causal, window), "scale": scale, "softcap": softcap, "sink": sink}
        cotangent = None if dlse is None else dlse[rows]
        parts = dense.backward(q[rows], k[keys], v[keys], do[rows], dlse=cotangent, **options)
        dq.append(parts[0])
        for gradients, part, x in ((dk, parts[1], k), (dv, parts[2], v)):
            gradients += [np.zeros((keys.start - end, x.shape[1])), part]         # between the last one's keys and these: nobody's
        end = keys.stop
    dq.append(np.zeros((len(q) - cu_q[-1], q.shape[1])))
    return np.concatenate(dq), *(np.concatenate([*x, np.zeros((len(k) - end, y.shape[1]))]) for x, y in ((dk, k), (dv, v)))


def _sequences(cu_q, cu_k, used_k):
    """Rows and keys of each sequence."""
    for r in range(len(cu_q) - 1):
        used = cu_k[r + 1] - cu_k[r] if used_k is None else used_k[r]
        yield slice(cu_q[r], cu_q[r + 1]), slice(cu_k[r], cu_k[r] + used)


def _mask(rows, keys, causal, window):
    nq, nk = rows.stop - rows.start, keys.stop - keys.start
    mask = masks.window(nq, nk, *(window or (None, None)))
    return mask & masks.causal(nq, nk) if causal else mask
