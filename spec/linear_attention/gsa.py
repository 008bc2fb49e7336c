r"""Gated slot attention: a memory of few slots that forget at their own rates, read by a softmax over the slots.

Paper: Zhang, Yang, Zhu, Zhang, Cui, Wang, Wang, Shi, Wang, Bi, Zhou, Fu, "Gated Slot Attention for Efficient Linear-Time Sequence
Modeling", 2024, arXiv:2409.07146, Sec. 3 (the recurrence, and its form as gated linear attention twice).

Attention keeps a key and a value for every token. Here there are M slots for all of them: each token adds its key and its value to every
slot, with a weight per slot, and is answered by softmax attention over the slots.

$$\tilde K_t = \mathrm{Diag}(e^{g_t})\,\tilde K_{t-1} + s_t\otimes k_t, \quad
\tilde V_t = \mathrm{Diag}(e^{g_t})\,\tilde V_{t-1} + s_t\otimes v_t, \quad o_t = \tilde V_t^\top\,\mathrm{softmax}(\tilde K_t\, q_t).$$

With the softmax in between these are two linear recurrences of the same gates: the second reads its memory along the slots, as gated linear
attention does, the first along the keys' own axis, so that the decay stands where values stand and scores q·k do not know it.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `s` | $1-\alpha_t$ | `(T, M)` | how much of the token each slot takes in |
| `g` | $\log\alpha_t$ | `(T, M)` | log-decay of each slot, at most 0; `-inf` empties it |
| `S0`, `state` | $\tilde K_t^\top, \tilde V_t$ | `(K, M)`, `(M, V)` | keys and values of the slots, a pair, zeros at the start |
| `x`, `tau` | $W_\alpha x_t$, $\tau$ | `(T, M)`, scalar | what gates are made of |

Deviations: s and g are independent here, the paper has s = 1 - e^g (`gate`). A slot that is empty holds zeros and takes part in the softmax
with a logit of 0. The keys' memory is kept as `(K, M)`, key axis first. Section numbers and tau = 8 are from memory.
Derives from: linear_attention.gla (twice).
"""

import numpy as np

from twofold.spec.linear_attention import gla
from twofold.spec.linear_attention.affine import decays
from twofold.spec.linear_attention.gla import after

__all__ = ["recurrent", "chunked", "weights", "step", "gate"]


def step(state, q, k, v, s, g):
    """Fade, write one token into the slots, then read: returns the output `(V,)` and the new state."""
    Kt, Vt = state
    Kt, Vt = Kt * np.exp(g) + np.outer(k, s), np.exp(g)[:, None] * Vt + np.outer(s, v)
    return _softmax(q @ Kt) @ Vt, (Kt, Vt)


def recurrent(q, k, v, s, g, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state.

    >>> q = k = np.ones((3, 1)); v = np.array([[1.0], [2.0], [4.0]]); one = np.ones((3, 1))
    >>> recurrent(q, k, v, one, np.log(one / 2))[0].ravel().tolist()                          # one slot: a decayed sum
    [1.0, 2.5, 5.25]
    >>> recurrent(0 * q, k, v, np.eye(3), np.zeros((3, 3)))[0].ravel().round(12).tolist()     # a third of each slot, full or empty
    [0.333333333333, 1.0, 2.333333333333]
    >>> [x.tolist() for x in recurrent(q[:0], k[:0], v[:0], one[:0], one[:0])[1]]             # no token, empty slots
    [[[0.0]], [[0.0]]]
    """
    state, outputs = _start(k, v, s) if S0 is None else S0, [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], s[t], g[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, s, g, S0=None, chunk=64, sub=16):
    """The same in two passes over the chunks: who reads which slot, then gated linear attention with these weights for queries."""
    Kt, Vt = _start(k, v, s) if S0 is None else S0
    p, Kt = weights(q, k, s, g, Kt, chunk, sub)
    output, Vt = gla.chunked(p, s, v, g, Vt, chunk, sub)
    return output, (Kt, Vt)


def weights(q, k, s, g, Kt, chunk=64, sub=16):
    """The first pass: what each token gives to each slot, a softmax `(T, M)`, and the slots' keys after the last token."""
    logits = [s[:0]]
    for start in range(0, len(q), chunk):
        rows, Kt = _one_chunk(*(x[start : start + chunk] for x in (q, k, s, g)), Kt, sub)
        logits.append(rows)
    return _softmax(np.concatenate(logits)), Kt


def _one_chunk(q, k, s, g, Kt, sub):
    rows = []
    for start in range(0, len(q), sub):  # the two levels of gated linear attention; what fades are the writes, not the scores
        here = slice(start, start + sub)
        since = np.cumsum(g[here], axis=0)                                # from the sub-chunk's start through i (c, M)
        distant = (q[here] @ k[:start].T) @ (s[:start] * np.exp(after(g[:start])))                          # (c, M)
        near = np.sum((q[here] @ k[here].T)[:, :, None] * decays(g[here]) * s[here], axis=1)                # (c, M)
        carried = (q[here] @ Kt) * np.exp(np.sum(g[:start], axis=0) + since)
        rows.append(distant * np.exp(since) + near + carried)
    return np.concatenate(rows), Kt * np.exp(np.sum(g, axis=0)) + k.T @ (s * np.exp(after(g)))


def gate(x, tau=8.0):
    """The layer's writes and log-decays `(T, M)`, from which a slot takes in what it forgets: g = log sigmoid(x) / tau, s = 1 - e^g.

    >>> [y.round(12).tolist() for y in gate(np.array([[0.0, -np.inf]]), 1.0)]
    [[[0.5, 1.0]], [[-0.69314718056, -inf]]]
    """
    g = -np.logaddexp(0.0, -x) / tau
    return -np.expm1(g), g


def _start(k, v, s):
    return np.zeros((k.shape[1], s.shape[1])), np.zeros((s.shape[1], v.shape[1]))


def _softmax(x):
    share = np.exp(x - np.max(x, axis=-1, keepdims=True, initial=-np.inf))
    return share / np.sum(share, axis=-1, keepdims=True)
