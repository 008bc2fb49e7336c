r"""SageAttention: queries and keys become 8-bit integers, after what all keys have in common has been taken out of them.

Paper: Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-Play Inference Acceleration", 2024, arXiv:2410.02367, Sec. 4.

Keys share a large mean, which says nothing: it adds the same number to every logit of a row, and the softmax does not see it. But it would
eat most of an 8-bit code. So it is subtracted before and, in the log-sum-exp alone, added back after:

$$\bar k = \text{mean}_j\, k_j, \qquad k' = k - \bar k, \qquad s = \text{scale}\cdot\delta_q\delta_k\,(\hat q\hat k'^\top), \qquad
L = L' + \text{scale}\cdot q\cdot\bar k.$$

A block of rows has one scale $\delta = \max|x|/127$ and codes $\hat x = \lfloor x/\delta\rceil$ in -127 … 127. Products of codes are
exact in 32-bit integers. A logit is then off by at most

$$|\delta s_{ij}| \le \text{scale}\,(\tfrac12\delta_q\lVert\hat k_j\rVert_1\delta_k + \tfrac12\delta_k\lVert q_i\rVert_1).$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | queries, keys, values |
| `mean` | $\text{mean}(K)$ | `(D,)` | over all keys of the sequence, masked or not |
| `codes`, `scale` | $\hat Q$, $\delta_Q$ | `(N, D)`, `(blocks,)` | one scale per block of `rows` rows; the last block may be shorter |
| `block_q`, `block_k` | $b_q, b_{kv}$ | | rows of a block of queries and of keys |

Deviations: codes are rounded half to even, the released code rounds half away from zero; they differ only in ties, which are exact here
because a code comes from one division. A block of zeros has scale 1. Weights enter the product with the values in the dtype of the values,
float16 in the paper; that, and how the products are summed, is the precision contract of an implementation and not in this text. The sum
of a row is that of the unrounded weights. The scales and the mean see all keys: attention stays causal, its rounding does not.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention import dense

__all__ = ["forward", "smooth_k", "quantize", "attend", "encode"]


def forward(q, k, v, *, smooth=True, block_q=128, block_k=64, mask=None, scale=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)` of the logits with `k` itself, not with the smoothed keys.

    >>> q = np.array([[1.0, 2.0]]); k = np.array([[5.0, 1.0], [5.0, 3.0]]); v = np.array([[0.0], [1.0]])
    >>> np.round(forward(q, k, v, scale=1.0)[1] - forward(q, k + 100, v, scale=1.0)[1], 9).tolist()      # 100 more on every key
    [-300.0]
    >>> [x.tolist() for x in forward(q, k[:0], v[:0])]                            # no keys
    [[[0.0]], [-inf]]
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    centered, mean = smooth_k(k) if smooth else (k, np.zeros(k.shape[1]))
    (q_codes, q_scale), (k_codes, k_scale) = quantize(q, block_q), quantize(centered, block_k)
    q_scale, k_scale = np.repeat(q_scale, block_q)[: len(q)], np.repeat(k_scale, block_k)[: len(k)]
    o, lse = attend(q_codes, q_scale, k_codes, k_scale, v, mask=mask, scale=scale)
    return o, lse + scale * (q @ mean)                                # a row without keys stays at -inf


def smooth_k(k):
    """The keys without their mean, and the mean `(D,)`; 0 where there is no key.

    >>> [x.tolist() for x in smooth_k(np.array([[10.0, 1.0], [12.0, 1.0]]))]
    [[[-1.0, 0.0], [1.0, 0.0]], [11.0, 1.0]]
    """
    mean = np.sum(k, axis=0) / max(len(k), 1)
    return k - mean, mean


def quantize(x, rows):
    """Integer codes `(N, D)` in -127 … 127 and one scale per block of `rows` rows.

    >>> codes, scale = quantize(np.array([[127.0, 0.5], [1.5, -2.5], [0.0, 0.0]]), 2)
    >>> codes.tolist(), scale.tolist()                                            # ties to even; a block of zeros has scale 1
    ([[127.0, 0.0], [2.0, -2.0], [0.0, 0.0]], [1.0, 1.0])
    """
    return encode(x, np.arange(len(x)) // rows, -(-len(x) // rows), 127)


def attend(q_codes, q_scale, k_codes, k_scale, v, *, mask=None, scale):
    """Attention from codes, with one scale per *row* of queries and keys: blocks of rows, or any other groups, repeat theirs."""
    s = scale * np.outer(q_scale, k_scale) * (q_codes @ k_codes.T)    # (Nq, Nk)
    return dense.attention(q_codes[:, :0], k_codes[:, :0], v, bias=s, mask=mask, scale=1)


def encode(x, group, count, top, nearest=np.rint):
    """Codes `(N, D)` and one scale for each of `count` groups of rows, so that the group's largest magnitude becomes `top`.

    `group` `(N,)` says where each row belongs, `nearest` rounds to the numbers that codes can be.
    """
    largest = np.array([np.max(np.abs(x[group == i]), initial=0) for i in range(count)])
    divisor = np.where(largest == 0, 1, largest)                      # a group of zeros
    return nearest(top * x / divisor[group][:, None]), np.where(largest == 0, 1, largest / top)
