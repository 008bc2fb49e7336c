r"""Mamba: a state-space model per channel whose tokens set the length of each time step, what is written and what is read.

Paper: Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752, Sec. 3.2, Algorithm 2
(selection), Sec. 3.3 (scan), Sec. 3.4 (block); numbers from memory.

Every channel drives N states, each with its own rate of decay. What is written and read is shared by the channels, the step is not:

$$h_t[d, n] = e^{\Delta_t[d]\, A[d, n]}\, h_{t-1}[d, n] + \Delta_t[d]\, B_t[n]\, x_t[d], \qquad
y_t[d] = \sum_n C_t[n]\, h_t[d, n] + D[d]\, x_t[d].$$

A token whose step is 0 is passed over; one with a long step wipes the state and takes its place.

| name | paper | shape | meaning |
|---|---|---|---|
| `x` | $x$ | `(T, D)` | inputs |
| `delta` | $\Delta$ | `(T, D)` | lengths of the steps, at least 0: after the softplus |
| `A`, `D` | $A, D$ | `(D, N)`, `(D,)` | rates of decay, at most 0, $-e^{A_{log}}$; weight of the input itself |
| `B`, `C` | $B, C$ | `(T, N)` | what is written, what is read |
| `S0`, `state` | $h$ | `(D, N)` | memory, zeros at the start |

Deviations: decay is exact, the write is Euler's $\Delta B$, as in the released code; the paper's Eq. 4 prints the zero-order hold,
$(e^{\Delta A} - 1) A^{-1} B$, which differs by $O(\Delta^2)$. The projections of `layer` have no bias but that of the step.
Derives from: linear_attention.hgrn (D N channels with shared inputs, read by C).
"""

import numpy as np

from twofold.spec.linear_attention import hgrn
from twofold.spec.state_space import short_conv
from twofold.spec.state_space.mamba2 import silu, step_sizes

__all__ = ["recurrent", "scan", "step", "backward", "layer"]


def step(state, x, delta, A, B, C, D):
    """Decay, write one token, then read: returns the output `(D,)` and the new state `(D, N)`."""
    state = np.exp(delta[:, None] * A) * state + np.outer(delta * x, B)
    return state @ C + D * x, state


def recurrent(x, delta, A, B, C, D, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, D)` and the final state `(D, N)`.

    >>> x = np.array([[1.0], [2.0], [4.0]]); one, zero = np.ones((3, 1)), np.zeros(1)
    >>> recurrent(x, one, np.zeros((1, 1)), one, one, zero)[0].ravel().tolist()                  # no decay: a running sum
    [1.0, 3.0, 7.0]
    >>> recurrent(x, np.array([[1.0], [0.0], [1.0]]), np.zeros((1, 1)), one, one, zero)[0].ravel().tolist()   # one token passed over
    [1.0, 1.0, 5.0]
    >>> recurrent(x, one, np.full((1, 1), -1e9), one, one, zero)[0].ravel().tolist()             # each wipes what was before it
    [1.0, 2.0, 4.0]
    >>> recurrent(x[:0], x[:0], np.zeros((1, 1)), x[:0], x[:0], zero, S0=np.ones((1, 1)))[1].tolist()   # no token, same state
    [[1.0]]
    """
    outputs, state = [x[:0]], np.zeros(A.shape) if S0 is None else S0
    for t in range(len(x)):
        output, state = step(state, x[t], delta[t], A, B[t], C[t], D)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def scan(x, delta, A, B, C, D, S0=None, chunk=64):
    """The same by the scan of HGRN over all D N channels."""
    h, state = hgrn.scan(*_channels(x, delta, A, B), None if S0 is None else S0.reshape(-1), chunk)
    return np.einsum("tdn,tn->td", h.reshape(len(x), *A.shape), C) + D * x, state.reshape(A.shape)


def _channels(x, delta, A, B):
    """What is written, and log-decays, as HGRN takes them: `(T, D N)`."""
    write, g = (delta * x)[:, :, None] * B[:, None, :], delta[:, :, None] * A
    return write.reshape(len(x), A.size), g.reshape(len(x), A.size)


def backward(x, delta, A, B, C, D, dy, dS, S0=None):
    """Adjoint: dx, ddelta, dA, dB, dC, dD, dS0 from d outputs `(T, D)` and d final state `(D, N)`."""
    S0 = (np.zeros(A.shape) if S0 is None else S0).reshape(-1)
    write, g = _channels(x, delta, A, B)
    dh = (dy[:, :, None] * C[:, None, :]).reshape(len(x), A.size)
    dwrite, dg, dS0 = hgrn.backward(write, g, dh, dS.reshape(-1), S0)
    h, dwrite, dg = (y.reshape(len(x), *A.shape) for y in (hgrn.recurrent(write, g, S0)[0], dwrite, dg))
    row = np.einsum("tdn,tn->td", dwrite, B)                              # of delta x
    ddelta = x * row + np.sum(dg * A, axis=2)
    dA, dD = np.sum(dg * delta[:, :, None], axis=0), np.sum(dy * x, axis=0)
    dB, dC = np.einsum("tdn,td->tn", dwrite, delta * x), np.einsum("tdn,td->tn", h, dy)
    return delta * row + D * dy, ddelta, dA, dB, dC, dD, dS0.reshape(A.shape)


def layer(u, in_proj, w, b, x_proj, dt_proj, dt_bias, A, D, out_proj, S0=None):
    """The whole block, tokens `(T, E)` to tokens: project, convolve, select, run, gate, project.

    `in_proj` makes x and z side by side; `x_proj` makes what the step is computed from, R numbers that `dt_proj` `(R, D)` spreads, and B
    and C. The state is a pair: the recurrence's `(D, N)`, and the tail of the convolution.
    """
    state, tail = S0 or (None, None)
    inner, N = A.shape
    projected = u @ in_proj
    x, tail = short_conv.causal(projected[:, :inner], w, b, tail)
    x = silu(x)
    selected = x @ x_proj
    dt, B, C = selected[:, : -2 * N], selected[:, -2 * N : -N], selected[:, -N:]
    y, state = recurrent(x, step_sizes(dt @ dt_proj, dt_bias), A, B, C, D, state)
    return (y * silu(projected[:, inner:])) @ out_proj, (state, tail)
