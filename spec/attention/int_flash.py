r"""INT-FlashAttention: both products of attention are products of 8-bit integers.

Paper: Chen et al., "INT-FlashAttention: Enabling Flash Attention for INT8 Quantization", 2024, arXiv:2409.16997, Alg. 1.

Queries and keys have one scale per token, values one scale for all of them. The weights of a tile are rounded against the running maximum,

$$\hat p = \lfloor 127\,e^{s-m'}\rceil, \qquad l' = e^{m-m'} l + \textstyle\sum_j\hat p_j, \qquad a' = e^{m-m'} a + \hat p\,\hat v,$$

and both sums take the same rounded weights, so that $o = s_v\,a/l$ is a true mean of the values: the factor 127 cancels, constant values
come out as they are, and an error of a weight moves the output by $|v_j - o|$ only. The log-sum-exp is $L = m + \log(l/127)$. A weight
below 1/254 of its row's largest so far is dropped.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | queries, keys, values |
| `codes`, `scale` | $Q_{int8}$, $s_Q$ | `(N, D)`, `(N,)` | $\max\lvert x\rvert/127$ per token |
| `block_k` | $B_c$ | | columns of a tile: the result depends on it |

Deviations: from memory, and unsure, is what the paper returns as the log-sum-exp; ours has the factor taken out. Codes
are rounded half to even; a row of zeros has scale 1.
Derives from: attention.flash
"""

import numpy as np

from twofold.spec.attention.sage import encode

__all__ = ["forward", "quantize", "attend"]

nearest = np.rint


def forward(q, k, v, *, block_k=64, mask=None, scale=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`.

    >>> q = np.array([[1.0]]); k = np.array([[0.0], [np.log(300.0)]]); v = np.array([[127.0], [64.0]])
    >>> np.round(forward(q, k, v, scale=1.0)[0], 9).tolist()                      # 1/300 of the largest weight is none
    [[64.0]]
    >>> np.round(forward(q, k, v, scale=1.0, block_k=1)[0], 3).tolist()           # in a tile of its own it was the largest so far
    [[64.209]]
    >>> [x.tolist() for x in forward(q, k[:0], v[:0])]                            # no keys
    [[[0.0]], [-inf]]
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    values = encode(v, np.zeros(len(v), int), 1, 127)
    return attend(*quantize(q), *quantize(k), *values, block_k=block_k, mask=mask, scale=scale)


def quantize(x):
    """Integer codes `(N, D)` and one scale per token `(N,)`.

    >>> [a.tolist() for a in quantize(np.array([[254.0, -1.0], [0.0, 0.0]]))]
    [[[127.0, -0.0], [0.0, 0.0]], [2.0, 1.0]]
    """
    return encode(x, np.arange(len(x)), len(x), 127)


def attend(q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, *, block_k=64, mask=None, scale):
    """The same from codes: one scale per query and per key, one for all values."""
    s = scale * np.outer(q_scale, k_scale) * (q_codes @ k_codes.T)    # (Nq, Nk)
    s = s if mask is None else np.where(mask, s, -np.inf)
    m, l, acc = np.full(len(s), -np.inf), np.zeros(len(s)), np.zeros((len(s), v_codes.shape[1]))
    for start in range(0, s.shape[1], block_k):
        tile = s[:, start : start + block_k]
        m_new = np.maximum(m, np.max(tile, axis=1))
        m_safe = np.where(m_new == -np.inf, 0.0, m_new)
        p = nearest(127 * np.exp(tile - m_safe[:, None]))             # integers
        rescale = np.exp(m - m_safe)
        l = rescale * l + np.sum(p, axis=1)                           # of the rounded weights
        acc = rescale[:, None] * acc + p @ v_codes[start : start + block_k]
        m = m_new
    total = np.where(l == 0, 1.0, l)
    lse = np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total / 127))
    return v_scale * (acc / total[:, None]), lse
