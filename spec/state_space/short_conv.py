r"""The short convolution: each channel looks at its own last few tokens, through weights of its own.

Paper: Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752, Sec. 3.4 (a causal convolution
before the state-space model); Fu, Dao, Saab, Thomas, Rudra, Ré, "Hungry Hungry Hippos", 2022, arXiv:2212.14052 (as the shift SSM).

A sequence is a line of rows: its tail, the W - 1 inputs that came before it, then its T tokens. Output t weighs the W rows that end with
token t, and the last W - 1 rows are the tail of whatever follows:

$$r = [\,\mathrm{tail};\, x\,], \qquad y_t = b + \sum_{j=0}^{W-1} w_j \odot r_{t+j}, \qquad \mathrm{tail}' = r_{T},\dots,r_{T+W-2}.$$

| name | symbol | shape | meaning |
|---|---|---|---|
| `x` | $x_t$ | `(T, D)` | inputs |
| `w` | $w_j$ | `(W, D)` | one filter per channel; `w[W-1]` weighs the current token, `w[0]` the oldest |
| `b` | $b$ | `(D,)` or None | bias |
| `tail` | | `(W - 1, D)` or None | the state: the last inputs, oldest first; None: zeros |

Deviations: none known; section numbers are from memory. Released code keeps the filter as `(D, 1, W)`, the tail as `(D, W - 1)` or, with
the current token, `(D, W)`, and applies silu to the outputs inside the same call; here the activation is the caller's.
"""

import numpy as np

__all__ = ["causal", "step", "backward"]


def causal(x, w, b=None, tail=None):
    """The definition. Returns the outputs `(T, D)` and the new tail `(W - 1, D)`.

    >>> x, w = np.array([[1.0], [0.0], [0.0], [0.0]]), np.array([[3.0], [2.0], [1.0]])
    >>> causal(x, w)[0].ravel().tolist()                             # an impulse meets the newest weight first
    [1.0, 2.0, 3.0, 0.0]
    >>> causal(x[1:], w, tail=np.array([[0.0], [1.0]]))[0].ravel().tolist()      # the same, resumed after its first token
    [2.0, 3.0, 0.0]
    >>> causal(x[:1], w, tail=np.array([[5.0], [7.0]]))[1].tolist()  # fewer tokens than rows of the tail: an old one stays
    [[7.0], [1.0]]
    >>> y, tail = causal(x, np.array([[2.0]]), b=np.ones(1))         # W = 1: a scaling, and no state
    >>> y.ravel().tolist(), tail.shape
    ([3.0, 1.0, 1.0, 1.0], (0, 1))
    """
    rows = _rows(x, w, tail)
    terms = [w[j] * rows[j : j + len(x)] for j in range(len(w))]     # W times (T, D)
    terms += [] if b is None else [np.broadcast_to(b, x.shape)]
    return np.sum(np.stack(terms), axis=0), rows[len(x) :]


def step(tail, x, w, b=None):
    """One token `(D,)`: the output `(D,)` and the new tail, from which the oldest row is gone."""
    rows = np.concatenate([tail, x[None]])                           # (W, D)
    terms = w * rows if b is None else np.concatenate([w * rows, b[None]])
    return np.sum(terms, axis=0), rows[1:]


def backward(x, w, dy, dtail, tail=None):
    """Adjoint of `causal`: from d outputs `(T, D)` and d new tail `(W - 1, D)` to dx, dw, db and d tail."""
    rows, T, W = _rows(x, w, tail), len(x), len(w)
    none = np.zeros((W - 1, x.shape[1]))
    later = [np.concatenate([none[:j], w[j] * dy, none[j:]]) for j in range(W)]  # where each weight's gradient goes (T + W - 1, D)
    drows = np.sum(np.stack([*later, np.concatenate([np.zeros_like(x), dtail])]), axis=0)
    dw = np.stack([np.sum(dy * rows[j : j + T], axis=0) for j in range(W)])
    return drows[W - 1 :], dw, np.sum(dy, axis=0), drows[: W - 1]


def _rows(x, w, tail):
    return np.concatenate([np.zeros((len(w) - 1, x.shape[1])) if tail is None else tail, x])     # (W - 1 + T, D)
