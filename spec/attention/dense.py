r"""Scaled dot-product attention: every query reads a weighted mean of the values, weighted by how well it matches each key.

Paper: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, Sec. 3.2.1, Eq. 1.

The logit of query i and key j, its log-sum-exp over the keys that the query may see, and the output:

$$x = \text{scale}\cdot q k^\top, \qquad s_{ij} = c\tanh(x_{ij}/c) + b_{ij}, \qquad s_{ij} = -\infty \text{ where masked},$$
$$L_i = \log\textstyle\sum_j e^{s_{ij}}, \qquad w_i = \sigma(L_i - z), \qquad P_{ij} = w_i\, e^{s_{ij}-L_i}, \qquad o = P v.$$

The sink z is one more logit, with no key and no value: it takes the share 1 - w of the attention and gives nothing back. Without
a sink w = 1; without a cap s = x + b. The log-sum-exp L is natural and counts real keys only.

| name | symbol | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q, k, v$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | queries, keys, values |
| `mask` | | `(Nq, Nk)` | boolean, True where the query may see the key |
| `scale` | | | multiplies the products; $D^{-1/2}$ where left out |
| `softcap` | $c$ | | squashes the scaled products into (-c, c) |
| `bias` | $b$ | `(Nq, Nk)` | added after the cap; $-\infty$ masks, any other number is a logit |
| `sink` | $z$ | | a logit without a value, neither scaled nor capped |
| `do`, `dlse` | $\bar o, \bar L$ | `(Nq, Dv)`, `(Nq,)` | gradients of a loss by the two outputs |

Deviations: cap, bias and sink are later than the paper (arXiv:2408.00118 for the cap; the sink as in gpt-oss). A query that sees no
key has output 0, log-sum-exp -inf and no gradients; the paper's formula would be 0/0.
"""

import numpy as np

__all__ = ["attention", "weights", "backward", "logits", "share"]


def attention(q, k, v, *, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """The definition: returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`.

    >>> q = np.zeros((2, 1)); k = np.ones((2, 1)); v = np.array([[2.0], [4.0]])
    >>> attention(q, k, v)[0].tolist()                                            # equal logits: the plain mean
    [[3.0], [3.0]]
    >>> o, lse = attention(q, k, v, mask=np.array([[True, False], [False, False]]))
    >>> o.tolist(), lse.tolist()                                                  # one key; no key
    ([[2.0], [0.0]], [0.0, -inf])
    >>> o, lse = attention(q, k[:1], v[:1], sink=0.0)                             # the sink takes half and returns nothing
    >>> o.tolist(), lse.tolist()
    ([[1.0], [1.0]], [0.0, 0.0])
    >>> attention(q, k[:0], v[:0])[1].tolist()                                    # nothing to attend
    [-inf, -inf]
    """
    p, total, lse = _softmax(logits(q, k, mask=mask, scale=scale, softcap=softcap, bias=bias))
    return share(lse, sink)[:, None] * ((p @ v) / total[:, None]), lse


def weights(q, k, *, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """The matrix P `(Nq, Nk)`: what each query gives each key. A row sums to 1, to its share w with a sink, to 0 without keys."""
    p, total, lse = _softmax(logits(q, k, mask=mask, scale=scale, softcap=softcap, bias=bias))
    return share(lse, sink)[:, None] * (p / total[:, None])


def backward(q, k, v, do, *, dlse=None, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """Gradients `(dq, dk, dv, dbias, dsink)` of a loss, given its gradients by output and log-sum-exp; None for what was not given.

    The softmax's Jacobian needs one number per row, D = do . o. With a sink it loses mass, and D loses as much.
    """
    scale = q.shape[1] ** -0.5 if scale is None else scale
    p, total, lse = _softmax(logits(q, k, mask=mask, scale=scale, softcap=softcap, bias=bias))
    p0 = p / total[:, None]                                           # softmax over the real keys      (Nq, Nk)
    w = share(lse, sink)                                              # (Nq,)
    p = w[:, None] * p0
    d = np.sum(do * (p @ v), axis=1)                                  # (Nq,)
    ds = p * (do @ v.T - d[:, None])                                  # (Nq, Nk)
    ds = ds if dlse is None else ds + p0 * dlse[:, None]
    dx = ds if softcap is None else ds * _cap_slope(q, k, scale, softcap)
    dsink = None if sink is None else -np.sum((1 - w) * d)
    return scale * (dx @ k), scale * (dx.T @ q), p.T @ do, None if bias is None else ds, dsink


def logits(q, k, *, mask=None, scale=None, softcap=None, bias=None):
    """Scale, then cap, then bias, then mask: the final logits `(Nq, Nk)`."""
    x = (q.shape[1] ** -0.5 if scale is None else scale) * (q @ k.T)  # (Nq, Nk)
    s = x if softcap is None else softcap * np.tanh(x / softcap)
    s = s if bias is None else s + bias
    return s if mask is None else np.where(mask, s, -np.inf)


def share(lse, sink):
    """What the sink leaves to the keys of each row, sigma(L - z); a row without keys has nothing to share, any number does.

    >>> share(np.array([0.0, 800.0, -np.inf]), 0.0).tolist()
    [0.5, 1.0, 0.5]
    """
    if sink is None:
        return np.ones(len(lse))
    x = np.where(lse == -np.inf, 0.0, lse) - sink
    small = np.exp(-np.abs(x))                                        # never overflows, however far apart the two are
    return np.where(x > 0, 1.0, small) / (1 + small)


def _softmax(s):
    """Numerators e^(s - max) `(Nq, Nk)`, their sums `(Nq,)` (1 where there is no key) and the log-sum-exp `(Nq,)`."""
    top = np.max(s, axis=1, initial=-np.inf)
    top = np.where(top == -np.inf, 0.0, top)                          # -inf - -inf is no logit; e^(-inf - 0) = 0 is right
    p = np.exp(s - top[:, None])
    total = np.sum(p, axis=1)
    empty = total == 0
    total = np.where(empty, 1.0, total)
    return p, total, np.where(empty, -np.inf, top + np.log(total))


def _cap_slope(q, k, scale, softcap):
    return 1 - np.square(np.tanh(scale * (q @ k.T) / softcap))
