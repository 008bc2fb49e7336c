r"""Comba: a gated delta rule with feedback of its own: what is looked up differs from what is written under, and corrects the query too.

Paper: Hu et al., "Comba: Improving Bilinear RNNs with Closed-loop Control", 2025, arXiv:2506.02475, Sec. 3 (state and output feedback).

In the words of control theory linear attention is an open loop: what is written does not depend on what is stored. The delta rule feeds the
state back into the write. Comba lets that feedback have a key p of its own, and feeds it into the output as well:

$$S_t = e^{g_t} S_{t-1} + \beta_t k_t \otimes (v_t - p_t^\top S_{t-1}), \qquad o_t = (q_t - d\,p_t)^\top S_t.$$

The look-up reads the memory *before* it fades, unlike the gated delta rule. With $p = e^g k$ and d = 0 the two are one.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys (of length 1), values |
| `g` | $\log\alpha_t$ | `(T,)` | log-decay, at most 0 |
| `beta` | $\beta_t$ | `(T,)` | write strength |
| `p` | $p_t$ | `(T, K)` | what the state is asked before the write; in the paper's layer b k with a learned b in (0, 1) per head |
| `d` | $d$ | scalar | how much of the answer to p is taken out of the output |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |

Precondition: $e^g - 1 \le \beta\, p^\top k \le 1 + e^g$, or the transition $e^g I - \beta k p^\top$ has an eigenvalue beyond -1 or 1.
Deviations: one released implementation fades first and looks up afterwards; a test shows that it is another model. The layer's b, its
sigmoid and the normalization of q and k are the caller's. Section numbers are from memory, and so is which d the paper prints.
Derives from: linear_attention.affine (write key beta k, a = p, b = -beta k, query q - d p).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays
from twofold.spec.linear_attention.delta import substitute
from twofold.spec.linear_attention.gla import after

__all__ = ["recurrent", "chunked", "step"]


def step(state, q, k, v, g, beta, p, d):
    """Look up p, fade, write what was missing, then read: returns the output `(V,)` and the new state `(K, V)`."""
    missing = v - p @ state
    state = np.exp(g) * state + np.outer(beta * k, missing)
    return (q - d * p) @ state, state


def recurrent(q, k, v, g, beta, p, d, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> one = np.ones((3, 1)); v = np.array([[4.0], [8.0], [0.0]]); half = np.full(3, 0.5)
    >>> recurrent(one, one, v, np.zeros(3), half, one, 0.0)[0].ravel().tolist()               # p = k, no decay: the delta rule
    [2.0, 5.0, 2.5]
    >>> recurrent(one, one, v, np.log(half), half, one, 0.0)[0].ravel().tolist()              # the whole of 2 was looked up, half is kept
    [2.0, 4.0, 0.0]
    >>> recurrent(one, one, v, np.zeros(3), half, one, 1.0)[0].ravel().tolist()               # q - p = 0
    [0.0, 0.0, 0.0]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], beta[t], p[t], d)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, g, beta, p, d, S0=None, chunk=64):
    """The same, one triangular system per chunk. Equal for every `chunk`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, g, beta, p)), d, state)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, g, beta, p, d, state):
    write, query = beta[:, None] * k, q - d * p
    between = decays(g[:, None])[:, :, 0]                                 # from j through i                         (C, C)
    before = np.concatenate([np.zeros_like(between[:1]), between[:-1]])   # from j to just before i                  (C, C)
    since = np.exp(np.cumsum(g))                                          # from the start through i                 (C,)
    until = np.concatenate([np.ones_like(since[:1]), since[:-1]])         # from the start to just before i          (C,)
    missing = substitute(p @ write.T * before, v - until[:, None] * (p @ state))
    output = since[:, None] * (query @ state) + (query @ write.T * between) @ missing
    return output, np.exp(np.sum(g)) * state + (np.exp(after(g[:, None])) * write).T @ missing
