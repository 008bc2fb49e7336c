r"""HiPPO: a state that is, at every moment, the best polynomial through everything seen so far.

Paper: Gu, Dao, Ermon, Rudra, Ré, "HiPPO: Recurrent Memory with Optimal Polynomial Projections", 2020, arXiv:2008.07669, Theorem 2 (LegS);
Gu, Johnson, Timalsina, Rudra, Ré, "How to Train Your HiPPO", 2022, arXiv:2206.12037; Gu, Goel, Ré, "Efficiently Modeling Long Sequences
with Structured State Spaces", 2021, arXiv:2111.00396, Theorem 1 (normal plus low rank); numbers of theorems are from memory.

At time t the past $f(s),\ 0 \le s \le t$, is projected on Legendre polynomials stretched over it. The coefficients obey a linear system
whose only clock is t itself, so that there is no time scale to choose:

$$c_n(t) = \frac1t \int_0^t f(s)\, \sqrt{2n+1}\, P_n\bigl(\tfrac{2s}{t} - 1\bigr)\, ds, \qquad \dot c = \tfrac1t (Ac + Bf), \qquad
A_{ij} = -\begin{cases} \sqrt{(2i+1)(2j+1)} & i > j \\ i + 1 & i = j \\ 0 & i < j \end{cases}, \quad B_i = \sqrt{2i+1}.$$

| name | symbol | shape | meaning |
|---|---|---|---|
| `N` | | | number of coefficients |
| `A`, `B` | $A, B$ | `(N, N)`, `(N,)` | the system; A is lower triangular |
| `f` | $f_1, f_2, \dots$ | `(T,)` | samples at equal distances, whatever the distance |
| `c` | $c$ | `(T, N)` | coefficients after each sample, lowest degree first |
| `Lam`, `P`, `V` | $\Lambda, p, V$ | `(N,)`, `(N,)`, `(N, N)`, complex | $A = V(\mathrm{Diag}(\Lambda) - p\,p^*)V^*$ with V unitary |

Deviations: the paper's A has the opposite sign. It prints Euler's step; here the step is bilinear (trapezoidal), which no N makes unstable.
"""

import numpy as np

__all__ = ["legs", "legs_project", "legs_low_rank"]


def legs(N):
    """The system: A `(N, N)` and B `(N,)`.

    >>> A, B = legs(3)
    >>> (A**2).round(9).tolist(), (B**2).round(9).tolist()
    ([[1.0, 0.0, 0.0], [3.0, 4.0, 0.0], [5.0, 15.0, 9.0]], [1.0, 3.0, 5.0])
    """
    odd = 2.0 * np.arange(N) + 1
    return -np.tril(np.sqrt(np.outer(odd, odd)), -1) - np.diag(np.arange(N) + 1.0), np.sqrt(odd)


def legs_project(f, N):
    """Coefficients after each sample, `(T, N)`: step k of the trapezoidal rule solves (I - A / 2k) c = (I + A / 2k) c + B f_k / k.

    >>> legs_project(np.ones(4), 1).ravel().round(9).tolist()                  # a constant: 2k / (2k + 1), on the way to 1
    [0.666666667, 0.8, 0.857142857, 0.888888889]
    >>> legs_project(np.ones(0), 3).shape
    (0, 3)
    """
    (A, B), c, rows = legs(N), np.zeros(N), [np.zeros((0, N))]
    for k in range(1, len(f) + 1):
        half = 1 / (2 * k)
        right, c = c + half * (A @ c) + B * (2 * half * f[k - 1]), c[:0]
        for n in range(N):  # lower triangular: one coefficient after the other
            c = np.concatenate([c, (right[n : n + 1] + half * np.sum(A[n, :n] * c)) / (1 - half * A[n, n])])
        rows.append(c[None])
    return np.concatenate(rows)


def legs_low_rank(N):
    """The system in a basis where A is diagonal but for one rank: Lam, P, B and V, with P and B in that basis.

    A + P P^T with P_n = sqrt(n + 1/2) is -1/2 plus a skew-symmetric matrix: normal, so that a unitary V makes it diagonal. The eigenvectors
    of A itself are of no use: their condition grows exponentially with N.
    """
    (A, B), P = legs(N), np.sqrt(np.arange(N) + 0.5)
    skew = A + np.outer(P, P) + np.eye(N) / 2
    frequencies, V = np.linalg.eigh(-1j * skew)                                # Hermitian; lowest frequency first
    return -0.5 + 1j * frequencies, V.conj().T @ P, V.conj().T @ B, V
