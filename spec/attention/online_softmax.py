r"""Online softmax: partial attention over any set of keys is an element of a commutative monoid, and merging is its product.

Paper: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867, Alg. 3 and the parallel operator of
Sec. 3.1; Rabe and Staats, "Self-attention Does Not Need O(n²) Memory", 2021, arXiv:2112.05682, for the values.

What a row knows of the keys S that it has met is three things: a reference m, to which exponents are taken, and two sums

$$l = \sum_{j\in S} e^{s_j-m}, \qquad a = \sum_{j\in S} e^{s_j-m} v_j.$$

Two states over disjoint sets of keys merge into the state of their union:

$$m = \max(m_1, m_2), \qquad l = e^{m_1-m} l_1 + e^{m_2-m} l_2, \qquad a = e^{m_1-m} a_1 + e^{m_2-m} a_2.$$

The identity is the state of no keys, $(-\infty, 0, 0)$. Attention is $o = a/l$ with the log-sum-exp $L = m + \log l$. The pair (o, L) is
again a state, of reference L and sum 1, so that finished parts merge by the same operator.

| name | paper | shape | meaning |
|---|---|---|---|
| `m`, `l`, `a` | $m, d$ and the values' sum $v^*$ | `(...)`, `(...)`, `(..., Dv)` | a state: reference, sum, unnormalized output |
| `o`, `lse` | | `(..., Dv)`, `(...)` | a pair: what `finish` returns, and so does every attention of this family |
| `s`, `v` | $x, V$ | `(..., n)`, `(n, Dv)` | the logits of n more keys, their values |

Deviations: the state of no keys is a state like any other here: a reference of -inf counts as 0 in exponents, where the papers' formulas
would give -inf - -inf. Rabe and Staats merge states; merging pairs is what everybody does with the output of a finished kernel.
Derives from: attention.dense
"""

import numpy as np

__all__ = ["merge", "identity", "update", "finish"]


def merge(a, b):
    """The union of two states `(m, l, a)`, or of two pairs `(o, lse)`: commutative, associative, with an identity.

    >>> one, other = (np.array([[2.0]]), np.array([0.0])), (np.array([[4.0]]), np.array([0.0]))
    >>> [x.tolist() for x in merge(one, other)[:1]]                               # the same mass: the mean
    [[[3.0]]]
    >>> far = (np.array([[4.0]]), np.array([-2000.0]))
    >>> [x.tolist() for x in merge(one, far)]                                     # no overflow, however far apart
    [[[2.0]], [0.0]]
    >>> nothing = (np.array([[0.0]]), np.array([-np.inf]))
    >>> [x.tolist() for x in merge(nothing, nothing)]                             # and no NaN
    [[[0.0]], [-inf]]
    """
    if len(a) == 2:
        (o1, lse1), (o2, lse2) = a, b
        return finish(merge((lse1, 1.0, o1), (lse2, 1.0, o2)))
    (m1, l1, a1), (m2, l2, a2) = a, b
    m = np.maximum(m1, m2)
    w1, w2 = np.exp(m1 - _reference(m)), np.exp(m2 - _reference(m))   # one of them is 1                 (...)
    return m, w1 * l1 + w2 * l2, w1[..., None] * a1 + w2[..., None] * a2


def identity(dv):
    """The state of one row that has met no key.

    >>> [x.tolist() for x in finish(identity(2))]
    [[0.0, 0.0], -inf]
    """
    return -np.inf, 0.0, np.zeros(dv)


def update(state, s, v):
    """The state after n more keys, of logits `s` `(..., n)` and values `v` `(n, Dv)`: merged with the state of these keys alone.

    >>> m, l, a = update(identity(1), np.array([0.0, -np.inf]), np.array([[5.0], [7.0]]))
    >>> float(m), float(l), a.tolist()                                            # a masked key is not there
    (0.0, 1.0, [5.0])
    >>> m, l, a = update(identity(1), np.zeros(0), np.zeros((0, 1)))              # nor are no keys
    >>> float(m), float(l), a.tolist()
    (-inf, 0.0, [0.0])
    """
    m = np.max(s, axis=-1, initial=-np.inf)                           # (...)
    p = np.exp(s - _reference(m)[..., None])                          # (..., n)
    return merge(state, (m, np.sum(p, axis=-1), p @ v))


def finish(state):
    """The output `(..., Dv)` and the log-sum-exp `(...)`; 0 and -inf where no key was met."""
    m, l, a = state
    empty = l == 0
    total = np.where(empty, 1.0, l)
    return a / total[..., None], np.where(empty, -np.inf, _reference(m) + np.log(total))


def _reference(m):
    return np.where(m == -np.inf, 0.0, m)                             # no key yet: -inf - -inf is no logit
