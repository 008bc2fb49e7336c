r"""LRU: a linear recurrent network of complex numbers that turn and shrink, each at a rate of its own.

Paper: Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De, "Resurrecting Recurrent Neural Networks for Long Sequences", 2023,
arXiv:2303.06349, Sec. 3.3 (stable parametrization), Sec. 3.4 (normalization), Appendix A (code); section numbers are from memory.

The state is diagonal, so that powers of its transition are powers of N numbers inside the unit circle:

$$\lambda = e^{-e^{\nu} + i\theta}, \qquad x_t = \lambda\, x_{t-1} + \gamma\, B u_t, \qquad y_t = \mathrm{Re}(C x_t) + D u_t, \qquad
\gamma = \sqrt{1 - |\lambda|^2}.$$

The model is the same for all tokens: it is a convolution with $K_j = \mathrm{Re}(C \lambda^j \gamma B)$.

| name | paper | shape | meaning |
|---|---|---|---|
| `u` | $u_t$ | `(T, H)` | inputs |
| `nu`, `theta` | $\nu, \theta$ | `(N,)` | logarithm of the rate of decay, angle per token |
| `B`, `C` | $B, C$ | `(2, N, H)`, `(2, H, N)` | real and imaginary parts of what is written and of what is read |
| `D` | $D$ | `(H,)` | weight of the input itself |
| `S0`, `state` | $x_t$ | `(2, N)` | real and imaginary parts, zeros at the start |

Deviations: complex numbers are pairs of real ones, first axis. The paper learns $\log\theta$, and $\log\gamma$ from this start on; here
gamma follows from nu, as `-expm1` of a logarithm.
Derives from: linear_attention.hgrn (in a frame that turns with the state).
"""

import numpy as np

from twofold.spec.linear_attention import hgrn

__all__ = ["recurrent", "scan", "step", "backward"]


def step(state, u, nu, theta, B, C, D):
    """Turn and shrink, write one token, then read: returns the output `(H,)` and the new state `(2, N)`."""
    a, b = np.exp(-np.exp(nu)) * np.cos(theta), np.exp(-np.exp(nu)) * np.sin(theta)
    real = a * state[0] - b * state[1] + gamma(nu) * (B[0] @ u)
    imaginary = b * state[0] + a * state[1] + gamma(nu) * (B[1] @ u)
    return C[0] @ real - C[1] @ imaginary + D * u, np.stack([real, imaginary])


def recurrent(u, nu, theta, B, C, D, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, H)` and the final state `(2, N)`.

    >>> B, C, D = np.zeros((2, 1, 1)), np.array([[[1.0]], [[0.0]]]), np.zeros(1)
    >>> start = np.array([[8.0], [0.0]])                                        # halves, and a quarter of a turn per token
    >>> recurrent(np.zeros((4, 1)), np.log([np.log(2)]), np.array([np.pi / 2]), B, C, D, start)[0].ravel().round(9).tolist()
    [0.0, -2.0, -0.0, 0.5]
    >>> recurrent(np.zeros((0, 1)), np.zeros(1), np.zeros(1), B, C, D, start)[1].tolist()         # no token, same state
    [[8.0], [0.0]]
    """
    outputs, state = [u[:0]], np.zeros((2, len(nu))) if S0 is None else S0
    for t in range(len(u)):
        output, state = step(state, u[t], nu, theta, B, C, D)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def scan(u, nu, theta, B, C, D, S0=None, chunk=64):
    """The same by the scan of HGRN: seen from a frame that turns along, nothing turns, and both parts only fade."""
    cos, sin = _frame(u, theta)
    z, g = _written(u, nu, B, cos, sin)
    z, last = hgrn.scan(z, g, None if S0 is None else S0.reshape(-1), chunk)
    x = _turned(z, cos, sin)                                                    # back from the frame              (2, T, N)
    y = x[0] @ C[0].T - x[1] @ C[1].T + D * u
    return y, x[:, -1] if len(u) else last.reshape(2, len(nu))


def gamma(nu):
    """What is written of an input: so much that the state keeps an input's variance."""
    return np.sqrt(-np.expm1(-2 * np.exp(nu)))


def _frame(u, theta):
    angle = np.arange(1.0, len(u) + 1)[:, None] * theta                         # so far, in all                   (T, N)
    return np.cos(angle), np.sin(angle)


def _written(u, nu, B, cos, sin):
    """What is written, in the frame, and log-decays, as HGRN takes them: `(T, 2 N)`."""
    real, imaginary = gamma(nu) * (u @ B[0].T), gamma(nu) * (u @ B[1].T)
    z = np.concatenate([cos * real + sin * imaginary, cos * imaginary - sin * real], axis=1)
    return z, np.broadcast_to(np.concatenate([-np.exp(nu), -np.exp(nu)]), z.shape)


def _turned(z, cos, sin):
    real, imaginary = z[:, : cos.shape[1]], z[:, cos.shape[1] :]
    return np.stack([cos * real - sin * imaginary, sin * real + cos * imaginary])


def backward(u, nu, theta, B, C, D, dy, dS, S0=None):
    """Adjoint of `scan`: du, dnu, dtheta, dB, dC, dD, dS0 from d outputs `(T, H)` and d final state `(2, N)`, T at least 1."""
    N, S0 = len(nu), np.zeros((2, len(nu))) if S0 is None else S0
    cos, sin = _frame(u, theta)
    z, g = _written(u, nu, B, cos, sin)
    x = _turned(hgrn.recurrent(z, g, S0.reshape(-1))[0], cos, sin)
    dx = np.stack([dy @ C[0], -(dy @ C[1])])
    dx = np.concatenate([dx[:, :-1], dx[:, -1:] + dS[:, None]], axis=1)
    dh = np.concatenate([cos * dx[0] + sin * dx[1], cos * dx[1] - sin * dx[0]], axis=1)
    dz, dg, dS0 = hgrn.backward(z, g, dh, np.zeros(2 * N), S0.reshape(-1))
    dw = _turned(dz, cos, sin)                                                  # of what is written               (2, T, N)
    w = gamma(nu) * np.stack([u @ B[0].T, u @ B[1].T])
    turning = (x[0] * dx[1] - x[1] * dx[0]) - (w[0] * dw[1] - w[1] * dw[0])     # of the angle so far
    dtheta = np.sum(np.arange(1.0, len(u) + 1)[:, None] * turning, axis=0)
    dgamma = np.sum(dw[0] * (u @ B[0].T) + dw[1] * (u @ B[1].T), axis=0)
    rate = np.exp(nu)
    dnu = -rate * np.sum(dg[:, :N] + dg[:, N:], axis=0) + rate * np.exp(-2 * rate) / gamma(nu) * dgamma
    du = (gamma(nu) * dw[0]) @ B[0] + (gamma(nu) * dw[1]) @ B[1] + D * dy
    dB, dC = np.stack([(gamma(nu) * dw[0]).T @ u, (gamma(nu) * dw[1]).T @ u]), np.stack([dy.T @ x[0], -(dy.T @ x[1])])
    return du, dnu, dtheta, dB, dC, np.sum(dy * u, axis=0), dS0.reshape(2, N)
