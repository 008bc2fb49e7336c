r"""Retention: linear attention that fades at a constant rate, one for each head, and turns with position.

Paper: Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei, "Retentive Network: A Successor to Transformer for Large Language Models", 2023,
arXiv:2307.08621, Sec. 2.1 (parallel, Eq. 5; recurrent, Eq. 6; chunkwise, Eq. 7), Sec. 2.2 (multi-scale rates, Eq. 8).

$$S_n = \gamma S_{n-1} + k_n \otimes v_n, \qquad o_n = q_n^\top S_n
\qquad\Longleftrightarrow\qquad O = (QK^\top \odot D)\,V, \quad D_{nm} = \gamma^{\,n-m} \ (n \ge m).$$

Queries and keys are turned by angles that grow with position, $\theta_i = 10000^{-2i/K}$ for the pair (2i, 2i+1), so that a score knows how
far apart its tokens are. Each head has its rate: $\gamma_h = 1 - 2^{-5-h}$, a horizon of 32 tokens, 64, 128 …

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values, already rotated |
| `gamma` | $\gamma$ | scalar in [0, 1] | what is left of the memory after a token |
| `S0`, `state` | $S_n$ | `(K, V)` | memory, key axis first, zeros at the start |
| `pos`, `theta` | $n$, $\theta$ | `(T,)`, `(K / 2,)` | positions and angles per step |

Deviations: the paper divides scores by root K, rows of D by the root of their sum, and rows by max(|sum|, 1); a norm per head follows,
which does not see any of these factors, so they are not here. Powers of gamma are made from its logarithm, and gamma = 0 is allowed.
Equation numbers are from memory.
Derives from: linear_attention.simple_gla (g = log gamma), attention.rope.
"""

import numpy as np

from twofold.spec.attention import rope

__all__ = ["recurrent", "parallel", "chunked", "step", "decays", "rotate"]


def step(state, q, k, v, gamma):
    """Fade, write one token, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = gamma * state + np.outer(k, v)
    return q @ state, state


def recurrent(q, k, v, gamma, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> q = k = np.ones((3, 1)); v = np.array([[1.0], [2.0], [4.0]])
    >>> recurrent(q, k, v, 0.5)[0].ravel().tolist(), recurrent(q, k, v, 0.0)[0].ravel().tolist()
    ([1.0, 2.5, 5.25], [1.0, 2.0, 4.0])
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], gamma)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def parallel(q, k, v, gamma, S0=None):
    """The same as attention without softmax, under a mask of powers `(T, T)`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    n = np.arange(len(q))
    mask = np.where(n[:, None] >= n, _power(gamma, np.maximum(n[:, None] - n, 0)), 0.0)
    output = (q @ k.T * mask) @ v + _power(gamma, n + 1)[:, None] * (q @ state)
    return output, _power(gamma, len(q)) * state + (_power(gamma, n[::-1])[:, None] * k).T @ v


def chunked(q, k, v, gamma, S0=None, chunk=64):
    """The same, chunk by chunk: `parallel` within, the state between. Equal for every `chunk`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = parallel(*(x[start : start + chunk] for x in (q, k, v)), gamma, state)
        outputs.append(output)
    return np.concatenate(outputs), state


def decays(H):
    """The rates of H heads `(H,)`, from the one that forgets fastest.

    >>> decays(3).tolist()
    [0.96875, 0.984375, 0.9921875]
    """
    return 1 - 2.0 ** (-5 - np.arange(H))


def rotate(x, pos, theta=None):
    """Turn the pair (2i, 2i+1) of each row by pos theta_i; theta_i = 10000^(-2i/K) unless given.

    >>> np.round(rotate(np.array([[1.0, 0.0]]), np.array([2]), np.array([np.pi / 4])), 12).tolist()    # a quarter turn
    [[0.0, 1.0]]
    """
    return rope.rotate(x, pos, theta=theta, interleaved=True)


def _power(gamma, n):
    """gamma^n by its logarithm; gamma^0 is 1, also for 0."""
    return np.where(n == 0, 1.0, np.exp(np.log(gamma) * np.maximum(n, 1))) if gamma > 0 else np.where(n == 0, 1.0, 0.0)
