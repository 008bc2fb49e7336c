r"""Attention with bounded-memory control: a memory of few slots, each a weighted mean of all tokens so far, read by a softmax.

Paper: Peng, Kasai, Pappas, Yogatama, Wu, Kong, Schwartz, Smith, "ABC: Attention with Bounded-memory Control", 2021, arXiv:2110.02488,
Sec. 2 (control vectors), Sec. 4 (controls learned by a network, and their running normalization in a causal model).

Tokens decide how much they matter to each of M slots. A slot's key is the mean of all keys so far under these weights, its value likewise:

$$\tilde K_t = \sum_{j\le t} \varphi_{tj} \otimes k_j, \quad \tilde V_t = \sum_{j\le t} \varphi_{tj} \otimes v_j, \quad
\varphi_{tj} = \frac{e^{s_j}}{\sum_{i\le t} e^{s_i}}, \qquad o_t = \tilde V_t^\top\, \mathrm{softmax}(\tilde K_t\, q_t).$$

With $z_t = \log\sum_{i\le t} e^{s_i}$ the old mean keeps $e^{z_{t-1}-z_t}$ and the new token weighs $e^{s_t-z_t}$, which add up to one:
gated slot attention, whose gates follow from the weights.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `s` | $\log\alpha_t = W_\varphi x_t$ | `(T, M)` | log-weights of the token in each slot; `-inf` leaves a slot alone |
| `S0`, `state` | $\tilde K_t^\top, \tilde V_t, z_t$ | `(K, M)`, `(M, V)`, `(M,)` | the slots' keys, values and log total weights |

Deviations: the paper's other controls (clusters, windows, fixed projections) are constants in place of s and are not here. Before a slot's
first token z is -inf; then nothing is kept because there is nothing, and the log-decay is taken to be 0. A slot without tokens holds zeros
and takes part in the softmax with a logit of 0. Section numbers are from memory.
Derives from: linear_attention.gsa (g = z_{t-1} - z_t, writes e^{s_t - z_t}).
"""

import numpy as np

from twofold.spec.linear_attention import gsa

__all__ = ["recurrent", "chunked", "step", "gates"]


def step(state, q, k, v, s):
    """Weigh one token into the means, then read: returns the output `(V,)` and the new state."""
    Kt, Vt, z = state
    write, g, z = gates(s[None], z)
    output, slots = gsa.step((Kt, Vt), q, k, v, write[0], g[0])
    return output, (*slots, z)


def recurrent(q, k, v, s, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state.

    >>> q = k = np.ones((3, 1)); v = np.array([[1.0], [2.0], [6.0]])
    >>> recurrent(q, k, v, np.zeros((3, 1)))[0].ravel().tolist()                              # equal weights: running means
    [1.0, 1.5, 3.0]
    >>> recurrent(q, k, v, np.array([[0.0], [-np.inf], [50.0]]))[0].ravel().tolist()          # no weight, and nearly all
    [1.0, 1.0, 6.0]
    >>> [x.tolist() for x in recurrent(q, k, v, np.full((3, 1), -np.inf))[1]]                 # a slot that stays empty
    [[[0.0]], [[0.0]], [-inf]]
    """
    state, outputs = _start(k, v, s) if S0 is None else S0, [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], s[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, s, S0=None, chunk=64, sub=16):
    """The same by the chunks of gated slot attention, once the gates are known."""
    Kt, Vt, z = _start(k, v, s) if S0 is None else S0
    write, g, z = gates(s, z)
    output, slots = gsa.chunked(q, k, v, write, g, (Kt, Vt), chunk, sub)
    return output, (*slots, z)


def gates(s, z):
    """Writes and log-decays `(T, M)` of gated slot attention, from log-weights and the z before them; and the last z `(M,)`.

    >>> [y.round(12).tolist() for y in gates(np.log([[3.0], [1.0]]), np.array([-np.inf]))]    # all of it, then one part of four
    [[[1.0], [0.25]], [[0.0], [-0.287682072452]], [1.38629436112]]
    """
    totals = [z]
    for row in s:
        totals.append(np.logaddexp(totals[-1], row))
    before, total = np.stack(totals)[:-1], np.stack(totals)[1:]
    known = np.where(total > -np.inf, total, 0.0)                         # a slot without tokens: any number serves
    return np.exp(s - known), np.where(before > -np.inf, before, known) - known, totals[-1]


def _start(k, v, s):
    return np.zeros((k.shape[1], s.shape[1])), np.zeros((s.shape[1], v.shape[1])), np.full(s.shape[1], -np.inf)
