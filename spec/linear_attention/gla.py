r"""Gated linear attention: linear attention whose memory forgets each key channel at its own, data-dependent rate.

Paper: Yang, Wang, Shen, Panda, Kim, "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
arXiv:2312.06635, Eq. 3 (recurrence), Sec. 4.2 (parallel form), Sec. 4.3 (two levels of chunks), Sec. 4.4 (gate).

Each key channel of the state decays by its own factor, then the token writes its pair and reads:

$$S_t = \mathrm{Diag}(e^{g_t})\, S_{t-1} + k_t \otimes v_t, \qquad o_t = q_t^\top S_t.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k` | $q_t, k_t$ | `(T, K)` | queries (already scaled) and keys |
| `v` | $v_t$ | `(T, V)` | values |
| `g` | $\log\alpha_t$ | `(T, K)` | log-decay, at most 0; `-inf` forgets the channel |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |
| `chunk`, `sub` | $C$, $c$ | | tokens per chunk and per sub-chunk |
| `W1`, `W2`, `b`, `tau` | $W_\alpha^1, W_\alpha^2, b_\alpha, \tau$ | `(D, R)`, `(R, K)`, `(K,)`, scalar | low-rank gate |

Deviations: the paper divides by the cumulative decay (Eq. 4); here no decay is ever divided by or subtracted: every exponent is a sum of
log-decays over the tokens between, hence at most 0. The scale 1/sqrt(K) is the caller's. (Equation and section numbers are from memory.)
Derives from: linear_attention.affine (a = b = 0).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays, paired

__all__ = ["recurrent", "parallel", "chunked", "step", "backward", "gate"]


def step(state, q, k, v, g):
    """Absorb one token, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g)[:, None] * state + np.outer(k, v)
    return q @ state, state


def recurrent(q, k, v, g, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> q = k = np.ones((3, 1)); v = np.array([[1.0], [2.0], [4.0]])
    >>> recurrent(q, k, v, np.zeros((3, 1)))[0].ravel().tolist()                              # never forgets: a running sum
    [1.0, 3.0, 7.0]
    >>> recurrent(q, k, v, np.array([[0.0], [-np.inf], [0.0]]))[0].ravel().tolist()           # forgets before the second token
    [1.0, 2.0, 6.0]
    >>> recurrent(q[:0], k[:0], v[:0], q[:0], S0=np.ones((1, 1)))[1].tolist()                 # no token, same state
    [[1.0]]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = []
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t])
        outputs.append(output)
    return (np.stack(outputs) if outputs else v), state


def parallel(q, k, v, g, S0=None):
    """The same as attention without softmax: a lower-triangular `(T, T)` matrix of decayed scores."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    output = paired(q, k, decays(g)) @ v + (q * np.exp(np.cumsum(g, axis=0))) @ state
    return output, np.exp(np.sum(g, axis=0))[:, None] * state + (k * np.exp(after(g))).T @ v


def chunked(q, k, v, g, S0=None, chunk=64, sub=16):
    """The same, chunk by chunk: the state carries what came before. Equal for every `chunk` and `sub`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, g)), state, sub)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, g, state, sub):
    rows = []
    for start in range(0, len(q), sub):  # the rows of one sub-chunk; its start anchors both factors of the scores with earlier ones
        here = slice(start, start + sub)
        since = np.cumsum(g[here], axis=0)                                # from the anchor through i            (c, K)
        distant = (q[here] * np.exp(since)) @ (k[:start] * np.exp(after(g[:start]))).T                      #    (c, start)
        near = paired(q[here], k[here], decays(g[here]))                  # channel by channel                   (c, c)
        carried = (q[here] * np.exp(np.sum(g[:start], axis=0) + since)) @ state
        rows.append(distant @ v[:start] + near @ v[here] + carried)
    return np.concatenate(rows), np.exp(np.sum(g, axis=0))[:, None] * state + (k * np.exp(after(g))).T @ v


def after(g):
    """Log-decay from just after each token to the end: `(C, K)`, the last row 0."""
    shifted = np.concatenate([g[1:], np.zeros_like(g[:1])])
    return np.cumsum(shifted[::-1], axis=0)[::-1]


def backward(q, k, v, g, do, dS, S0=None):
    """Adjoint, all pairs at once: dq, dk, dv, dg, dS0 from d outputs `(T, V)` and d final state `(K, V)`.

    The loss flows through a gate from keys before it to queries from it on. Going back in time from the flow through the last state, each
    query adds its share and each key takes its own out; a token's own pair meets no gate and stays out of both.
    """
    S0 = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    through, since, until = decays(g), np.exp(np.cumsum(g, axis=0)), np.exp(after(g))
    total = np.exp(np.sum(g, axis=0))[:, None]
    own = np.sum(do * v, axis=1)[:, None]                                 # d score of each query with its own key  (T, 1)
    others = np.tril(do @ v.T, -1)[:, :, None] * through                  # … with earlier keys, decayed            (T, T, K)
    dq = np.sum(others * k[None, :, :], axis=1) + since * (do @ S0.T)
    dk = np.sum(others * q[:, None, :], axis=0) + until * (v @ dS.T)
    dv = paired(q, k, through).T @ do + (k * until) @ dS
    last = np.sum((total * S0 + (k * until).T @ v) * dS, axis=1)
    dg = np.cumsum((q * dq - k * dk)[::-1], axis=0)[::-1] + last
    return dq + own * k, dk + own * q, dv, dg, total * dS + (q * since).T @ do


def gate(x, W1, W2, b, tau=16.0):
    """The layer's log-decays `(T, K)` from its inputs `(T, D)`: log(sigmoid(x W1 W2 + b)) / tau, near 0 for a large tau."""
    return -np.logaddexp(0.0, -((x @ W1) @ W2 + b)) / tau
