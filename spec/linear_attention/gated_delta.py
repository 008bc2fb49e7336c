r"""The gated delta rule: the memory fades by one data-dependent factor per token, then is corrected under the token's key.

Paper: Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, arXiv:2412.06464, Eq. 10 (recurrence),
Sec. 3.3 (chunks).

Decay forgets everything a little, the delta rule replaces one thing entirely; a model of language wants both:

$$S_t = e^{g_t} (I - \beta_t k_t k_t^\top)\, S_{t-1} + \beta_t k_t \otimes v_t
= S' + \beta_t k_t \otimes (v_t - k_t^\top S'), \quad S' = e^{g_t} S_{t-1}, \qquad o_t = q_t^\top S_t.$$

The decay comes first: what is looked up, and erased, is the faded memory. Within a chunk with $\Gamma_{ij} = e^{g_{j+1} + \dots + g_i}$ for
$i \ge j$, else 0, and $\gamma_i = e^{g_1 + \dots + g_i}$,

$$(I + \mathrm{tril}(\Gamma \odot K W^\top, -1))\, D = V - \gamma \odot (K S), \quad W = \mathrm{Diag}(\beta) K, \qquad
O = \gamma \odot (Q S) + (\Gamma \odot Q W^\top)\, D.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys (of length 1), values |
| `g` | $\log\alpha_t$ | `(T,)` | log-decay, at most 0; `-inf` forgets everything |
| `beta` | $\beta_t$ | `(T,)` | write strength, in [0, 2] |
| `S0`, `state` | $S_t$ | `(K, V)` | memory, key axis first, zeros at the start |
| `x`, `A_log`, `dt_bias` | | `(T,)`, scalar, scalar | a token's projection to its gate, and the gate's two parameters per head |

Precondition: $\beta \lVert k \rVert^2 \le 2$.
Deviations: the paper's chunk equations print the 0/1 causal mask in the output; it must be $\Gamma$, and a test shows that they differ.
No ratio of decays is formed. Normalization, scale and the sigmoid of beta are the caller's. Numbers of equations are from memory.
Derives from: linear_attention.delta (g = 0) and linear_attention.affine (write key beta k, a = e^g k, b = -beta k).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays
from twofold.spec.linear_attention.delta import substitute
from twofold.spec.linear_attention.gla import after

__all__ = ["recurrent", "chunked", "chunked_factored", "step", "gate"]


def step(state, q, k, v, g, beta):
    """Fade, look up the key, write what is missing, then read: returns the output `(V,)` and the new state `(K, V)`."""
    state = np.exp(g) * state
    state = state + np.outer(beta * k, v - k @ state)
    return q @ state, state


def recurrent(q, k, v, g, beta, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`.

    >>> one = np.ones((3, 1)); v = np.array([[4.0], [8.0], [0.0]]); half = np.full(3, 0.5)
    >>> recurrent(one, one, v, np.zeros(3), half)[0].ravel().tolist()                         # never forgets: the delta rule
    [2.0, 5.0, 2.5]
    >>> recurrent(one, one, v, np.log(half), half)[0].ravel().tolist()                        # fades to 1, 2.25 before each look
    [2.0, 4.5, 1.125]
    >>> recurrent(one, one, v, np.full(3, -np.inf), half)[0].ravel().tolist()                 # forgets everything before each token
    [2.0, 4.0, 0.0]
    """
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], beta[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def chunked(q, k, v, g, beta, S0=None, chunk=64):
    """The same, one triangular system per chunk. Equal for every `chunk`."""
    return _in_chunks(_missing, q, k, v, g, beta, S0, chunk)


def chunked_factored(q, k, v, g, beta, S0=None, chunk=64):
    """The same from two systems that do not know the state: the decayed one for the values, the undecayed one for the keys.

    Both can be solved for all chunks at once, and only then the state walks through: this is the WY form of released code.
    """
    return _in_chunks(_missing_factored, q, k, v, g, beta, S0, chunk)


def _in_chunks(missing, q, k, v, g, beta, S0, chunk):
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs = [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(missing, *(x[start : start + chunk] for x in (q, k, v, g, beta)), state)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(missing, q, k, v, g, beta, state):
    write = beta[:, None] * k
    between = decays(g[:, None])[:, :, 0]                                 # from j through i                         (C, C)
    since = np.exp(np.cumsum(g))[:, None]                                 # from the start through i                 (C, 1)
    D = missing(k, write, v, between, since, state)                       # what each token finds missing            (C, V)
    output = since * (q @ state) + (q @ write.T * between) @ D
    return output, np.exp(np.sum(g)) * state + (np.exp(after(g[:, None])) * write).T @ D


def _missing(k, write, v, between, since, state):
    return substitute(np.tril(k @ write.T, -1) * between, v - since * (k @ state))


def _missing_factored(k, write, v, between, since, state):
    lower = np.tril(k @ write.T, -1)
    values, keys = substitute(lower * between, v), substitute(lower, k)   # the key system has no decay: it factors out
    return values - (since * keys) @ state


def gate(x, A_log, dt_bias):
    """The layer's log-decays, of the shape of x: -e^{A_log} softplus(x + dt_bias), the step size of Mamba-2 times its rate."""
    return -np.exp(A_log) * np.logaddexp(0.0, x + dt_bias)
