r"""S4D: a diagonal state-space model, that is a bank of damped oscillators which all hear one channel, and a learned mix of what they do.

Paper: Gu, Gupta, Goel, Ré, "On the Parameterization and Initialization of Diagonal State Space Models", 2022, arXiv:2206.11893, Sec. 3
(zero-order hold, kernel) and Sec. 4 (S4D-LegS, S4D-Inv, S4D-Lin); section numbers are from memory.

$$\dot s_n = \lambda_n s_n + u, \qquad y = 2\,\mathrm{Re} \sum_n C_n s_n + D u,$$

with u held constant between samples, so that a step is exact: $s' = e^{\lambda\Delta} s + \bar B u$ with
$\bar B = (e^{\lambda\Delta} - 1)/\lambda$. Nothing depends on time but the input, so that the answer to one impulse tells all:

$$y = K * u + D u, \qquad K_j = 2\,\mathrm{Re} \sum_n C_n \bar B_n\, e^{\lambda_n \Delta j}.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `u` | $u$ | `(T,)` | one channel, real |
| `Lam` | $\Lambda = \mathrm{diag}(A)$ | `(N,)`, complex | decay (real part, at most 0) and frequency; one of each conjugate pair |
| `C`, `D` | $C, D$ | `(N,)`, complex; scalar | the mix; weight of the input itself |
| `dt` | $\Delta$ | scalar | length of a step |
| `S0`, `state` | $s$ | `(N,)`, complex | oscillators, zeros at the start |

Deviations: B is 1, as C can do what it would. The factor 2 stands for the other halves of the pairs; a real $\lambda$ counts twice.
Derives from: linear_attention.affine (the decay is complex); state_space.hippo (the spectrum "legs").
"""

import numpy as np

from twofold.spec.state_space import hippo

__all__ = ["recurrent", "kernel", "chunked", "step", "lambdas"]


def step(state, u, Lam, C, D, dt):
    """One sample, a number: the output, and the new state `(N,)`."""
    state = np.exp(Lam * dt) * state + held(Lam, dt) * u
    return 2 * np.real(np.sum(C * state)) + D * u, state


def recurrent(u, Lam, C, D, dt, S0=None):
    """The definition: one `step` per sample. Returns the outputs `(T,)` and the final state `(N,)`.

    >>> one = np.ones(1, complex)
    >>> recurrent(np.array([1.0, 0.0, 2.0]), 0 * one, one, 0.0, 0.5)[0].tolist()             # a frequency of 0: twice the integral
    [1.0, 1.0, 3.0]
    >>> recurrent(np.eye(4)[0], 1j * np.pi * one, 1j * one, 0.0, 1.0)[0].round(3).tolist()   # an impulse, and half a turn per step
    [-1.273, 1.273, -1.273, 1.273]
    >>> recurrent(np.zeros(0), one, one, 0.0, 1.0, S0=one)[1].tolist()                       # no sample, same state
    [(1+0j)]
    """
    outputs, state = [u[:0]], np.zeros(len(Lam), complex) if S0 is None else S0
    for sample in u:
        output, state = step(state, sample, Lam, C, D, dt)
        outputs.append([output])
    return np.concatenate(outputs), state


def kernel(Lam, C, dt, L):
    """The response to an impulse, `(L,)`, without the D: outputs from a zero state are u convolved with it."""
    return 2 * np.real((C * held(Lam, dt)) @ np.exp(np.outer(Lam * dt, np.arange(L))))


def chunked(u, Lam, C, D, dt, S0=None, chunk=64):
    """The same, chunk by chunk: a convolution inside, and what the state adds as it rings on. Equal for every `chunk`."""
    outputs, state = [u[:0]], np.zeros(len(Lam), complex) if S0 is None else S0
    K, turns = kernel(Lam, C, dt, chunk), np.exp(np.outer(np.arange(chunk + 1), Lam * dt))         # (chunk + 1, N)
    for start in range(0, len(u), chunk):
        x = u[start : start + chunk]
        lag = np.arange(len(x))[:, None] - np.arange(len(x))
        inside = np.where(lag >= 0, K[np.maximum(lag, 0)], 0.0) @ x
        outputs.append(inside + 2 * np.real(turns[1 : len(x) + 1] @ (C * state)) + D * x)
        state = turns[len(x)] * state + held(Lam, dt) * (x @ turns[len(x) - 1 :: -1])
    return np.concatenate(outputs), state


def held(Lam, dt):
    """What a step writes of an input held for its length: the limit dt where Lam is 0."""
    zero = Lam == 0
    return np.where(zero, dt, np.expm1(Lam * dt) / np.where(zero, 1, Lam))


def lambdas(N, kind):
    """N / 2 starting points, a half of each pair: "legs" are the frequencies of HiPPO, "inv" and "lin" imitate them by a formula.

    >>> lambdas(4, "lin").tolist()
    [(-0.5+0j), (-0.5+3.141592653589793j)]
    """
    n = np.arange(N // 2)
    if kind == "legs":
        return hippo.legs_low_rank(N)[0][N - N // 2 :]
    return -0.5 + 1j * {"lin": np.pi * n, "inv": N / np.pi * (N / (2 * n + 1) - 1)}[kind]
