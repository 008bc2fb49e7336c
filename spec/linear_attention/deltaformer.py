r"""DeltaFormer: softmax attention over what tokens had to add, after each has taken off what attention already knew in its place.

Paper: Zhong, Xu, Ao, Shi, "Understanding Transformer from the Perspective of Associative Memory", 2025, arXiv:2505.19488, the section on
DeltaFormer.

Attention stores pairs of keys and values and reads them. A delta rule reads first, and stores only the difference. Here both reads are
softmax attention, the first over keys strictly before, the second over all up to the token itself:

$$u_t = v_t - \beta_t \sum_{j<t} \mathrm{softmax}_{j<t}(w_t\cdot k_j)\, u_j, \qquad
o_t = \sum_{j\le t} \mathrm{softmax}_{j\le t}(q_t\cdot k_j)\, u_j.$$

With P the first weights, strictly below the diagonal, all u together solve one triangular system, $(I + \mathrm{diag}(\beta)\,P)\,U = V$.
Since what a token stores depends on what others stored, a single layer can follow a state through the text.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `w` | $w_t$ | `(T, K)` | what the token asks for before it stores (already scaled) |
| `beta` | $\beta_t$ | `(T,)` | how much of the answer it takes off |
| `S0`, `state` | $k_j, u_j$ | `(S, K)`, `(S, V)` | the cache: keys, and what was stored under them; empty at first; only ever appended to |

Deviations: w is an argument of its own. Public code takes the query for it, and the key if our memory of the paper is right; its strengths
are ones where none are given. The first token has nobody to ask, so it stores its value.
Derives from: attention.dense (beta 0), linear_attention.delta (products for both softmaxes, beta v for v).
"""

import numpy as np

from twofold.spec.attention.dense import weights

__all__ = ["recurrent", "parallel", "blockwise", "step", "stored"]


def step(state, q, k, v, w, beta):
    """Ask, store the difference, read: returns the output `(V,)` and the new state, the old one with one more row."""
    keys, u = state
    new = v - beta * (weights(w[None], keys, scale=1.0)[0] @ u)
    keys, u = np.concatenate([keys, k[None]]), np.concatenate([u, new[None]])
    return weights(q[None], keys, scale=1.0)[0] @ u, (keys, u)


def recurrent(q, k, v, w, beta, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state.

    >>> k = np.array([[0.0], [1000.0], [2000.0], [3000.0]]); one = np.ones((4, 1)); bits = np.array([1.0, 1.0, 0.0, 1.0])
    >>> recurrent(one, k, bits[:, None], one, 2 * bits - 1)[0].ravel().tolist()     # every token asks the last: the parity so far
    [1.0, 0.0, 0.0, 1.0]
    >>> [x.tolist() for x in recurrent(one[:0], k[:0], one[:0], one[:0], bits[:0])[1]]                  # no token, no cache
    [[], []]
    """
    state, outputs = (k[:0], v[:0]) if S0 is None else S0, [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], w[t], beta[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def parallel(q, k, v, w, beta, S0=None):
    """The same, all tokens at once: one triangular system."""
    keys, u = (k[:0], v[:0]) if S0 is None else S0
    past, keys = len(keys), np.concatenate([keys, k])
    i, j = past + np.arange(len(q))[:, None], np.arange(len(keys))
    asked = weights(w, keys, mask=j < i, scale=1.0)  # (T, S + T)
    u = np.concatenate([u, stored(asked[:, past:], v - beta[:, None] * (asked[:, :past] @ u), beta)])
    return weights(q, keys, mask=j <= i, scale=1.0) @ u, (keys, u)


def blockwise(q, k, v, w, beta, S0=None, block=64):
    """The same, block by block, each behind the cache of all before. Equal for every `block`."""
    state, outputs = (k[:0], v[:0]) if S0 is None else S0, [v[:0]]
    for start in range(0, len(q), block):
        output, state = parallel(*(x[start : start + block] for x in (q, k, v, w, beta)), state)
        outputs.append(output)
    return np.concatenate(outputs), state


def stored(asked, v, beta):
    """Solve $(I + \\mathrm{diag}(\\beta)\\,P)\\,U = V$ for weights strictly below the diagonal, `(T, T)`, from the first row on."""
    u = v[:0]
    for t in range(len(v)):
        u = np.concatenate([u, (v[t] - beta[t] * (asked[t, :t] @ u))[None]])
    return u
