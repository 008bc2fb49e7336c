r"""FlashAttention-3: scores of the next tile while the values of the last one are still being added, and an 8-bit floating-point form.

Paper: Shah et al., "FlashAttention-3", 2024, arXiv:2407.08608, Alg. 2 (pipelined), Sec. 3.3 (8 bits, incoherent).

*Pipelined.* The product of a tile's scores needs nothing of the softmax before it, so it is issued while the previous tile's weights
still wait for their values. The running maximum and sum are those of FlashAttention-2 at every tile; the output is one tile behind:

$$s' = qk_j^\top \;\Vert\; a \mathrel{+}= p\,v_{j-1}, \qquad m' = \max(m, \max s'), \quad p = e^{s'-m'}, \quad a \leftarrow e^{m-m'} a.$$

*In 8 bits.* Blocks of queries, keys and values are scaled so that their largest number becomes 448, and rounded to e4m3. Weights are
multiplied by $2^{\text{offset}}$ first, to keep small ones above the smallest number, $2^{-9}$. The sum l counts them so, but unrounded;
the factor cancels in $o = a/l$, and $L = m + \log l - \text{offset}\log 2$. The last keys come first, before an early sink raises m.

*Incoherent.* One orthogonal matrix for queries and keys, $M = \text{diag}(\text{signs})\,H/\sqrt d$ with a Hadamard matrix H, leaves
$qk^\top = (qM)(kM)^\top$ as it is and spreads an outlier over all d channels of its row.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v`, `o`, `lse` | $Q, K, V, O, L$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)`, … | as in `attention.flash` |
| `block_q`, `block_k` | $B_r, B_c$ | | rows and columns of a tile, and rows that share one scale |

Deviations: order of the keys and offset are those of the released code. A width that is no power of two has a block-diagonal matrix, one
Hadamard block for each power of two in it (96 = 64 + 32). From memory: the size of the blocks of V. A block of zeros has scale 1.
Derives from: attention.flash
"""

import numpy as np

from twofold.spec.attention.dense import logits, share
from twofold.spec.attention.flash import _blocks, _tile
from twofold.spec.attention.sage import encode

__all__ = ["pipelined", "forward_fp8", "incoherent", "attend", "e4m3"]


