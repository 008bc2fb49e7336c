r"""RWKV-6: gated linear attention that reads before it writes, with a bonus for the token's own pair.

Paper: Peng, Goldstein, Anthony, Albalak, Alcaide, Biderman, Cheah, Du, Ferdinan, and others, "Eagle and Finch: RWKV with Matrix-Valued
States and Dynamic Recurrence", 2024, arXiv:2404.05892, Sec. 4 (Eagle, RWKV-5: a constant decay) and Sec. 4.2 (Finch, RWKV-6).

$$o_t = r_t^\top\big(S_{t-1} + (u \odot k_t)\otimes v_t\big), \qquad S_t = \mathrm{Diag}(e^{g_t})\, S_{t-1} + k_t\otimes v_t.$$

A token sees the memory as it found it, and itself with a weight u of its own, which no decay touches. Every input of the layer is first
mixed with that of the token before, by shares that the difference of the two decides:

$$d = x_{t-1} - x_t, \quad m = \tanh\big((x_t + \mu_x \odot d) A\big), \qquad
x^{(c)} = x_t + d\odot(\mu_c + m_c B_c), \quad c \in \{w, k, v, r, g\}.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `r`, `k`, `v` | $r_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | receptances (queries), keys, values |
| `g` | $\log w_t = -e^{\,\cdot}$ | `(T, K)` | log-decay, at most 0; the same in every row is RWKV-5 |
| `u` | $u$ | `(K,)` | weight of the token's own pair |
| `S0`, `state` | $s_t$ | `(K, V)` | memory, key axis first (the released layout is `(V, K)`), zeros at the start |
| `mu_x`, `mu`, `A`, `B` | $\mu_x, \mu_\square, A_\square, B_\square$ | `(D,)`, `(5, D)`, `(D, 5 R)`, `(5, R, D)` | shares of the mix |

Deviations: none known; equations and the order of the five are from memory.
Derives from: linear_attention.affine (a = b = 0, read before the write).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays, paired

__all__ = ["recurrent", "chunked", "step", "mix"]


def step(state, r, k, v, g, u):
    """Read, with a bonus for the token itself, then fade and write: returns the output `(V,)` and the new state `(K, V)`."""
    output = r @ (state + np.outer(u * k, v))
    return output, np.exp(g)[:, None] * state + np.outer(k, v)


def recurrent(r, k, v, g, u, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> r = k = np.ones((3, 1)); v = np.array([[1.0], [2.0], [4.0]]); g = np.log(np.full((3, 1), 0.5))
    >>> recurrent(r, k, v, g, np.zeros(1))[0].ravel().tolist()                                # nothing of its own, all of the one before
    [0.0, 1.0, 2.5]
    >>> recurrent(r, k, v, g, np.ones(1))[0].ravel().tolist()
    [1.0, 3.0, 6.5]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(r)):
        output, state = step(state, r[t], k[t], v[t], g[t], u)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(r, k, v, g, u, S0=None, chunk=64):
    """The same, chunk by chunk. Equal for every `chunk`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(r), chunk):
        here = slice(start, start + chunk)
        through = decays(g[here])                                             # from j through i                  (C, C, K)
        before = np.concatenate([np.zeros_like(through[:1]), through[:-1]])   # from j to just before i: no decay of its own
        since = np.cumsum(g[here], axis=0)
        until = np.exp(np.concatenate([np.zeros_like(since[:1]), since[:-1]]))  # from the start to just before i (C, K)
        own = np.sum(r[here] * u * k[here], axis=1)[:, None] * v[here]
        outputs.append(paired(r[here], k[here], before) @ v[here] + (r[here] * until) @ state + own)
        state = np.exp(since[-1])[:, None] * state + (k[here] * through[-1]).T @ v[here]
    return np.concatenate(outputs), state


def mix(x, mu_x, mu, A, B, last=None):
    """Rows mixed with the rows before them, in five ways `(5, T, D)`; `last` is the row before the first, zeros unless given.

    >>> x = np.array([[2.0], [4.0]]); zero = np.zeros((5, 1, 1))
    >>> mix(x, np.zeros(1), np.full((5, 1), 0.5), np.zeros((1, 5)), zero)[0].ravel().tolist()  # half of each
    [1.0, 3.0]
    """
    before = np.concatenate([np.zeros_like(x[:1]) if last is None else last[None], x])[: len(x)]
    d = before - x
    m = np.tanh((x + mu_x * d) @ A).reshape(len(x), *B.shape[:2])             # (T, 5, R)
    return np.stack([x + d * (mu[c] + m[:, c] @ B[c]) for c in range(len(mu))])
