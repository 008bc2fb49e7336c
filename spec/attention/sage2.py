r"""SageAttention2: queries without what a block of them shares, 4-bit codes with a scale per thread, and 8-bit floating-point values.

Paper: Zhang et al., "SageAttention2: Efficient Attention with Thorough Outlier Smoothing and Per-thread INT4 Quantization", 2024,
arXiv:2411.10958, Sec. 3; Zhang et al., "SageAttention2++", 2025, arXiv:2505.21136, for `fp8_fp16acc`.

The queries of a block share a mean as keys do, but it is not the same for every logit of a row. So it is multiplied by the keys apart, in
full precision, one row of numbers for a whole block b of queries:

$$s = \text{scale}\,\big(\widehat{(q-\bar q_b)}\;\widehat{k'}^\top + \bar q_b\,k'^\top\big), \quad k' = k-\bar k, \quad
L = L' + \text{scale}\cdot q\cdot\bar k.$$

Four bits, codes in -7 … 7, need finer groups than a block: the rows that one thread of a tensor core's warp holds anyway share a scale, 8
groups of 4 queries in every 32, 4 groups of 16 keys in every 64. Values are e4m3 with one scale per channel, their largest being 448;
weights are rounded to e4m3 as $448\,e^{s-m}$, and the sum takes them unrounded. SageAttention2++ adds up in float16, which is faster: there
the largest value becomes 2.25, so that 64 products of at most 448 · 2.25 stay below float16's 65504.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | queries, keys, values |
| `means` | $\bar q_m$ | `(blocks, D)` | of the queries of each block; the last block may be shorter |
| `shared` | $\Delta S$ | `(Nq, Nk)` | $\bar q_b k'^\top$, the same in every row of a block |
| `codes`, `scales`, `group` | $\hat Q$, $\delta_Q$ | `(N, D)`, `(groups,)`, `(N,)` | codes, one scale per group, the group of each row |
| `bits` | | | 4 or 8 |
| `pv` | | | `fp8`: values up to 448; `fp8_fp16acc`: up to 2.25 |

Deviations: codes and weights are rounded half to even (see `attention.sage`). Groups are those of warps of 32 queries and tiles of 64 keys,
whatever the blocks are. How sums are kept, in float16 or in the 22 bits of a tensor core's, is the precision contract of an implementation;
this text adds exactly. Means and scales see rows that a causal mask hides. From memory: why 2.25, and the layout of the groups.
Derives from: attention.sage
"""

import numpy as np

from twofold.spec.attention.flash_v3 import e4m3
from twofold.spec.attention.sage import encode, smooth_k

__all__ = ["forward", "smooth_q", "quantize_per_thread", "quantize_per_channel", "attend"]

LARGEST = {"fp8": 448, "fp8_fp16acc": 2.25}


def forward(q, k, v, *, qk="int4", pv="fp8", block_q=128, block_k=64, mask=None, scale=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)` of the unsmoothed logits. `qk` is int4 or int8, `pv` fp8 or fp8_fp16acc.

    >>> q = np.array([[3.0], [3.0]]); k = np.array([[5.0], [6.0]]); v = np.array([[0.0], [448.0]])
    >>> o, lse = forward(q, k, v, scale=1.0)              # queries that are all alike have codes 0, and nothing is lost
    >>> np.round(lse - np.logaddexp(15, 18), 9).tolist(), np.round(o[:, 0] / 448, 2).tolist()
    ([0.0, 0.0], [0.95, 0.95])
    >>> [x.tolist() for x in forward(q[:1], k[:0], v[:0])]                        # no keys
    [[[0.0]], [-inf]]
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    centered, mean = smooth_k(k)
    deviations, means = smooth_q(q, block_q)
    bits = {"int4": 4, "int8": 8}[qk]
    q_codes, q_scales, q_group = quantize_per_thread(deviations, "q", bits)
    k_codes, k_scales, k_group = quantize_per_thread(centered, "k", bits)
    shared = np.repeat(means @ centered.T, block_q, axis=0)[: len(q)]
    codes = q_codes, q_scales[q_group], k_codes, k_scales[k_group], *quantize_per_channel(v, pv)
    o, lse = attend(*codes, shared, block_k=block_k, mask=mask, scale=scale)
    return o, lse + scale * (q @ mean)


def smooth_q(q, block):
    """The queries without the mean of their block, and the means `(blocks, D)`.

    >>> [x.tolist() for x in smooth_q(np.array([[1.0], [3.0], [7.0]]), 2)]
    [[[-1.0], [1.0], [0.0]], [[2.0], [7.0]]]
    """
    blocks = [q[start : start + block] for start in range(0, len(q), block)]
    means = [q[:0]] + [np.sum(rows, axis=0)[None] / len(rows) for rows in blocks]
    return q - np.repeat(np.concatenate(means), block, axis=0)[: len(q)], np.concatenate(means)


def quantize_per_thread(x, side, bits):
    """Codes `(N, D)`, scales `(groups,)` and the group of each row `(N,)`, for the rows of "q" or "k".

    >>> quantize_per_thread(np.ones((12, 1)), "q", 4)[2].tolist()                 # every eighth query of 32
    [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    >>> quantize_per_thread(np.ones((12, 1)), "k", 4)[2].tolist()                 # two neighbors of every 8 keys, of 64
    [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1]
    """
    tile, groups = {"q": (32, 8), "k": (64, 4)}[side]
    row = np.arange(len(x))
    group = row // tile * groups + (row % 8 if side == "q" else row % 8 // 2)
    return *encode(x, group, -(-len(x) // tile) * groups, 2 ** (bits - 1) - 1), group


def quantize_per_channel(v, pv):
    """Codes in e4m3 `(Nk, Dv)` and one scale per channel `(Dv,)`.

    >>> [x.tolist() for x in quantize_per_channel(np.array([[9.0, 0.0], [-4.5, 0.0]]), "fp8_fp16acc")]
    [[[2.25, 0.0], [-1.125, 0.0]], [4.0, 1.0]]
    """
    codes, scale = encode(v.T, np.arange(v.shape[1]), v.shape[1], LARGEST[pv], e4m3)
    return codes.T, scale


def attend(q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, shared, *, block_k, mask=None, scale):
    """Attention from codes, with one scale per row of queries and keys and per channel of values, and from the shared part of the products.

    Weights are rounded against the running maximum, so that the result depends on the blocks of keys and their order.
    """
    s = scale * (np.outer(q_scale, k_scale) * (q_codes @ k_codes.T) + shared)  # (Nq, Nk)
    s = s if mask is None else np.where(mask, s, -np.inf)
    m, l, acc = np.full(len(s), -np.inf), np.zeros(len(s)), np.zeros((len(s), v_codes.shape[1]))
    for start in range(0, s.shape[1], block_k):
        tile = s[:, start : start + block_k]
        m_new = np.maximum(m, np.max(tile, axis=1))
        m_safe = np.where(m_new == -np.inf, 0.0, m_new)
        p = 448 * np.exp(tile - m_safe[:, None])
        rescale = np.exp(m - m_safe)
        l = rescale * l + np.sum(p, axis=1)                           # of the weights before they are rounded
        acc = rescale[:, None] * acc + e4m3(p) @ v_codes[start : start + block_k]
        m = m_new
    total = np.where(l == 0, 1.0, l)
    lse = np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total) - np.log(448.0))
    return acc / total[:, None] * v_scale, lse