def pipelined(q, k, v, *, block_q=64, block_k=64, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`: `flash.forward` in another order.

    >>> q = np.ones((2, 1)); v = np.array([[2.0], [4.0]])
    >>> [x.tolist() for x in pipelined(q, 0 * q, v, block_k=1, mask=np.array([[True, True], [False, False]]), sink=np.log(2))]
    [[[1.5], [0.0]], [0.6931471805599453, -inf]]
    """
    outputs, sums = [np.zeros((0, v.shape[1]))], [np.zeros(0)]
    for rows in _blocks(len(q), block_q):
        m, l, acc = np.full(len(q[rows]), -np.inf), np.zeros(len(q[rows])), np.zeros((len(q[rows]), v.shape[1]))
        p, values = np.zeros((len(q[rows]), 0)), v[:0]                # the weights that wait, and their values: none at first
        for keys in _blocks(len(k), block_k):
            s = logits(q[rows], k[keys], scale=scale, softcap=softcap, **_tile(rows, keys, mask, bias))
            acc = acc + p @ values                                    # does not need s: both products are in flight at once
            m_new = np.maximum(m, np.max(s, axis=1))
            m_safe = np.where(m_new == -np.inf, 0.0, m_new)
            p, values = np.exp(s - m_safe[:, None]), v[keys]
            rescale, m = np.exp(m - m_safe), m_new
            l, acc = rescale * l + np.sum(p, axis=1), rescale[:, None] * acc
        acc = acc + p @ values
        total = np.where(l == 0, 1.0, l)
        lse = np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total))
        outputs.append(share(lse, sink)[:, None] * (acc / total[:, None]))
        sums.append(lse)
    return np.concatenate(outputs), np.concatenate(sums)


def forward_fp8(q, k, v, *, block_q=64, block_k=64, offset=8, mask=None, scale=None):
    """The same with codes in e4m3, one scale per block, and weights in e4m3 as well. The keys are walked from the last block to the first.

    >>> q = np.array([[0.0]]); k = np.zeros((3, 1)); v = np.array([[1.0], [2.0], [6.0]])
    >>> [x.tolist() for x in forward_fp8(q, k, v, block_k=2, mask=np.array([[True, True, False]]))]
    [[[1.5]], [0.6931471805599454]]
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    blocks = lambda x, size: encode(x, np.arange(len(x)) // size, -(-len(x) // size), 448, e4m3)
    (q8, q_scale), (k8, k_scale), (v8, v_scale) = blocks(q, block_q), blocks(k, block_k), blocks(v, block_k)
    q_scale, k_scale = np.repeat(q_scale, block_q)[: len(q)], np.repeat(k_scale, block_k)[: len(k)]
    return attend(q8, q_scale, k8, k_scale, v8, v_scale, block_k=block_k, offset=offset, mask=mask, scale=scale)


def attend(q8, q_scale, k8, k_scale, v8, v_scale, *, block_k, offset, mask=None, scale):
    """Attention from codes: one scale per query and per key, one for the values of each block of keys."""
    s = np.where(True if mask is None else mask, scale * np.outer(q_scale, k_scale) * (q8 @ k8.T), -np.inf)  # (Nq, Nk)
    m, l, acc = np.full(len(s), -np.inf), np.zeros(len(s)), np.zeros((len(s), v8.shape[1]))
    for j, keys in reversed(list(enumerate(_blocks(s.shape[1], block_k)))):
        m_new = np.maximum(m, np.max(s[:, keys], axis=1))
        m_safe = np.where(m_new == -np.inf, 0.0, m_new)
        p = 2.0**offset * np.exp(s[:, keys] - m_safe[:, None])
        rescale = np.exp(m - m_safe)
        l = rescale * l + np.sum(p, axis=1)                           # of the weights before they are rounded
        acc = rescale[:, None] * acc + v_scale[j] * (e4m3(p) @ v8[keys])
        m = m_new
    total = np.where(l == 0, 1.0, l)
    lse = np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total) - offset * np.log(2.0))
    return acc / total[:, None], lse


def incoherent(q, k, signs):
    """Queries and keys in another orthonormal basis of their channels, with the same products.

    >>> q, k = incoherent(np.array([[8.0, 0.0, 0.0, 0.0]]), np.ones((1, 4)), np.array([1.0, -1.0, 1.0, 1.0]))
    >>> q.tolist(), k.tolist()                                                    # the outlier is spread; 8 · 1 is still 8
    ([[4.0, 4.0, 4.0, 4.0]], [[1.0, 1.0, -1.0, 1.0]])
    """
    m, start = np.zeros((len(signs), len(signs))), 0
    for size in (2**e for e in reversed(range(len(signs).bit_length())) if len(signs) & 2**e):
        m[start : start + size, start : start + size] = _hadamard(size) / np.sqrt(size)
        start += size
    return (q * signs) @ m, (k * signs) @ m


def e4m3(x):
    """The nearest number of the 8-bit format with four bits of exponent and three of mantissa, ties to even; ±448 beyond the largest.

    >>> e4m3(np.array([1.0, 1.0625, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10, 460.0, -1e9])).tolist()
    [1.0, 1.0, 16.0, 20.0, 0.0, 0.00390625, 448.0, -448.0]
    """
    step = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 4, -9))          # distance of the neighbors in x's binade; 2^-9 near 0
    return np.clip(np.rint(x / step) * step, -448, 448)


def _hadamard(size):
    return np.ones((1, 1)) if size == 1 else np.kron([[1, 1], [1, -1]], _hadamard(size // 2))
