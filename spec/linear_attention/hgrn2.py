r"""HGRN2: gated linear attention in which what a channel forgets is what it writes.

Paper: Qin, Yang, Sun, Shen, Li, Sun, Zhong, "HGRN2: Gated Linear RNNs with State Expansion", 2024, arXiv:2404.07904, Sec. 3 (state
expansion); lower bounds from Qin, Yang, Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", 2023,
arXiv:2311.04823, Sec. 3 (lower bounds rise from layer to layer).

A gated recurrent network keeps $\alpha$ of each channel and takes in $1-\alpha$ of something new. HGRN2 makes the channels the keys of an
outer product, so that a state of K numbers becomes one of K × V without any more parameters:

$$S_t = \mathrm{Diag}(\alpha_t)\, S_{t-1} + (1-\alpha_t)\otimes i_t, \qquad o_t = q_t^\top S_t, \qquad
\alpha_t = \beta + (1-\beta)\,\sigma(f_t).$$

The lower bound $\beta$ grows with the layer: low layers may forget at once, high ones remember long.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `f` | $o_t$ (their output gate), $f_t$ | `(T, K)` | queries and the forget gates before the sigmoid |
| `i` | $i_t$ | `(T, V)` | what is written |
| `lb` | $\beta$ | `(K,)` or scalar | lower bound of what is kept, in [0, 1) |
| `S0`, `state` | $H_t$ | `(K, V)` | memory, key axis first, zeros at the start |

Deviations: gates are kept as logarithms, $\log\alpha = \mathrm{logaddexp}(\log\beta, \log(1-\beta) + \log\sigma(f))$, and the key is
$-\mathrm{expm1}(\log\alpha)$, which is exact where $\alpha$ is near 1. Sections are from memory.
Derives from: linear_attention.gla (k = 1 - e^g).
"""

import numpy as np

from twofold.spec.linear_attention import gla

__all__ = ["recurrent", "chunked", "step", "log_forget", "lower_bounds"]


def step(state, q, f, i, lb=0.0):
    """Forget, write as much as was forgotten, then read: returns the output `(V,)` and the new state `(K, V)`."""
    g = log_forget(f, lb)
    state = np.exp(g)[:, None] * state + np.outer(-np.expm1(g), i)
    return q @ state, state


def recurrent(q, f, i, lb=0.0, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> q = np.ones((3, 1)); i = np.array([[8.0], [4.0], [2.0]])
    >>> recurrent(q, np.zeros((3, 1)), i)[0].ravel().tolist()                                 # keeps a half, takes a half
    [4.0, 4.0, 3.0]
    >>> recurrent(q, np.full((3, 1), -np.inf), i)[0].ravel().tolist()                         # keeps nothing
    [8.0, 4.0, 2.0]
    >>> recurrent(q, np.full((3, 1), -np.inf), i, lb=0.5)[0].ravel().tolist()                 # but never less than a half
    [4.0, 4.0, 3.0]
    """
    state = np.zeros((f.shape[1], i.shape[1])) if S0 is None else S0
    outputs = [i[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], f[t], i[t], lb)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, f, i, lb=0.0, S0=None, chunk=64):
    """The same by the chunks of gated linear attention."""
    g = log_forget(f, lb)
    return gla.chunked(q, -np.expm1(g), i, g, S0, chunk)


def log_forget(f, lb=0.0):
    """log(lb + (1 - lb) sigmoid(f)), of the shape of f, without computing the sum.

    >>> log_forget(np.array([-800.0]), 0.0).tolist(), np.exp(log_forget(np.array([-800.0]), 0.25)).round(12).tolist()
    ([-800.0], [0.25])
    """
    keep = -np.logaddexp(0.0, -f)                                         # log sigmoid(f)
    lb = np.asarray(lb, dtype=float)
    return np.where(lb > 0, np.logaddexp(np.log(np.where(lb > 0, lb, 1.0)), np.log1p(-lb) + keep), keep)


def lower_bounds(gamma):
    """The bounds of every layer `(L, K)` from learned numbers `(L, K)`: a softmax over the layers, summed up, none in the first.

    >>> lower_bounds(np.zeros((4, 1))).ravel().tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    share = np.exp(gamma - np.max(gamma, axis=0, initial=-np.inf))
    share = share / np.sum(share, axis=0)
    return np.cumsum(share, axis=0) - share[:1]
