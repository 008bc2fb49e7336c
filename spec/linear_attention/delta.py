r"""The delta rule: linear attention that writes only what its memory got wrong.

Paper: Schlag, Irie, Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers", 2021, arXiv:2102.11174, Sec. 4.2 (update);
Yang, Wang, Zhang, Shen, Kim, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, arXiv:2406.06484, Sec. 3
(chunks); Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", 2024, arXiv:2411.12537 ($\beta$ up to 2).

Linear attention adds a value to whatever is stored under its key. The delta rule first looks up what is there, and adds the difference:

$$S_t = S_{t-1} + \beta_t k_t \otimes (v_t - k_t^\top S_{t-1}) = (I - \beta_t k_t k_t^\top)\, S_{t-1} + \beta_t k_t \otimes v_t, \qquad
o_t = q_t^\top S_t.$$

With keys of length 1, $\beta = 1$ replaces what was stored, $\beta = 0$ leaves it, and $\beta = 2$ reflects the state at the key.

Within a chunk that starts with state S, let D be the differences, one row per token. Each depends on the earlier ones:

$$(I + \mathrm{tril}(K W^\top, -1))\, D = V - K S, \quad W = \mathrm{Diag}(\beta) K, \qquad
O = Q S + \mathrm{tril}(Q W^\top)\, D, \qquad S' = S + W^\top D.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys (of length 1), values |
| `beta` | $\beta_t$ | `(T,)` | write strength, in [0, 2] |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |

Precondition: $\beta \lVert k \rVert^2 \le 2$, or the transition has an eigenvalue below -1 and the state diverges.
Deviations: normalization, scale and the sigmoid of beta are the caller's. The paper multiplies out the inverse of the triangular matrix
(its WY form); here the system is solved row by row, so that no row depends on a later one. Section numbers are from memory.
Derives from: linear_attention.affine (write key beta k, a = k, b = -beta k).
"""

import numpy as np

__all__ = ["recurrent", "chunked", "step"]


def step(state, q, k, v, beta):
    """Look up the key, write what is missing, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = state + np.outer(beta * k, v - k @ state)
    return q @ state, state


def recurrent(q, k, v, beta, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> one = np.ones((3, 1)); v = np.array([[4.0], [8.0], [6.0]])
    >>> recurrent(one, one, v, np.ones(3))[0].ravel().tolist()                                # one key: the newest value replaces
    [4.0, 8.0, 6.0]
    >>> recurrent(one, one, v, np.full(3, 0.5))[0].ravel().tolist()                           # half of the way to it
    [2.0, 5.0, 5.5]
    >>> recurrent(one, one, 0 * v, np.full(3, 2.0), S0=np.ones((1, 1)))[0].ravel().tolist()   # a reflection: counts modulo 2
    [-1.0, 1.0, -1.0]
    >>> recurrent(one[:0], one[:0], v[:0], np.ones(0), S0=np.ones((1, 1)))[1].tolist()        # no token, same state
    [[1.0]]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], beta[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, beta, S0=None, chunk=64):
    """The same, one triangular system per chunk. Equal for every `chunk`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, beta)), state)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, beta, state):
    write = beta[:, None] * k
    missing = substitute(np.tril(k @ write.T, -1), v - k @ state)         # what each token finds missing            (C, V)
    return q @ state + np.tril(q @ write.T) @ missing, state + write.T @ missing


def substitute(lower, right):
    """x with (I + lower) x = right for a strictly lower triangular matrix: top row first, so that no row depends on a later one."""
    x = right[:0]
    for i in range(len(right)):
        x = np.concatenate([x, (right[i] - lower[i, :i] @ x)[None]])
    return x
