r"""Simple gated linear attention: linear attention whose whole memory fades by one data-dependent factor per token.

Paper: Sun, Dong, Zhu, Huang, Wang, Ma, Zhang, Wang, Wei, "You Only Cache Once: Decoder-Decoder Architectures for Language Models", 2024,
arXiv:2405.05254, Sec. 2 (gated retention); the same recurrence is the core of Mamba-2 (Dao, Gu, 2024, arXiv:2405.21060).

$$S_t = e^{g_t} S_{t-1} + k_t \otimes v_t, \qquad o_t = q_t^\top S_t
\qquad\Longleftrightarrow\qquad O = (QK^\top \odot D)\,V, \quad D_{ij} = e^{g_{j+1} + \dots + g_i} \ (i \ge j).$$

The decay no longer depends on the channel, so it leaves the inner product: scores are one product of matrices, times a mask of decays.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `g` | $\log\gamma_t$ | `(T,)` | log-decay, at most 0; `-inf` forgets everything |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |

Deviations: D is made of sums of the log-decays between two tokens, never of a quotient of cumulative decays, which overflows. The paper's
gate, sigmoid(X W)^(1/tau), and its scale are the caller's. Section numbers are from memory.
Derives from: linear_attention.gla (the same decay in every channel).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays
from twofold.spec.linear_attention.gla import after

__all__ = ["recurrent", "parallel", "chunked", "step"]


def step(state, q, k, v, g):
    """Fade, write one token, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g) * state + np.outer(k, v)
    return q @ state, state


def recurrent(q, k, v, g, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> q = k = np.ones((3, 1)); v = np.array([[1.0], [2.0], [4.0]])
    >>> recurrent(q, k, v, np.log([1.0, 0.5, 0.5]))[0].ravel().tolist()                       # halves before each new token
    [1.0, 2.5, 5.25]
    >>> recurrent(q, k, v, np.array([0.0, -np.inf, 0.0]))[0].ravel().tolist()
    [1.0, 2.0, 6.0]
    >>> recurrent(q[:0], k[:0], v[:0], np.zeros(0), S0=np.ones((1, 1)))[1].tolist()           # no token, same state
    [[1.0]]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def parallel(q, k, v, g, S0=None):
    """The same as attention without softmax, under a mask of decays `(T, T)`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    return _one_chunk(q, k, v, g, state)


def chunked(q, k, v, g, S0=None, chunk=64):
    """The same, chunk by chunk: the state carries what came before. Equal for every `chunk`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, g)), state)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, g, state):
    between = decays(g[:, None])[:, :, 0]                                 # from j through i                         (C, C)
    since = np.exp(np.cumsum(g))                                          # from the start through i                 (C,)
    output = (q @ k.T * between) @ v + since[:, None] * (q @ state)
    faded = np.exp(after(g[:, None])) * k                                 # each key, to the end                     (C, K)
    return output, np.exp(np.sum(g)) * state + faded.T @ v
