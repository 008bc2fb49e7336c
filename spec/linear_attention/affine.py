r"""The affine recurrence: one memory update behind linear attention, gated linear attention, delta rules and linear state spaces.

Paper: Katharopoulos et al., "Transformers are RNNs", 2020, arXiv:2006.16236; Peng et al., "RWKV-7", 2025, arXiv:2503.14456;
chunks of Yang et al., "… with the Delta Rule", 2024, arXiv:2406.06484, Sec. 3; Blelloch, "Prefix Sums and Their Applications", 1990.

A state is a linear map from keys to values. Each token transforms it and writes one pair into it:

$$S_t = \bigl(\mathrm{Diag}(e^{g_t}) + b_t \otimes a_t\bigr)\, S_{t-1} + k_t \otimes v_t, \qquad o_t = q_t^\top S_t.$$

| name | symbol | shape | meaning |
|---|---|---|---|
| `q`, `k` | $q_t, k_t$ | `(T, K)` | queries (already scaled) and write keys |
| `v` | $v_t$ | `(T, V)` | values |
| `g` | $g_t$ | `(T, K)` | log-decay, at most 0, `-inf` forgets everything; `(T, 1)` decays all channels alike |
| `a`, `b` | $a_t, b_t$ | `(T, K)` | what the transition reads and where it writes that; zeros: a diagonal transition |
| `u` | $u$ | `(K,)` | bonus of the current token where the read comes before the write |
| `S0`, `state` | $S$ | `(K, V)` | memory, key axis first, zeros at the start |

Deviations: the letters are this package's; section numbers are from memory. Every exponent sums log-decays between two tokens: at most 0.
"""

import numpy as np

__all__ = ["recurrent", "recurrent_pre", "chunked", "scan", "summary", "step", "backward", "matrix"]


def step(state, q, k, v, g, a, b):
    """Absorb one token, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g)[:, None] * state + np.outer(b, a @ state) + np.outer(k, v)
    return q @ state, state


def recurrent(q, k, v, g, a, b, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> q = k = np.eye(2); v = np.array([[3.0], [5.0]]); zero = np.zeros((2, 2))
    >>> recurrent(q, k, v, zero, zero, zero)[0].tolist()            # orthonormal keys: perfect recall
    [[3.0], [5.0]]
    >>> recurrent(q[:0], k[:0], v[:0], zero[:0], zero[:0], zero[:0], S0=np.ones((2, 1)))[1].tolist()    # no token, same state
    [[1.0], [1.0]]
    """
    outputs, state = [v[:0]], np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], a[t], b[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def recurrent_pre(q, k, v, g, a, b, u, S0=None):
    """The read before the write, as in RWKV: $o_t = q_t^\\top S_{t-1} + (q_t \\cdot u k_t) v_t$; the states are those of `recurrent`."""
    outputs, state = [v[:0]], np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    for t in range(len(q)):
        outputs.append((q[t] @ state + (q[t] @ (u * k[t])) * v[t])[None])
        _, state = step(state, q[t], k[t], v[t], g[t], a[t], b[t])
    return np.concatenate(outputs), state


def chunked(q, k, v, g, a, b, S0=None, chunk=16):
    """The same, one unit-triangular solve per chunk: equal to `recurrent` for every chunk size."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs, pieces = [v[:0]], [[x[t : t + chunk] for x in (q, k, v, g, a, b)] for t in range(0, len(q), chunk)]
    for q, k, v, g, a, b in pieces:
        through = decays(g)                                                   # from j through i                  (C, C, K)
        before = np.concatenate([np.zeros_like(through[:1]), through[:-1]])   # from j to just before i           (C, C, K)
        since = np.exp(np.cumsum(g, axis=0))                                  # from the start through i          (C, K)
        until = np.concatenate([np.ones_like(since[:1]), since[:-1]])         # from the start to just before i   (C, K)
        read = paired(a, k, before) @ v + (a * until) @ state                 # what a meets of earlier writes    (C, V)
        lower, reread = paired(a, b, before), v[:0]                           # … and of what b wrote of it       (C, V)
        for i in range(len(v)):  # (I - lower) reread = read, top row first: no row depends on a later one
            reread = np.concatenate([reread, (read[i] + lower[i, :i] @ reread)[None]])
        outputs.append(paired(q, k, through) @ v + paired(q, b, through) @ reread + (q * since) @ state)
        state = since[-1][:, None] * state + (k * through[-1]).T @ v + (b * through[-1]).T @ reread
    return np.concatenate(outputs), state


def decays(g):
    """`e^{g_{j+1} + … + g_i}` where j <= i, else 0: `(C, C, K)`. Only the terms between are summed; nothing is subtracted."""
    between = np.cumsum(np.where(np.tri(len(g), k=-1, dtype=bool)[:, :, None], g[:, None, :], 0.0), axis=0)
    return np.exp(np.where(np.tri(len(g), dtype=bool)[:, :, None], between, -np.inf))


def paired(x, y, decay):
    """Inner products of rows of x with rows of y, each channel decayed: `(C, C)`."""
    return np.sum(x[:, None, :] * y[None, :, :] * decay, axis=2)


def summary(k, v, g, a, b):
    """A run of tokens as one affine map: `(M, B)`, `(K, K)` and `(K, V)`, final state = M @ S0 + B: runs from I without writes, from 0."""
    return recurrent(k, k, np.zeros_like(k), g, a, b, np.eye(k.shape[1]))[1], recurrent(k, k, v, g, a, b)[1]


def scan(q, k, v, g, a, b, S0=None):
    """The same, as a parallel prefix: log2(T) rounds of composing affine maps, which is associative."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    M = np.exp(g)[:, :, None] * np.eye(k.shape[1]) + b[:, :, None] * a[:, None, :]  # one map per token           (T, K, K)
    B = k[:, :, None] * v[:, None, :]                                              #                             (T, K, V)
    for reach in 2 ** np.arange(max(len(q) - 1, 0).bit_length()):  # after a round, row t composes the last 2 * reach tokens up to t
        M, B = (np.concatenate([M[:reach], M[reach:] @ M[:-reach]]), np.concatenate([B[:reach], M[reach:] @ B[:-reach] + B[reach:]]))
    states = M @ state + B
    return np.sum(q[:, :, None] * states, axis=1), (states[-1] if len(q) else state)


def matrix(q, k, g, a, b):
    """The `(T, T)` matrix W with outputs = W @ v from a zero state: the outputs of the identity as values."""
    return recurrent(q, k, np.eye(len(q)), g, a, b)[0]


def backward(q, k, v, g, a, b, do, dS, S0=None):
    """Adjoint of `recurrent`: from d outputs `(T, V)` and d final state `(K, V)` to dq, dk, dv, dg, da, db, dS0; dg is `(T, K)`."""
    states = [np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0]
    for t in range(len(q)):
        states.append(step(states[t], q[t], k[t], v[t], g[t], a[t], b[t])[1])
    rows = []
    for t in reversed(range(len(q))):
        dS = dS + np.outer(q[t], do[t])
        decay, old = np.exp(g[t]), states[t]
        rows.append((states[t + 1] @ do[t], dS @ v[t], k[t] @ dS, decay * np.sum(dS * old, axis=1), old @ (b[t] @ dS), dS @ (a[t] @ old)))
        dS = decay[:, None] * dS + np.outer(a[t], b[t] @ dS)
    columns = zip(*reversed(rows)) if rows else (x[:0] for x in (q, k, v, k, a, b))
    return *(np.stack(x) if rows else x for x in columns), dS
