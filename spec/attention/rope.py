r"""Rotary positions: a query and a key are turned by where they stand, so that their product knows how far apart they are.

Paper: Su, Lu, Pan, Murtadha, Wen, Liu, "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864,
Sec. 3.2 (Eq. 13–16), Sec. 3.4.2 (the elementwise form).

Channels are taken in pairs. Pair i of the row at position n is turned in its plane by the angle $n\,\theta_i$,

$$\begin{pmatrix} a' \\ b' \end{pmatrix} = \begin{pmatrix} \cos n\theta_i & -\sin n\theta_i \\ \sin n\theta_i & \cos n\theta_i \end{pmatrix}
\begin{pmatrix} a \\ b \end{pmatrix}, \qquad \theta_i = \text{base}^{-2i/d}.$$

Rotations are orthogonal, so a row keeps its length, and $R_m^\top R_n = R_{n-m}$: the product of a turned query and a turned key depends on
the difference of their positions alone. Fast pairs tell neighbors apart, slow ones far regions of a text.

| name | paper | shape | meaning |
|---|---|---|---|
| `x` | $x_m$ | `(T, d)` | queries or keys of one head, d even |
| `pos` | $m$ | `(T,)` | positions |
| `theta` | $\theta_i$ | `(d / 2,)` | angle per position; base^(-2i/d) unless given |
| `interleaved` | | | which channels are pair i: 2i and 2i + 1 (the paper), or i and i + d/2 (many released models) |

Deviations: both layouts, since a checkpoint works only with its own; `interleave` goes from one to the other.
"""

import numpy as np

__all__ = ["rotate", "interleave"]


def rotate(x, pos, *, theta=None, base=1e4, interleaved=False):
    """The definition: every pair turned by its angle, `(T, d)`.

    >>> quarter = np.array([np.pi / 2, 0.0])
    >>> x = np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> (np.round(rotate(x, np.array([1]), theta=quarter, interleaved=True), 12) + 0.0).tolist()      # the pair (1, 2)
    [[-2.0, 1.0, 3.0, 4.0]]
    >>> (np.round(rotate(x, np.array([1]), theta=quarter), 12) + 0.0).tolist()                        # the pair (1, 3)
    [[-3.0, 2.0, 1.0, 4.0]]
    >>> rotate(x, np.array([0])).tolist()                                                             # at 0 nothing turns
    [[1.0, 2.0, 3.0, 4.0]]
    """
    pairs = x.shape[1] // 2
    theta = base ** (-np.arange(pairs) / max(pairs, 1)) if theta is None else theta
    angle = pos[:, None] * theta[None, :]                             # (T, d/2)
    a, b = (x[:, ::2], x[:, 1::2]) if interleaved else (x[:, :pairs], x[:, pairs:])
    a, b = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
    return np.stack([a, b], axis=2).reshape(x.shape) if interleaved else np.concatenate([a, b], axis=1)


def interleave(x):
    """Channels in halves, put into pairs: what is turned with `interleaved` afterwards as it would have been without before.

    >>> interleave(np.array([[1, 2, 3, 4]])).tolist()
    [[1, 3, 2, 4]]
    """
    pairs = x.shape[1] // 2
    return np.stack([x[:, :pairs], x[:, pairs:]], axis=2).reshape(x.shape)
