r"""RWKV-7: a memory that fades by channel, and in which each token replaces part of what is stored under a key of its choice.

Paper: Peng, Zhang, Goldstein, Alcaide, Du, Hou, Lin, Liu, Lu, Merrill, and others, "RWKV-7 'Goose' with Expressive Dynamic State
Evolution", 2025, arXiv:2503.14456, Sec. 4 (time mixing); the number is from memory.

$$S_t = \bigl(\mathrm{Diag}(e^{g_t}) - (\iota_t \odot \hat\kappa_t) \otimes \hat\kappa_t\bigr)\, S_{t-1} + \tilde k_t \otimes v_t,
\qquad o_t = r_t^\top S_t.$$

The key that is looked up and the key that is written under are two; how much of the old goes is decided channel by channel. What is
removed is read from the state of the token before, which has not faded yet.

| name | paper | shape | meaning |
|---|---|---|---|
| `r`, `v` | $r_t, v_t$ | `(T, K)`, `(T, V)` | receptances (queries), values |
| `g` | $\log w_t$ | `(T, K)` | log-decay, between $-e^{-1/2}$ and 0 as `log_decay` makes it |
| `k` | $\tilde k_t$ | `(T, K)` | replacement key: what is written under |
| `kappa`, `iota` | $\hat\kappa_t, a_t$ | `(T, K)` | removal key, of length 1; in-context learning rate, 0 … 1 |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first (the released layout is `(V, K)`), zeros at the start |
| `mu` | $\mu_\square$ | `(6, D)` | shares of the row before, for r, w (decay), k, v, a (rate), g (gate) |

Deviations: iota and kappa are this package's letters; the paper's a, κ̂ ⊙ a and w are iota, what is written back, and e^g. Released code
prints the decay as exp(-exp(-softplus(-x) - 1/2)), which is the same number. The order of the six is that of the released code.
Derives from: linear_attention.affine (a = -kappa, b = kappa iota).
"""

import numpy as np

from twofold.spec.linear_attention import affine

__all__ = ["recurrent", "chunked", "step", "log_decay", "rate", "keys", "layer"]


def step(state, r, g, k, v, kappa, iota):
    """Fade, remove what is stored under kappa, write, then read: the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g)[:, None] * state - np.outer(iota * kappa, kappa @ state) + np.outer(k, v)
    return r @ state, state


def recurrent(r, g, k, v, kappa, iota, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> r = k = kappa = np.ones((3, 1)); v = np.array([[1.0], [2.0], [4.0]]); still = np.zeros((3, 1))
    >>> recurrent(r, still, k, v, kappa, np.array([[0.0], [1.0], [0.5]]))[0].ravel().tolist()   # added, replaced, half replaced
    [1.0, 2.0, 5.0]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(r)):
        output, state = step(state, r[t], g[t], k[t], v[t], kappa[t], iota[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(r, g, k, v, kappa, iota, S0=None, chunk=64):
    """The same, one unit-triangular system per chunk. Equal for every `chunk`."""
    return affine.chunked(r, k, v, g, -kappa, iota * kappa, S0, chunk)


def log_decay(x, w0, A, B):
    """Log-decays from mixed rows `(T, D)`: $-e^{-1/2}\\sigma(w_0 + \\tanh(x A) B)$, so that no channel keeps less than 54 %.

    >>> np.exp(log_decay(np.ones((1, 1)), np.array([-99.0, 99.0]), np.zeros((1, 1)), np.zeros((1, 2)))).round(4).tolist()
    [[1.0, 0.5452]]
    """
    return -np.exp(-0.5) * sigmoid(w0 + np.tanh(x @ A) @ B)


def rate(x, a0, A, B):
    """Shares in 0 … 1 from mixed rows `(T, D)`: how fast to learn, and how much of the first layer's values to take."""
    return sigmoid(a0 + (x @ A) @ B)


def keys(k, iota, k_k, k_a):
    """Removal and replacement keys, both `(…, K)`: k scaled to length 1 (0 stays 0), and k, weaker where less is removed."""
    scaled = k * k_k
    length = np.sqrt(np.sum(np.square(scaled), axis=-1, keepdims=True))
    return scaled / np.maximum(length, 1e-12), k * (1 + (iota - 1) * k_a)


def layer(x, mu, W, decay, learning, gate, k_k, k_a, r_k, norm, S0=None, residual=None, v_first=None, eps=64e-5):
    """Time mixing of rows `(T, D)`, H heads: the rows out, the state (memories `(H, K, K)` and the last row), the values `(T, D)`.

    W: matrices of r, k, v and the output, `(D, D)`; decay and learning (and, but in the first layer, residual): the arguments of
    `log_decay` and `rate`; gate: two matrices; k_k, k_a, r_k `(H, K)`; norm: weight and bias `(D,)`; v_first: the first layer's values.
    """
    H, K = r_k.shape
    states, last = ([None] * H, np.zeros(x.shape[1])) if S0 is None else S0
    rows = np.concatenate([last[None], x])
    mixed_r, mixed_w, mixed_k, mixed_v, mixed_a, mixed_g = x + (rows[:-1] - x) * mu[:, None]                  # (6, T, D)
    r, k, v, g = mixed_r @ W[0], mixed_k @ W[1], mixed_v @ W[2], log_decay(mixed_w, *decay)
    v = v if residual is None else v + (v_first - v) * rate(mixed_v, *residual)
    r, g, k, values, iota = (y.reshape(len(x), H, K) for y in (r, g, k, v, rate(mixed_a, *learning)))
    kappa, k = keys(k, iota, k_k, k_a)
    heads = [recurrent(*(y[:, h] for y in (r, g, k, values, kappa, iota)), states[h]) for h in range(H)]
    o = np.stack([o for o, _ in heads], axis=1)                               # (T, H, K)
    o = o - np.mean(o, axis=2, keepdims=True)
    o = o / np.sqrt(np.mean(np.square(o), axis=2, keepdims=True) + eps)
    bonus = np.sum(r * k * r_k, axis=2, keepdims=True) * values               # added behind the norm, before the gate
    y = o.reshape(x.shape) * norm[0] + norm[1] + bonus.reshape(x.shape)
    return (y * (sigmoid(mixed_g @ gate[0]) @ gate[1])) @ W[3], (np.stack([state for _, state in heads]), rows[-1]), v


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))
