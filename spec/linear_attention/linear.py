r"""Linear attention: a softmax exchanged for a product of features, so that the sum over the past can be kept instead of the past.

Paper: Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", 2020,
arXiv:2006.16236, Sec. 3.2 (Eq. 5), Sec. 3.3 (causal, Eq. 9–12).

If the weight of a key is $\phi(q)\cdot\phi(k)$, the query leaves the sums over keys, and both sums grow by one term per token:

$$o_t = \frac{\sum_{j\le t} (q_t\cdot k_j)\, v_j}{\sum_{j\le t} q_t\cdot k_j + \varepsilon}
= \frac{q_t^\top S_t}{q_t\cdot z_t + \varepsilon}, \qquad S_t = S_{t-1} + k_t\otimes v_t, \quad z_t = z_{t-1} + k_t.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k` | $\phi(Q_i), \phi(K_j)$ | `(T, K)` | queries and keys after the feature map, at least 0 |
| `v` | $V_j$ | `(T, V)` | values |
| `S0`, `state` | $S_i, Z_i$ | `((K, V), (K,))` | sums of key ⊗ value and of keys, zeros at the start |
| `eps` | | scalar | keeps a row that has seen nothing at 0 |

Deviations: eps is added once, to the whole denominator; the paper prints none, its code has 1e-6. Features are the caller's (the paper
takes elu(x) + 1); signed ones are allowed, and then the denominator may vanish. Equation numbers are from memory.
Derives from: linear_attention.affine (g = a = b = 0, and a column of ones beside v).
"""

import numpy as np

__all__ = ["recurrent", "parallel", "chunked", "step"]


def step(state, q, k, v, eps=1e-6):
    """Add one token to both sums, then read: returns the output `(V,)` and the new state."""
    S, z = state[0] + np.outer(k, v), state[1] + k
    return q @ S / (q @ z + eps), (S, z)


def recurrent(q, k, v, eps=1e-6, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state.

    >>> q = k = np.ones((3, 1)); v = np.array([[3.0], [5.0], [1.0]])
    >>> recurrent(q, k, v, eps=0.0)[0].ravel().tolist()                                       # equal weights: the mean so far
    [3.0, 4.0, 3.0]
    >>> recurrent(q, 0 * k, v)[0].ravel().tolist()                                            # nothing to attend
    [0.0, 0.0, 0.0]
    """
    state, outputs = _start(k, v, S0), [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], eps)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def parallel(q, k, v, eps=1e-6, S0=None):
    """The same, as a lower-triangular matrix of weights `(T, T)` divided by its row sums."""
    S, z = _start(k, v, S0)
    weights = np.tril(q @ k.T)
    total = np.sum(weights, axis=1) + q @ z + eps
    return (weights @ v + q @ S) / total[:, None], (S + k.T @ v, z + np.sum(k, axis=0))


def chunked(q, k, v, eps=1e-6, S0=None, chunk=64):
    """The same, chunk by chunk: `parallel` within, both sums between. Equal for every `chunk`."""
    state, outputs = _start(k, v, S0), [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = parallel(*(x[start : start + chunk] for x in (q, k, v)), eps, state)
        outputs.append(output)
    return np.concatenate(outputs), state


def _start(k, v, S0):
    return (np.zeros((k.shape[1], v.shape[1])), np.zeros(k.shape[1])) if S0 is None else S0
