r"""Mamba-2: a state-space model whose tokens set the length of each time step; dually, attention under a mask of decays.

Paper: Dao, Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", 2024,
arXiv:2405.21060, Sec. 3 and 5 (duality), Sec. 6 with Listing 1 (chunks), Sec. 7 (layer); section numbers are from memory.

A state decays for the length of a step, and the token is written for as long; a matrix with the same entries gives the same outputs:

$$S_t = e^{\Delta_t A} S_{t-1} + B_t \otimes \Delta_t x_t, \quad y_t = C_t^\top S_t + D x_t \qquad\Longleftrightarrow\qquad
Y = (CB^\top \odot L)\,(\Delta \odot X) + DX, \quad L_{ij} = e^{A(\Delta_{j+1} + \dots + \Delta_i)}\ (i \ge j).$$

| name | paper | shape | meaning |
|---|---|---|---|
| `x` | $X$ | `(T, P)` | inputs of one head |
| `delta` | $\Delta$ | `(T,)` | lengths of the steps, at least 0: `step_sizes` of what the layer projects |
| `A`, `D` | $A, D$ | scalars | rate of decay, at most 0; weight of the input itself |
| `B`, `C` | $B, C$ | `(T, N)` | what is written under, and what is read: keys and queries |
| `S0`, `state` | $S_t$ | `(N, P)` | memory, key axis first, zeros at the start |

Deviations: released code stores the state as (P, N). The decay is exact, the write is Euler's $\Delta B$, as in the code of both Mambas;
the first paper's Eq. 4 prints the zero-order hold, $(e^{\Delta A} - 1)A^{-1}B$, which differs by $O(\Delta^2)$. Projections have no bias.
Derives from: linear_attention.simple_gla (q = C, k = B, v = delta x, g = delta A).
"""

import numpy as np

from twofold.spec.state_space import short_conv

__all__ = ["recurrent", "parallel", "chunked", "step", "layer", "step_sizes", "gated_norm"]


def step(state, x, delta, A, B, C, D):
    """Decay, write one token, then read: returns the output `(P,)` and the new state `(N, P)`."""
    state = np.exp(delta * A) * state + np.outer(B, delta * x)
    return C @ state + D * x, state


