r"""MesaNet: the memory that has solved, at every token, the regression of all values so far on all keys so far.

Paper: von Oswald et al., "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", 2025, arXiv:2506.05233, Sec. 2 (layer),
Sec. 3 (conjugate gradients in chunks).

A gradient step moves a memory towards what would answer the keys seen so far; this layer takes the memory that answers them best:

$$\Phi_t = \arg\min_\Phi \sum_{i \le t} \beta_i e^{g_{i+1} + \dots + g_t} \lVert \Phi^\top k_i - v_i \rVert^2
+ \sum_d \lambda_d \lVert \Phi_d \rVert^2, \qquad o_t = \Phi_t^\top q_t.$$

The minimum is $\Phi_t = (H_t + \Lambda)^{-1} R_t$ with two decaying sums,

$$H_t = e^{g_t} H_{t-1} + \beta_t k_t \otimes k_t, \qquad R_t = e^{g_t} R_{t-1} + \beta_t k_t \otimes v_t.$$

Instead of one inverse per token, `chunked_cg` solves $(H_t + \Lambda)\, x_t = q_t$ for all tokens of a chunk by conjugate gradients. No
$H_t$ is formed, since a product with it is a linear attention.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries, keys, values |
| `g`, `beta` | $\log \gamma_t, \beta_t$ | `(T,)` | log-decay, at most 0, and weight of a pair, at least 0 |
| `lam` | $\Lambda$ | `(K,)` | how much each key channel's weights cost, above 0 |
| `S0`, `state` | $(H, R)$ | `(K, K)`, `(K, V)` | both sums, zeros at the start |
| `iterations` | $k$ | | steps of conjugate gradients: K of them are exact without rounding |

Deviations: released code adds a small number to both denominators of the iteration, which leaves an error of its size that no further
step removes; here a residual of zero ends the row. The start is q divided by the diagonal of its matrix. (Section numbers from memory.)
Derives from: linear_attention.gla (both sums are its states)
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays

__all__ = ["recurrent", "chunked_cg", "step"]


def step(state, q, k, v, g, beta, lam):
    """Absorb one token, then answer: the output `(V,)` and the new state."""
    H = np.exp(g) * state[0] + beta * np.outer(k, k)
    R = np.exp(g) * state[1] + beta * np.outer(k, v)
    return np.linalg.solve(H + np.diag(lam), q) @ R, (H, R)


def recurrent(q, k, v, g, beta, lam, S0=None):
    """The definition: one `step`, and one system of equations, per token. Returns the outputs `(T, V)` and the final state.

    >>> one = np.ones((3, 1)); zero = np.zeros(3)
    >>> recurrent(one, one, np.array([[4.0], [8.0], [0.0]]), zero, zero + 1, np.array([1.0]))[0].ravel().tolist()    # sums / (1 + count)
    [2.0, 4.0, 3.0]
    >>> recurrent(one, one, np.array([[4.0], [8.0], [0.0]]), zero - np.inf, zero + 1, np.array([1.0]))[0].ravel().tolist()
    [2.0, 4.0, 0.0]
    """
    state, outputs = _start(k, v, S0), []
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], beta[t], lam)
        outputs.append(output)
    return (np.stack(outputs) if outputs else v), state


def chunked_cg(q, k, v, g, beta, lam, S0=None, chunk=64, iterations=30):
    """The same, to the accuracy of so many steps of conjugate gradients; the states are exact."""
    state, outputs = _start(k, v, S0), [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, g, beta)), lam, *state, iterations)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, g, beta, lam, H, R, iterations):
    decay, since = decays(g[:, None])[:, :, 0], np.exp(np.cumsum(g))[:, None]      # (C, C), (C, 1)
    seen = lambda x: (x @ k.T) * decay * beta                          # what each row's x meets of the chunk's pairs   (C, C)
    times = lambda x: seen(x) @ k + since * (x @ H) + x * lam          # H_t x_t + lam x_t, every row its own t
    diagonal = (decay * beta) @ (k * k) + since * np.diag(H) + lam
    x = q / diagonal
    residual = q - times(x)
    direction, size = residual, np.sum(residual * residual, axis=1)
    for _ in range(iterations):
        image = times(direction)
        curvature = np.sum(direction * image, axis=1)
        length = size / np.where(size == 0, 1.0, curvature)
        x = x + length[:, None] * direction
        residual = residual - length[:, None] * image
        before, size = size, np.sum(residual * residual, axis=1)
        direction = residual + (size / np.where(before == 0, 1.0, before))[:, None] * direction
    reach = (decay[-1] * beta)[:, None] * k
    return seen(x) @ v + since * (x @ R), (since[-1] * H + reach.T @ k, since[-1] * R + reach.T @ v)


def _start(k, v, S0):
    return (np.zeros((k.shape[1],) * 2), np.zeros((k.shape[1], v.shape[1]))) if S0 is None else S0
