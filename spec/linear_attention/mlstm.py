r"""mLSTM: an LSTM with a matrix for a cell, whose input gate is an exponential, kept in range by a running maximum.

Paper: Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter, Hochreiter, "xLSTM: Extended Long Short-Term Memory", 2024,
arXiv:2405.04517, Sec. 2.3 (Eq. 19–27) and the appendix on its parallel form; Beck, Pöppel, Lippe, Hochreiter, "Tiled Flash Linear
Attention: More Efficient Linear RNN and xLSTM Kernels", 2025, arXiv:2503.14376 (chunks; the sigmoid input gate).

The cell fades by $\sigma(f_t)$, takes in a pair with weight $e^{i_t}$, and is read as a quotient. Weights without a bound overflow, so
cell and normalizer are kept divided by $e^{m_t}$, the largest weight that a pair still has:

$$m_t = \max(\log\sigma(f_t) + m_{t-1},\, i_t), \qquad g_t = \log\sigma(f_t) + m_{t-1} - m_t \le 0, \qquad w_t = e^{i_t - m_t} \le 1,$$
$$C_t = e^{g_t} C_{t-1} + w_t\, k_t\otimes v_t, \quad n_t = e^{g_t} n_{t-1} + w_t\, k_t, \qquad
h_t = \frac{q_t^\top C_t}{\max(|q_t\cdot n_t|,\, e^{-m_t}) + \varepsilon}.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `i`, `f` | $\tilde i_t, \tilde f_t$ | `(T,)` | gates before exponential and sigmoid; `-inf` writes nothing, forgets everything |
| `eps` | | scalar | added to the denominator as it is printed above, in units of $e^{m_t}$ |
| `S0`, `state` | $C_t, n_t, m_t$ | `((K, V), (K,), ())` | cell, normalizer, log of their unit; at the start zeros, and `-inf` |

Deviations: the forget gate is the sigmoid, not the exponential that the paper also allows. The paper prints no eps; released code adds it
here, so that outputs depend, by as much as eps, on the m they began with. Gates take an m that is still -inf for 0. From memory: section
numbers, and that code of the sigmoid variant divides only if asked to.
Derives from: linear_attention.simple_gla (decay g, writes w [v, 1]).
"""

import numpy as np

from twofold.spec.linear_attention import simple_gla
from twofold.spec.linear_attention.hgrn import log_forget

__all__ = ["recurrent", "parallel", "chunked", "step", "gates", "recurrent_sigmoid"]


def step(state, q, k, v, i, f, eps=1e-6):
    """Fade, write one token, then read: returns the output `(V,)` and the new state."""
    C, n, m = state
    write, g, m = gates(i[None], f[None], m)
    C, n = np.exp(g[0]) * C + np.outer(k, write[0] * v), np.exp(g[0]) * n + write[0] * k
    return q @ C / (np.maximum(np.abs(q @ n), np.exp(-m[0])) + eps), (C, n, m[0])


def recurrent(q, k, v, i, f, eps=1e-6, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state.

    >>> q = k = np.ones((3, 1)); v = np.array([[8.0], [4.0], [2.0]]); keep = np.full(3, 800.0)
    >>> recurrent(q, k, v, np.zeros(3), keep, 0.0)[0].round(12).ravel().tolist()              # equal weights: the mean so far
    [8.0, 6.0, 4.666666666667]
    >>> recurrent(q, k, v, np.log([1.0, 3.0, 4.0]), keep, 0.0)[0].round(12).ravel().tolist()
    [8.0, 5.0, 3.5]
    >>> recurrent(q, k, v, np.full(3, np.log(0.25)), keep, 0.0)[0].round(12).ravel().tolist()  # weights below 1 are not scaled up
    [2.0, 3.0, 3.5]
    >>> recurrent(q, k, v, np.full(3, -np.inf), keep)[0].ravel().tolist()                     # nothing is written
    [0.0, 0.0, 0.0]
    """
    state, outputs = _start(k, v) if S0 is None else S0, [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], i[t], f[t], eps)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def parallel(q, k, v, i, f, eps=1e-6, S0=None):
    """All pairs of tokens at once, with a matrix of log-weights `(T, T)`."""
    return chunked(q, k, v, i, f, eps, S0, max(len(q), 1))


def chunked(q, k, v, i, f, eps=1e-6, S0=None, chunk=64):
    """The same, chunk by chunk, each with maxima of its own. Equal for every `chunk`."""
    state, outputs = _start(k, v) if S0 is None else S0, [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, i, f)), eps, state)
        outputs.append(output)
    return np.concatenate(outputs), state


def gates(i, f, m):
    """Writes and log-decays of simple gated linear attention, at most 1 and at most 0, and all m: `(T,)` each, from the m before them.

    >>> [x.round(12).tolist() for x in gates(np.log([0.5, 4.0, 1.0]), np.full(3, 800.0), np.array(0.0))]
    [[0.5, 1.0, 0.25], [0.0, -1.38629436112, 0.0], [0.0, 1.38629436112, 1.38629436112]]
    """
    keep, maxima = log_forget(f), [m[None]]
    for t in range(len(i)):
        maxima.append(np.maximum(keep[t] + maxima[-1], i[t]))
    m = np.concatenate(maxima)
    known = np.where(m[1:] > -np.inf, m[1:], 0.0)                         # nothing written yet: any number serves
    return np.exp(i - known), keep + m[:-1] - known, m[1:]


def recurrent_sigmoid(q, k, v, i, f, normalize=True, S0=None):
    """The variant whose input gate is a sigmoid too: no unit to keep, state `(C, n)`; unless it is asked to, it does not divide.

    >>> q = k = np.ones((2, 1)); v = np.array([[8.0], [4.0]]); open = np.full(2, 800.0)
    >>> [recurrent_sigmoid(q, k, v, open, open, divide)[0].ravel().tolist() for divide in (True, False)]
    [[8.0, 6.0], [8.0, 12.0]]
    """
    C, n = _start(k, v)[:2] if S0 is None else S0
    pairs = np.exp(log_forget(i))[:, None] * np.concatenate([v, np.ones_like(v[:, :1])], axis=1)
    both, state = simple_gla.recurrent(q, k, pairs, log_forget(f), np.concatenate([C, n[:, None]], axis=1))
    total = np.maximum(np.abs(both[:, -1:]), 1.0) if normalize else 1.0
    return both[:, :-1] / total, (state[:, :-1], state[:, -1])


def _one_chunk(q, k, v, i, f, eps, state):
    (C, n, m), keep = state, log_forget(f)
    between = np.cumsum(np.where(np.tri(len(i), k=-1, dtype=bool), keep[:, None], 0.0), axis=0)
    pairs = np.where(np.tri(len(i), dtype=bool), between + i[None, :], -np.inf)  # log-weights, query by key (C, C)
    since = np.cumsum(keep) + m                                           # and of the state         (C,)
    m = np.maximum(np.max(pairs, axis=1), since)
    known = np.where(m > -np.inf, m, 0.0)
    weights, old = np.exp(pairs - known[:, None]), np.exp(since - known)
    scores = q @ k.T * weights
    total = np.abs(np.sum(scores, axis=1) + old * (q @ n))
    output = (scores @ v + old[:, None] * (q @ C)) / (np.maximum(total, np.exp(-m)) + eps)[:, None]
    return output, (old[-1] * C + (weights[-1][:, None] * k).T @ v, old[-1] * n + weights[-1] @ k, m[-1])


def _start(k, v):
    return np.zeros((k.shape[1], v.shape[1])), np.zeros(k.shape[1]), np.array(-np.inf)
