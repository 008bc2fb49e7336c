r"""HGRN2: gated linear attention in which what a channel forgets is what it writes.

Paper: Qin, Yang, Sun, Shen, Li, Sun, Zhong, "HGRN2: Gated Linear RNNs with State Expansion", 2024, arXiv:2404.07904, Sec. 3 (state
expansion). Gates and their lower bounds are those of its first version, linear_attention.hgrn.

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
Derives from: linear_attention.gla (k = 1 - e^g), linear_attention.hgrn (gates).
"""

import numpy as np

from twofold.spec.linear_attention import gla
from twofold.spec.linear_attention.hgrn import log_forget

__all__ = ["recurrent", "chunked", "step"]


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
