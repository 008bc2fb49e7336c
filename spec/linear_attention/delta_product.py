r"""DeltaProduct: several steps of the delta rule per token, so that a transition is a product of reflections.

Paper: Siems, Carstensen, Zela, Hutter, Pontil, Grazzi, "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products",
2025, arXiv:2502.10297, Sec. 3.

One step of the delta rule can reflect the state at one key. A rotation needs two reflections, a permutation of m things up to m - 1. So a
token fades the memory once, takes n steps, and reads after the last:

$$S_{t,0} = e^{g_t} S_{t-1}, \qquad S_{t,j} = S_{t,j-1} + \beta_{t,j}\, k_{t,j} \otimes (v_{t,j} - k_{t,j}^\top S_{t,j-1}), \qquad
o_t = q_t^\top S_{t,n}, \quad S_t = S_{t,n}.$$

That is the gated delta rule on n T tokens, of which the first of each group has the gate and the last has the query.

| name | paper | shape | meaning |
|---|---|---|---|
| `q` | $q_t$ | `(T, K)` | queries (already scaled) |
| `k`, `v` | $k_{t,j}, v_{t,j}$ | `(T, n, K)`, `(T, n, V)` | keys (of length 1) and values of the steps |
| `g` | $\log\alpha_t$ | `(T,)` | log-decay, at most 0; zeros: DeltaProduct without gates |
| `beta` | $\beta_{t,j}$ | `(T, n)` | write strengths, in [0, 2] |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |
| `chunk` | | | steps, not tokens, per chunk: its edges may cut a token's group |

Precondition: $\beta \lVert k \rVert^2 \le 2$.
Deviations: normalization, scale and the sigmoids are the caller's. Section numbers are from memory.
Derives from: linear_attention.gated_delta (n = 1).
"""

import numpy as np

from twofold.spec.linear_attention import gated_delta

__all__ = ["recurrent", "chunked", "step"]


def step(state, q, k, v, g, beta):
    """Fade, take n steps, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g) * state
    for j in range(len(k)):
        state = state + np.outer(beta[j] * k[j], v[j] - k[j] @ state)
    return q @ state, state


def recurrent(q, k, v, g, beta, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    Two reflections turn three things around a circle, here twice; one can only exchange two of them.

    >>> turn = np.array([[[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]] * 2)
    >>> things = np.array([[1.0], [2.0], [3.0]])
    >>> recurrent(np.zeros((2, 3)), turn, np.zeros((2, 2, 1)), np.zeros(2), np.ones((2, 2)), things)[1].ravel().tolist()
    [3.0, 1.0, 2.0]
    """
    state = np.zeros((k.shape[2], v.shape[2])) if S0 is None else S0
    outputs = [v[:0, 0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], beta[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, g, beta, S0=None, chunk=64):
    """The same by the chunks of the gated delta rule, n tokens for each."""
    n = k.shape[1]
    query, keys, values, log_decay, strengths = expanded(q, k, v, g, beta)
    output, state = gated_delta.chunked(query, keys, values, log_decay, strengths, S0, chunk)
    return output[n - 1 :: n], state


def expanded(q, k, v, g, beta):
    """One token per step: the gate on the first of each group, the query on the last."""
    n = k.shape[1]
    first = np.concatenate([g[:, None], np.zeros((len(g), n - 1))], axis=1)
    last = np.concatenate([np.zeros((len(q), n - 1, q.shape[1])), q[:, None]], axis=1)
    flat = lambda x: x.reshape(len(q) * n, *x.shape[2:])
    return flat(last), flat(k), flat(v), flat(first), flat(beta)
