r"""Kimi delta attention: the gated delta rule in which every key channel fades at its own rate.

Paper: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025, arXiv:2510.26692, Sec. 3 (recurrence, chunks).

Gated DeltaNet has one gate per token for the whole memory; here each channel has its own, as in gated linear attention:

$$S_t = (I - \beta_t k_t k_t^\top)\,\mathrm{Diag}(e^{g_t})\, S_{t-1} + \beta_t k_t \otimes v_t, \qquad o_t = q_t^\top S_t.$$

The transition is a diagonal plus a product of rank one in which the *same* key stands twice. So in a chunk, with $G$ the sum of the
log-decays through a token, one decayed product of keys serves both what is erased and what is written, and nothing is divided by a decay:

$$(I + \mathrm{tril}(A, -1))\, D = V - (K \odot e^{G})\, S, \qquad A_{ij} = \sum_d k_{id}\, \beta_j k_{jd}\, e^{G_{id} - G_{jd}}.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys (of length 1), values |
| `g` | $\log\alpha_t$ | `(T, K)` | log-decay, at most 0; `-inf` forgets the channel |
| `beta` | $\beta_t$ | `(T,)` | write strength, in [0, 2] |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |
| `chunk`, `sub` | $C$, | | tokens per chunk and per sub-chunk |
| `x`, `A_log`, `dt_bias` | | `(T, K)`, scalar, `(K,)` | a token's projection to its gates, and the gates' parameters |

Precondition: $\beta \lVert k \rVert^2 \le 2$.
Deviations: no ratio of decays is formed; sub-chunks anchor their products so that every exponent is at most 0. `bounded_gate` is from
released code, from memory. Normalization, scale and the sigmoid of beta are the caller's. Section numbers are from memory.
Derives from: linear_attention.gated_delta (the same decay in every channel), linear_attention.gla, linear_attention.affine (a = e^g * k).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays, paired
from twofold.spec.linear_attention.delta import substitute
from twofold.spec.linear_attention.gla import after

__all__ = ["recurrent", "chunked", "step", "gate", "bounded_gate"]


def step(state, q, k, v, g, beta):
    """Fade by channel, look up the key, write what is missing, then read: the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g)[:, None] * state
    state = state + np.outer(beta * k, v - k @ state)
    return q @ state, state


def recurrent(q, k, v, g, beta, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> q = k = np.eye(2); v = np.array([[4.0], [6.0]]); one = np.ones(2)
    >>> recurrent(q, k, v, np.zeros((2, 2)), one)[1].ravel().tolist()                         # two keys, both kept
    [4.0, 6.0]
    >>> recurrent(q, k, v, np.array([[0.0, 0.0], [-np.inf, 0.0]]), one)[1].ravel().tolist()   # the first channel is forgotten
    [0.0, 6.0]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], beta[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, g, beta, S0=None, chunk=64, sub=16):
    """The same, one triangular system per chunk. Equal for every `chunk` and `sub`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, g, beta)), state, sub)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, g, beta, state, sub):
    write, since = beta[:, None] * k, np.exp(np.cumsum(g, axis=0))
    missing = substitute(np.tril(scores(k, write, g, sub), -1), v - (k * since) @ state)                  # (C, V)
    output = scores(q, write, g, sub) @ missing + (q * since) @ state
    return output, np.exp(np.sum(g, axis=0))[:, None] * state + (write * np.exp(after(g))).T @ missing


def scores(x, y, g, sub):
    """Products of rows of x with rows of y, at or before them, decayed channel by channel from j through i: `(C, C)`."""
    rows = []
    for start in range(0, len(x), sub):  # its start anchors both factors of the products with earlier sub-chunks
        here = slice(start, start + sub)
        distant = (x[here] * np.exp(np.cumsum(g[here], axis=0))) @ (y[:start] * np.exp(after(g[:start]))).T
        near = paired(x[here], y[here], decays(g[here]))                  # channel by channel                       (c, c)
        later = np.zeros((len(near), len(x) - start - len(near)))
        rows.append(np.concatenate([distant, near, later], axis=1))
    return np.concatenate(rows)


def gate(x, A_log, dt_bias):
    """The layer's log-decays, of the shape of x: -e^{A_log} softplus(x + dt_bias)."""
    return -np.exp(A_log) * np.logaddexp(0.0, x + dt_bias)


def bounded_gate(x, A_log, dt_bias, lowest=-5.0):
    """Log-decays between `lowest` and 0: lowest * sigmoid(e^{A_log} (x + dt_bias)). Then no exponent in a chunk falls below C * lowest."""
    return lowest / (1 + np.exp(-np.exp(A_log) * (x + dt_bias)))