def recurrent(x, delta, A, B, C, D, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, P)` and the final state `(N, P)`.

    >>> x = np.array([[1.0], [2.0], [4.0]]); one = np.ones((3, 1))
    >>> recurrent(x, np.array([1.0, 0.0, 2.0]), 0.0, one, one, 0.0)[0].ravel().tolist()          # no decay: the input, integrated
    [1.0, 1.0, 9.0]
    >>> recurrent(x, np.ones(3), -1e9, one, one, 10.0)[0].ravel().tolist()                       # nothing but the token itself
    [11.0, 22.0, 44.0]
    >>> recurrent(x[:0], one[:0, 0], -1.0, one[:0], one[:0], 1.0, S0=np.ones((1, 1)))[1].tolist()   # no token, same state
    [[1.0]]
    """
    outputs, state = [x[:0]], np.zeros((B.shape[1], x.shape[1])) if S0 is None else S0
    for t in range(len(x)):
        output, state = step(state, x[t], delta[t], A, B[t], C[t], D)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def parallel(x, delta, A, B, C, D, S0=None):
    """The dual: attention without softmax, under the mask L `(T, T)`; the state before the first token is one key more."""
    state = np.zeros((B.shape[1], x.shape[1])) if S0 is None else S0
    between = np.exp(segsum(np.concatenate([np.zeros(1), delta * A])))       # from before the first token, too  (T + 1, T + 1)
    L, written = between[1:, 1:], delta[:, None] * x
    y = (C @ B.T * L) @ written + between[1:, :1] * (C @ state) + D * x
    return y, between[-1, 0] * state + (between[-1, 1:, None] * B).T @ written


def chunked(x, delta, A, B, C, D, S0=None, chunk=64):
    """The four steps of the paper: inside the chunks, what each leaves, a recurrence over chunks, and what each finds."""
    state = np.zeros((B.shape[1], x.shape[1])) if S0 is None else S0
    pieces = [[y[t : t + chunk] for y in (delta * A, delta[:, None] * x, B, C)] for t in range(0, len(x), chunk)]
    L = [np.exp(segsum(g)) for g, *_ in pieces]
    inside = [(C @ B.T * decay) @ X for (_, X, B, C), decay in zip(pieces, L)]
    left = np.stack([state, *((decay[-1][:, None] * B).T @ X for (_, X, B, _), decay in zip(pieces, L))])    # (chunks + 1, N, P)
    totals = np.stack([np.zeros(()), *(np.sum(g) for g, *_ in pieces)])                              # (chunks + 1,)
    states = np.sum(np.exp(segsum(totals))[:, :, None, None] * left, axis=1)                         # at the chunks' boundaries
    found = [np.exp(np.cumsum(g))[:, None] * (C @ before) for (g, _, _, C), before in zip(pieces, states)]
    return np.concatenate([x[:0], *(one + other for one, other in zip(inside, found))]) + D * x, states[-1]


def segsum(g):
    """Sums of the terms from just after j through i, `(C, C)`, -inf above the diagonal: of a masked matrix, never a difference of sums."""
    between = np.where(np.tri(len(g), k=-1, dtype=bool), g[:, None], 0.0)
    return np.where(np.tri(len(g), dtype=bool), np.cumsum(between, axis=0), -np.inf)


def layer(u, in_proj, w, b, dt_bias, A, D, weight, out_proj, S0=None, groups=1, least=0.0, most=np.inf, eps=1e-5):
    """The whole mixer, tokens `(T, E)` to tokens: project, convolve, run H heads, gate and normalize, project.

    `in_proj` makes z, x, B, C and dt side by side; A, D, dt_bias are `(H,)`, weight `(H P,)`; head h reads the B and C of group
    h // (H / groups). The state is a pair: states `(H, N, P)`, and the tail of the convolution.
    """
    inner, H, (states, tail) = len(weight), len(D), S0 or ([None] * len(D), None)
    P, N = inner // H, (w.shape[1] - inner) // (2 * groups)
    projected = u @ in_proj
    z, xBC, dt = (projected[:, i:j] for i, j in [(0, inner), (inner, -H), (-H, None)])
    xBC, tail = short_conv.causal(xBC, w, b, tail)
    xBC, delta, heads = silu(xBC), step_sizes(dt, dt_bias, least, most), []
    x, BC = xBC[:, :inner].reshape(len(u), H, P), xBC[:, inner:].reshape(len(u), 2, groups, N)
    for h in range(H):
        B, C = BC[:, 0, h * groups // H], BC[:, 1, h * groups // H]
        heads.append(recurrent(x[:, h], delta[:, h], A[h], B, C, D[h], states[h]))
    y = gated_norm(np.concatenate([y for y, _ in heads], axis=1), z, weight, groups, eps)
    return y @ out_proj, (np.stack([state for _, state in heads]), tail)


def step_sizes(dt, bias, least=0.0, most=np.inf):
    """Steps `(T, H)` from what the layer projects: softplus first, limits after it.

    >>> step_sizes(np.array([[-1000.0, 0.0, 1000.0]]), np.zeros(3), 0.5, 7.0).round(3).tolist()
    [[0.5, 0.693, 7.0]]
    """
    return np.minimum(np.maximum(np.logaddexp(0.0, dt + bias), least), most)


def gated_norm(y, z, weight, groups=1, eps=1e-5):
    """RMSNorm of y silu(z), `(T, H P)`, each group of channels by itself; the gate comes before the norm."""
    gated = (y * silu(z)).reshape(len(y), groups, len(weight) // groups)
    scale = np.sqrt(np.mean(np.square(gated), axis=2, keepdims=True) + eps)
    return (gated / scale).reshape(len(y), len(weight)) * weight


def silu(x):
    return x * np.exp(-np.logaddexp(0.0, -x))  # x sigmoid(x), which does not overflow
