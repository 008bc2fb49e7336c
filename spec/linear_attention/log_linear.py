r"""Log-linear attention: the past in blocks of one, two, four, eight tokens, a state for each, weighted by the token that reads.

Paper: Guo, Yang, Goel, Xing, Dao, Kim, "Log-Linear Attention", 2025, arXiv:2506.04761, Sec. 3 (Fenwick partition, Eq. 4; the parallel form;
the chunkwise form), here on top of one decay per token, as its log-linear Mamba-2.

Linear attention keeps one state for the whole past. Here the past of token t is cut as a Fenwick tree cuts it. Level 0 is the token itself;
then the bits of t are peeled off from the lowest, and bit p is the block of $2^p$ tokens that ends where the last one begins, level p + 1.
Every level has a state, a decayed sum as ever, and a weight that the token chooses:

$$o_t = \sum_\ell \lambda_t^{(\ell)}\, q_t^\top S_t^{(\ell)}
\qquad\Longleftrightarrow\qquad O = (QK^\top \odot D \odot \Lambda)\,V, \quad \Lambda_{ij} = \lambda_i^{(\mathrm{level}(i, j))}.$$

The level at which i finds j is the number of bits of i xor j. There are as many states as bits of t, so time grows as T log T.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `g` | $\log\alpha_t$ | `(T,)` | log-decay, at most 0; `-inf` forgets everything |
| `lam` | $\lambda_t^{(\ell)}$ | `(T, L)` | weights of the levels; L - 1 bits are enough to count all tokens, earlier ones included |
| `S0`, `state` | $S_t^{(\ell)}, t$ | `(L, K, V)`, int | a state for each level, zeros where it is empty, and how many tokens there were |

Deviations: the paper's chunkwise form merges the states of chunks whose length is a power of two; here a chunk may begin anywhere, because
what a state holds is found by all later tokens at one level each. Section and equation numbers are from memory.
Derives from: linear_attention.simple_gla (all weights 1).
"""

import numpy as np

from twofold.spec.linear_attention.affine import decays
from twofold.spec.linear_attention.gla import after

__all__ = ["parallel", "recurrent", "chunked", "step", "levels"]


def parallel(q, k, v, g, lam, S0=None):
    """The definition: attention without softmax under two masks. Returns the outputs `(T, V)` and the final state.

    >>> one = np.ones((4, 1)); v = np.array([[1.0], [2.0], [4.0], [8.0]]); lam = np.tile([1.0, 0.0, 100.0], (4, 1))
    >>> parallel(one, one, v, np.zeros(4), lam)[0].ravel().tolist()                           # 2 = 10 and 3 = 11 in binary: 0, 1 at level 2
    [1.0, 2.0, 304.0, 308.0]
    >>> [np.shape(x) for x in parallel(one[:0], one[:0], v[:0], np.zeros(0), lam[:0])[1]]     # no token, empty levels
    [(3, 1, 1), ()]
    """
    S, t = _start(k, v, lam) if S0 is None else S0
    time, row, end = t + np.arange(len(q)), np.arange(len(q))[:, None], max(t + len(q) - 1, 0)
    held = (max(t - 1, 0) >> np.arange(len(S))) << np.arange(len(S))      # a token of each level of the state              (L,)
    scores = q @ k.T * decays(g[:, None])[:, :, 0] * lam[row, levels(time[:, None], time)]                              # (T, T)
    since = np.exp(np.cumsum(g))[:, None] * lam[row, levels(time[:, None], held)]                                       # (T, L)
    output = scores @ v + np.einsum("tl,tk,lkv->tv", since, q, S)
    level = np.arange(len(S))[:, None]
    moved = np.einsum("lm,mkv->lkv", (level == levels(end, held)).astype(float), np.exp(np.sum(g)) * S)
    until = np.where(level == levels(end, time), np.exp(after(g[:, None]))[:, 0], 0.0)                                  # (L, T)
    return output, (moved + np.einsum("lt,tk,tv->lkv", until, k, v), t + len(q))


def recurrent(q, k, v, g, lam, S0=None):
    """The same, one `step` per token."""
    state, outputs = _start(k, v, lam) if S0 is None else S0, [v[:0]]
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], g[t], lam[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def step(state, q, k, v, g, lam):
    """Fade; merge all levels up to the lowest bit of t, as when one is added to a number; write; read.

    >>> state = np.zeros((4, 1, 1)), 0; one = np.ones(1)
    >>> for t in range(8): _, state = step(state, one, one, one, 0.0, np.ones(4))
    >>> state[0].ravel().tolist()                                                             # tokens 7, 6, 4 … 5, 0 … 3
    [1.0, 1.0, 2.0, 4.0]
    """
    S, t = state
    S = np.exp(g) * S
    if t:
        n = (t & -t).bit_length()                                         # levels that merge into the next, which is empty
        S = np.concatenate([0 * S[:n], np.sum(S[:n], axis=0)[None], S[n + 1 :]])
    S = np.concatenate([np.outer(k, v)[None], S[1:]])
    return lam @ (q @ S), (S, t + 1)


def chunked(q, k, v, g, lam, S0=None, chunk=64):
    """The same, chunk by chunk: within, all pairs; before, one state for each level. Equal for every `chunk`."""
    state, outputs, start = _start(k, v, lam) if S0 is None else S0, [v[:0]], 0
    while start < len(q):
        here = slice(start, start + chunk - state[1] % chunk)             # chunks end at whole numbers of chunks
        output, state = parallel(*(x[here] for x in (q, k, v, g, lam)), state)
        outputs.append(output)
        start = here.stop
    return np.concatenate(outputs), state


def levels(i, j):
    """At which level token i finds token j: the number of bits of i xor j.

    >>> levels(6, np.arange(7)).tolist()                                                      # 0 … 3, 4 … 5, 6
    [3, 3, 3, 3, 2, 2, 0]
    """
    return np.frexp(i ^ j)[1]


def _start(k, v, lam):
    return np.zeros((lam.shape[1], k.shape[1], v.shape[1])), 0
