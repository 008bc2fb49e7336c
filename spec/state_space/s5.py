r"""S5: one bank of damped oscillators for all channels, which hears a mix of them and answers with as many.

Paper: Smith, Warrington, Linderman, "Simplified State Space Layers for Sequence Modeling", 2022, arXiv:2208.04933, Sec. 3 (many inputs and
outputs, diagonal, parallel scan), Appendix D (conjugate pairs, a step per oscillator); section numbers are from memory.

Where S4D gives every channel oscillators of its own, here B mixes the channels before one bank, and C its states after it, so that no layer
between channels has to follow. An input is held between samples:

$$x_t = e^{\lambda\Delta} \odot x_{t-1} + \bar B u_t, \qquad \bar B = \tfrac{e^{\lambda\Delta} - 1}{\lambda} \odot B, \qquad
y_t = 2\,\mathrm{Re}(C x_t) + D \odot u_t.$$

Samples in a row are one map $x \mapsto ax + b$, and such maps compose, $(a', b') \circ (a, b) = (a' a,\ a' b + b')$, in any grouping.

| name | paper | shape | meaning |
|---|---|---|---|
| `u` | $u_t$ | `(T, H)` | channels, real |
| `Lam` | $\Lambda$ | `(N,)`, complex | decay (real part, at most 0) and frequency; one of each conjugate pair |
| `B`, `C` | $\tilde B, \tilde C$ | `(N, H)`, `(H, N)`, complex | what each oscillator hears, what each channel reads |
| `D` | $D$ | `(H,)` | weight of the input itself |
| `dt` | $\Delta$ | `(N,)` or scalar | length of a step, for each oscillator its own |
| `S0`, `state` | $x$ | `(N,)`, complex | oscillators, zeros at the start |

Deviations: none in the recurrence. The same for all samples, a move is a number: a round of `scan` squares it in place of composing pairs.
Derives from: state_space.s4d (it is that for H = 1 and a B of ones, or for B and C in blocks); linear_attention.affine (complex decay).
"""

import numpy as np

from twofold.spec.state_space import s4d

__all__ = ["recurrent", "scan", "step"]


def step(state, u, Lam, B, C, D, dt):
    """One sample of all channels `(H,)`: the outputs `(H,)`, and the new state `(N,)`."""
    state = np.exp(Lam * dt) * state + s4d.held(Lam, dt) * (B @ u)
    return 2 * np.real(C @ state) + D * u, state


def recurrent(u, Lam, B, C, D, dt, S0=None):
    """The definition: one `step` per sample. Returns the outputs `(T, H)` and the final state `(N,)`.

    >>> ears, mouths = np.array([[1.0, 1j]]), np.array([[1.0], [1j]])             # the second channel is heard, and read, a quarter turned
    >>> u = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    >>> recurrent(u, np.zeros(1, complex), ears, mouths, np.zeros(2), 0.5)[0].tolist()
    [[1.0, 0.0], [1.0, 0.0], [1.0, -1.0]]
    >>> recurrent(u[:0], np.zeros(1, complex), ears, mouths, np.zeros(2), 0.5, S0=np.ones(1, complex))[1].tolist()
    [(1+0j)]
    """
    outputs, state = [u[:0]], np.zeros(len(Lam), complex) if S0 is None else S0
    for sample in u:
        output, state = step(state, sample, Lam, B, C, D, dt)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def scan(u, Lam, B, C, D, dt, S0=None):
    """The same in about log2 T rounds: after each, a sample knows of twice as many before it."""
    S0 = np.zeros(len(Lam), complex) if S0 is None else S0
    move, states = np.exp(Lam * dt), np.concatenate([S0[None], s4d.held(Lam, dt) * (u @ B.T)])  # (T + 1, N)
    reach = 1
    while reach < len(states):
        states = np.concatenate([states[:reach], states[reach:] + move * states[:-reach]])
        move, reach = move * move, 2 * reach
    return 2 * np.real(states[1:] @ C.T) + D * u, states[-1]
