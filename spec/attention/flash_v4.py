r"""The numerics of FlashAttention-4: rescale only when it matters, and exponentials from multiplications alone.

Paper: Zadouri, Hoehnerbach, Shah, Liu, Thakkar and Dao, "FlashAttention-4: Algorithm and Kernel Pipelining Co-Design for Asymmetric
Hardware Scaling", 2026, arXiv:2603.05451 (its abstract), and the released code (flash-attention, `flash_attn/cute`).

Matrix products have become so fast that the softmax between them is what takes the time. Two remedies. *Lazy rescale*: a row is measured
against the reference m, an old maximum, for as long as the true one, m', lies at most $\tau$ powers of two above it,

$$m' = \max(m, \max_j s_j), \qquad m \leftarrow \begin{cases} m & \text{if } (m' - m)\log_2 e \le \tau, \\ m' & \text{otherwise,}\end{cases}
\qquad e^{s - m} \le 2^\tau, \qquad L = m + \log \textstyle\sum_j e^{s_j - m},$$

so that the output is not multiplied by a factor near 1 tile after tile. Any reference gives the same output; 2^8 is no danger to 16 bits.
*Exponentials from products*: with $n = \lfloor x\rfloor$ and $f = x - n$, a polynomial gives $2^f$, and n is added to its exponent field,

$$2^x = 2^n\, 2^f \approx 2^n\, p(f), \qquad p(f) = 1 + c_1 f + c_2 f^2 + c_3 f^3, \qquad |p(f)\,2^{-f} - 1| \le 8.8\cdot 10^{-5}.$$

| name | symbol | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | queries, keys, values |
| `tau` | $\tau$ | | how many powers of two the maximum may run ahead of the reference |
| `emulate` | | `(Nk,)` | boolean, True where a key's exponentials come from `exp2`; None for none |
| `x`, `degree` | $x$ | any | at most 127; degree of p, 1 to 5 |

Deviations: the released kernel decides to rescale for the rows of a warp together, here each row does. It picks the exponentials that are
emulated by their place in a register fragment; here they are named by key, so that prefill and decode agree (flash-attention #2595). The
exponent field ends: for x in [-127, -126) it is 0, which drops the leading 1 of p, and for x <= -127 all of it is 0, so a masked logit
needs no special case. Coefficients are those of the released code. The paper's body was not at hand: no equations are quoted.
Derives from: attention.flash
"""

import numpy as np

from twofold.spec.attention.dense import logits

__all__ = ["lazy_rescale", "exp2"]

POLYNOMIALS = {
    1: (1, 0.922497093677520751953125),
    2: (1, 0.6657850742340087890625, 0.330107033252716064453125),
    3: (1, 0.695146143436431884765625, 0.227564394474029541015625, 0.077119089663028717041015625),
    4: (1, 0.693042695522308349609375, 0.2412912547588348388671875, 0.052225358784198760986328125, 0.013434938155114650726318359375),
    5: (1, 0.693151414394378662109375, 0.24016360938549041748046875, 0.055802188813686370849609375, 0.00901452265679836273193359375,
        0.00186810153536498546600341796875),
}  # fmt: skip


def lazy_rescale(q, k, v, *, block_q=64, block_k=64, tau=8, mask=None, scale=None, emulate=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`: `dense.attention` for every `tau`, if nothing is emulated.

    >>> q, k, v = np.ones((1, 1)), np.array([[0.0], [5.0], [6.0]]), np.array([[1.0], [2.0], [4.0]])
    >>> always, seldom, never = (lazy_rescale(q, k, v, block_k=1, tau=tau) for tau in (0, 8, np.inf))
    >>> [round(float(x[0][0, 0]), 6) for x in (always, seldom, never)]
    [3.457664, 3.457664, 3.457664]
    >>> [x.tolist() for x in lazy_rescale(q, k[:0], v[:0])]                       # no keys
    [[[0.0]], [-inf]]
    """
    outputs, sums = [np.zeros((0, v.shape[1]))], [np.zeros(0)]
    for rows in _blocks(len(q), block_q):
        m, l, acc = np.full(len(q[rows]), -np.inf), np.zeros(len(q[rows])), np.zeros((len(q[rows]), v.shape[1]))
        for keys in _blocks(len(k), block_k):
            s = logits(q[rows], k[keys], scale=scale, mask=None if mask is None else mask[rows, keys])  # (block_q, block_k)
            highest = np.maximum(m, np.max(s, axis=1))
            ahead = m - np.where(highest == -np.inf, 0.0, highest)        # at most 0; -inf where nothing has been seen yet
            m_new = np.where((m > -np.inf) & (ahead >= -(tau * np.log(2))), m, highest)
            m_safe = np.where(m_new == -np.inf, 0.0, m_new)
            p = _exponential(s - m_safe[:, None], None if emulate is None else emulate[keys])
            rescale = np.exp(m - m_safe)                                  # exactly 1 for a row that keeps its reference
            l = rescale * l + np.sum(p, axis=1)
            acc = rescale[:, None] * acc + p @ v[keys]
            m = m_new
        total = np.where(l == 0, 1.0, l)
        outputs.append(acc / total[:, None])
        sums.append(np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total)))
    return np.concatenate(outputs), np.concatenate(sums)


def exp2(x, *, degree=3):
    """2^x for x up to 127, from a floor, `degree` multiplications and additions, and an integer addition.

    >>> exp2(np.array([-1.0, 0.0, 3.0, -127.0, -np.inf])).tolist()                # integers are exact, and nothing is nothing
    [0.5, 1.0, 8.0, 0.0, 0.0]
    >>> round(float(exp2(np.array(0.5))), 5), round(2**0.5, 5)
    (1.4141, 1.41421)
    """
    x = np.maximum(x, -127.0)
    n = np.floor(x)
    f = x - n
    p = 0.0
    for coefficient in reversed(POLYNOMIALS[degree]):
        p = p * f + coefficient
    return np.where(n == -127, (p - 1) * 2.0**-126, p * 2.0 ** np.maximum(n, -126))  # field 0: no leading 1


def _exponential(s, emulate):
    return np.exp(s) if emulate is None else np.where(emulate, exp2(s / np.log(2)), np.exp(s))


def _blocks(length, size):
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
