r"""Grouped-tied attention: one projection serves as value and, in half of its channels, as key.

Paper: Zadouri, Strauss, Dao, "Hardware-Efficient Attention for Fast Decoding", 2025, arXiv:2505.21487, Sec. 3.2.

Keys and values of a head are made of the same token and cached side by side. Tie them: one vector x per key head is the value, and its
first half is the first half of the key. The key's other half tells the position. It is rotated, which a value must not be, so it is a
projection of its own, one for all heads:

$$v = x = W^X h, \qquad k = [\,x_{1 \dots d - d_R};\; k^R\,], \quad k^R = \text{rope}(W^{KR} h), \qquad
q = [\,q_{1 \dots d-d_R};\; \text{rope}(q_{d-d_R+1 \dots d})\,].$$

| name | paper | shape | meaning |
|---|---|---|---|
| `h`, `pos` | | `(N, M)`, `(N,)` | hidden states and positions |
| `w_x`, `w_kr`, `w_q` | | `(H_kv, d, M)`, `(d_R, M)`, `(H, d, M)` | projections; d_R = d / 2 in the paper |
| `x`, `kr` | $K_{NoPE} = V$, $K_{RoPE}$ | `(H_kv, N, d)`, `(N, d_R)` | what the cache holds: H_kv d + d_R numbers per token |
| `q`, `k`, `v` | | `(H, Nq, d)`, `(H_kv, Nk, d)` twice | as in `attention.grouped` |

Deviations: none known; the section number is from memory.
Derives from: attention.grouped, attention.rope
"""

import numpy as np

from twofold.spec.attention import grouped, rope

__all__ = ["attention", "project", "queries", "cached"]


def attention(q, k, v, *, mask=None, scale=None):
    """The definition: grouped attention with tied keys and values; returns outputs `(H, Nq, d)` and log-sum-exps `(H, Nq)`."""
    return grouped.attention(q, k, v, mask=mask, scale=scale)


def project(h, pos, *, w_x, w_kr, base=1e4, interleaved=False):
    """Keys and values of every key head, `(H_kv, N, d)` each.

    >>> h = np.array([[1.0, 2.0, 5.0, 0.0]]); w_x = np.eye(4)[None]; w_kr = np.eye(4)[2:]
    >>> k, v = project(h, np.zeros(1), w_x=w_x, w_kr=w_kr)                        # at position 0 nothing turns
    >>> k.tolist(), v.tolist()
    ([[[1.0, 2.0, 5.0, 0.0]]], [[[1.0, 2.0, 5.0, 0.0]]])
    >>> k, v = project(h, np.array([1]), w_x=w_x, w_kr=w_kr)
    >>> np.round(k[0, 0], 3).tolist(), v[0, 0].tolist()                           # at 1 the key's last half does, and only there
    ([1.0, 2.0, 2.702, 4.207], [1.0, 2.0, 5.0, 0.0])
    """
    x = np.stack([h @ w.T for w in w_x])                              # (H_kv, N, d)
    return _keys(x, rope.rotate(h @ w_kr.T, pos, base=base, interleaved=interleaved)), x


def queries(h, pos, *, w_q, d_rope, base=1e4, interleaved=False):
    """Queries of every head `(H, N, d)`, the last `d_rope` channels rotated."""
    q = np.stack([h @ w.T for w in w_q])
    kept = q.shape[2] - d_rope
    turned = np.stack([rope.rotate(x, pos, base=base, interleaved=interleaved) for x in q[:, :, kept:]])
    return np.concatenate([q[:, :, :kept], turned], axis=2)


def cached(q, x, kr, *, mask=None, scale=None):
    """The same from what is cached: `x` `(H_kv, N, d)` is read once, as value and as most of the key."""
    return attention(q, _keys(x, kr), x, mask=mask, scale=scale)


def _keys(x, kr):
    kept = x.shape[2] - kr.shape[1]
    return np.stack([np.concatenate([head[:, :kept], kr], axis=1) for head in x])
