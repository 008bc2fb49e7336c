r"""S4: a linear system of many numbers that hears one channel, run as a recurrence or, all samples at once, as a convolution.

Paper: Gu, Goel, Ré, "Efficiently Modeling Long Sequences with Structured State Spaces", 2021, arXiv:2111.00396, Sec. 2.3 (bilinear rule),
2.4 (convolution), 3 and App. C (generating function); zero-order hold: arXiv:2206.11893, Sec. 2; section numbers are from memory.

$$x_t = \bar A x_{t-1} + \bar B u_t, \qquad y_t = \mathrm{Re}(C x_t) + D u_t, \qquad K_j = \mathrm{Re}(C \bar A^j \bar B).$$

A step of $\dot x = Ax + Bu$ is bilinear, $[\bar A, \bar B] = (I - \frac\Delta2 A)^{-1}[I + \frac\Delta2 A, \Delta B]$, or holds the input,
$\bar A = e^{\Delta A}, \bar B = \int_0^\Delta e^{sA} B\, ds$. For $A = \mathrm{Diag}(\Lambda) - p\,p^*$ the bilinear kernel needs no power:
its Fourier transform at an L-th root of 1 is, with $\tilde C = C(I - \bar A^L)$,

$$\hat K(\omega) = \sum_{j<L} C \bar A^j \bar B\, \omega^j = \tilde C\, [(1 - \omega) I - (1 + \omega) \tfrac\Delta2 A]^{-1} \Delta B.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `u` | $u$ | `(T,)` | one channel, real |
| `A`, `B` | $A, B$ | `(N, N)`, `(N,)`, real or complex | the system: what the state does by itself, and what it hears |
| `C`, `D` | $C, D$ | `(N,)`, scalar | what is read of the state; weight of the input itself |
| `Lam`, `p` | $\Lambda, P = Q$ | `(N,)`, complex | diagonal and rank one; real parts of `Lam` below 0, B and C in that basis |
| `dt` | $\Delta$ | scalar | length of a step |
| `rule` | | function | of (A, B, dt): `bilinear`, `zero_order_hold`, or any that returns a system in steps |
| `K` | $\bar K$ | `(L,)` | the response to an impulse, without the D |
| `S0`, `state` | $x$ | `(N,)` | the state, zeros at the start |

Deviations: the paper divides by 1 + ω, which is 0 at ω = -1, a root for every even L; here that is multiplied out, and the limit
$\frac\Delta2 \tilde C B$ comes by itself. It learns $\tilde C$; here it is computed from C. Spectra are whole, with both of each pair.
Derives from: state_space.hippo (`legs_low_rank` gives Lam, p, B and, for C, the basis: C V).
"""

import numpy as np

__all__ = ["recurrent", "kernel_powers", "kernel_cauchy", "convolve", "step", "bilinear", "zero_order_hold"]


def bilinear(A, B, dt):
    """The trapezoidal rule: half of a step looks back, half ahead. What fades keeps fading, whatever the step.

    >>> [x.ravel().tolist() for x in bilinear(np.array([[-1.0]]), np.ones(1), 2.0)]
    [[0.0], [1.0]]
    """
    eye, half = np.eye(len(A)), dt / 2 * A
    solved = np.linalg.solve(eye - half, np.concatenate([eye + half, (dt * B)[:, None]], axis=1))
    return solved[:, :-1], solved[:, -1]


def zero_order_hold(A, B, dt):
    """The input held for a step, which is then exact: one exponential of both, so that no A needs an inverse.

    >>> [x.ravel().tolist() for x in zero_order_hold(np.zeros((1, 1)), np.ones(1), 0.5)]
    [[1.0], [0.5]]
    """
    both = np.concatenate([np.concatenate([A, B[:, None]], axis=1), np.zeros((1, len(A) + 1))])
    turned = exponential(dt * both)[:-1]
    return turned[:, :-1], turned[:, -1]


def step(state, u, A, B, C, D, dt, rule=bilinear):
    """One sample, a number: the output, and the new state `(N,)`."""
    move, write = rule(A, B, dt)
    state = move @ state + write * u
    return np.real(C @ state) + D * u, state


def recurrent(u, A, B, C, D, dt, S0=None, rule=bilinear):
    """The definition: one `step` per sample. Returns the outputs `(T,)` and the final state `(N,)`.

    >>> sums = np.zeros((1, 1)), np.ones(1), np.ones(1)                                       # A = 0 adds up
    >>> recurrent(np.array([1.0, 0.0, 2.0]), *sums, 0.0, 0.5)[0].tolist()
    [0.5, 0.5, 1.5]
    >>> recurrent(np.zeros(0), *sums, 0.0, 0.5, S0=np.ones(1))[1].tolist()                    # no sample, same state
    [1.0]
    """
    outputs, state = [u[:0]], np.zeros(len(A)) if S0 is None else S0
    for sample in u:
        output, state = step(state, sample, A, B, C, D, dt, rule)
        outputs.append([output])
    return np.concatenate(outputs), state


def kernel_powers(A, B, C, dt, L, rule=bilinear):
    """The first L samples of the response to an impulse, one power after the other."""
    move, write = rule(A, B, dt)
    K = [np.zeros(0)]
    for _ in range(L):
        K.append([np.real(C @ write)])
        write = move @ write
    return np.concatenate(K)


def kernel_cauchy(Lam, p, B, C, dt, L):
    """The bilinear kernel of A = Diag(Lam) - p p*, for L of at least 1: from its values at the L-th roots of 1."""
    half, eye = dt / 2, np.eye(len(Lam))
    ahead = eye + half * (np.diag(Lam) - np.outer(p, p.conj()))
    move = solve_low_rank(1 - half * Lam, half, p, ahead.T).T
    folded = C - C @ np.linalg.matrix_power(move, L)  # what comes after L samples is taken off
    root = np.exp(-2j * np.pi * np.arange(L) / L)[:, None]  # (L, 1)
    return np.real(np.fft.ifft(solve_low_rank(1 - root - (1 + root) * half * Lam, (1 + root) * half, p, dt * B) @ folded))


def solve_low_rank(d, s, p, x):
    """(Diag(d) + s p p*)^-1 x for every row of d and x, by the formula of Sherman and Morrison."""
    y, r = x / d, p / d
    return y - r * (s * (y @ p.conj())[..., None] / (1 + s * (r @ p.conj())[..., None]))


def convolve(u, K, D):
    """Outputs from a zero state, by Fourier transforms that are long enough for nothing to come round from the end to the start."""
    n = 2 ** (len(u) + len(K)).bit_length()
    return np.fft.irfft(np.fft.rfft(u, n) * np.fft.rfft(K, n), n)[: len(u)] + D * u


def exponential(M):
    """e^M: the series where rows are small, the square of a half's elsewhere."""
    if np.any(np.sum(np.abs(M), axis=1) > 0.5):
        return (half := exponential(M / 2)) @ half
    total = term = np.eye(len(M))
    for k in range(1, 17):  # 0.5^17 / 17! is nothing in float64
        term = term @ M / k
        total = total + term
    return total
