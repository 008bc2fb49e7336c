r"""PaTH attention: where RoPE turns a key by its distance, here every token in between transforms it, by a reflection of its own.

Paper: Yang, Shen, Wen, Tan, Mishra, Ren, Panda, Kim, "PaTH Attention: Position Encoding via Accumulating Householder Transformations",
2025, arXiv:2505.16381, Sec. 2 (definition), Sec. 3 (compact products, blockwise form, inference); PaTH-FoX is its forgetting variant.

Softmax attention whose products of queries and keys pass through everything that lies on the path from the key to the query:

$$s_{ij} = q_i^\top H_i H_{i-1}\cdots H_{j+1}\, k_j, \quad H_t = I - \beta_t\, w_t w_t^\top, \qquad
o_i = \sum_{j\le i} \mathrm{softmax}_j(s_{ij} + F_i - F_j)\, v_j.$$

A unit w with beta 1 erases what keys hold along it, with beta 2 it reflects them, with beta 0 nothing happens.

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_i, k_j, v_j$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled: scores are linear in q), keys, values |
| `w`, `beta` | $w_t, \beta_t$ | `(T, K)`, `(T,)` | direction, of length 1 in the paper, and strength, there in (0, 2) |
| `F` | $\sum_{t\le i} \log f_t$ | `(T,)` | log forget gates, summed from the first token of all through i; finite; added after the scale |
| `S0`, `state` | $\hat k_j, v_j$ | `(S, K)`, `(S, V)`, `(S,)` | keys as the last token left them, values, F if any; empty at first |

Deviations: F is given as its sum and is not scaled; one released reference multiplies products and gates by the scale alike. The state's
keys are replaced, never changed in place: what one token has transformed is of no use to another text. Section numbers are from memory.
Derives from: attention.dense (beta 0; F is a bias).
"""

import numpy as np

from twofold.spec.attention.online_softmax import finish, identity, update

__all__ = ["parallel", "parallel_forgetting", "scores", "blockwise", "step"]


def parallel(q, k, v, w, beta, S0=None):
    """The definition: a softmax over all scores. Returns the outputs `(T, V)` and the final state.

    >>> q = k = np.array([[8.0, 0.0], [8.0, 0.0], [8.0, 0.0]]); v = np.array([[1.0], [2.0], [6.0]]); w = np.eye(2)[[0, 0, 0]]
    >>> parallel(q, k, v, w, np.zeros(3))[0].ravel().tolist()                       # three equal keys
    [1.0, 1.5, 3.0]
    >>> parallel(q, k, v, w, np.array([0.0, 0.0, 2.0]))[0].ravel().tolist()         # the last token turns the two before it away
    [1.0, 1.5, 6.0]
    >>> [x.tolist() for x in parallel(q[:0], k[:0], v[:0], w[:0], np.zeros(0), (k[:1], v[:1]))[1]]      # no token, the cache as it was
    [[[8.0, 0.0]], [[1.0]]]
    """
    keys, values = (k[:0], v[:0]) if S0 is None else S0
    after = _moved(keys, k, w, beta), np.concatenate([values, v])
    return _softmax(scores(q, k, w, beta, keys)) @ after[1], after


def parallel_forgetting(q, k, v, w, beta, F, S0=None):
    """The same with forget gates, of which F is the sum: scores lose what was forgotten on the path, F_i - F_j."""
    keys, values, sums = (k[:0], v[:0], F[:0]) if S0 is None else S0
    after = _moved(keys, k, w, beta), np.concatenate([values, v]), np.concatenate([sums, F])
    return _softmax(scores(q, k, w, beta, keys) + (F[:, None] - after[2])) @ after[1], after


def scores(q, k, w, beta, keys=None):
    """All $s_{ij}$, `(T, S + T)`, the cached keys first and `-inf` for the future: every query walks back, through one token at a time.

    >>> one = np.ones((3, 1)); scores(one, one, one, np.array([0.0, 2.0, 1.0])).tolist()      # 1 reflects what was before, 2 erases it
    [[1.0, -inf, -inf], [-1.0, 1.0, -inf], [0.0, 0.0, 1.0]]
    """
    columns, i = [], np.arange(len(q))[:, None]
    for j in reversed(range(len(k))):
        columns = [np.where(i < j, -np.inf, q @ k[j : j + 1].T), *columns]
        q = np.where(i < j, q, _through(q, w[j], beta[j]))
    return np.concatenate([q @ (k[:0] if keys is None else keys).T, *columns], axis=1)


def step(state, q, k, v, w, beta, F=None):
    """Transform all cached keys, append the token, attend: returns the output `(V,)` and the new state."""
    keys, values, *sums = state
    keys, values = np.concatenate([_through(keys, w, beta), k[None]]), np.concatenate([values, v[None]])
    sums = [np.concatenate([past, np.reshape(F, 1)]) for past in sums]
    return _softmax(keys @ q + sum(F - past for past in sums)) @ values, (keys, values, *sums)


def blockwise(q, k, v, w, beta, S0=None, block=64, F=None):
    """The same, block by block, with a running softmax: queries walk back through one block at a time. Equal for every `block`."""
    keys, values, *sums = ((k[:0], v[:0]) if F is None else (k[:0], v[:0], F[:0])) if S0 is None else S0
    gates, past = (np.zeros(len(q)), np.zeros(len(keys))) if F is None else (F, sums[0])
    met, outputs = [(keys, np.eye(k.shape[1]), values, past)], [v[:0]]
    for start in range(0, len(q), block):
        here = slice(start, start + block)
        local, x, ends, move = _within(q[here], k[here], w[here], beta[here])
        local = np.where(np.tri(len(x), dtype=bool), local + (gates[here, None] - gates[here]), -np.inf)
        attended = update(identity(v.shape[1]), local, v[here])
        for there, through, theirs, gate in reversed(met):
            attended = update(attended, x @ there.T + (gates[here, None] - gate), theirs)
            x = x @ through
        outputs.append(finish(attended)[0])
        met.append((ends, move, v[here], gates[here]))
    for ends, move, *_ in met[1:]:
        keys = np.concatenate([keys @ move.T, ends])
    return np.concatenate(outputs), (keys, np.concatenate([values, v]), *(np.concatenate([x, F]) for x in sums))


def _within(q, k, w, beta):
    """Scores, unmasked; queries as they leave a block at its start, keys at its end; H_n … H_1 = I - W^T X, (I + L) X = diag(beta) W."""
    count, lower = len(q), np.tri(len(q), k=-1)
    sides = beta[:, None] * np.concatenate([lower * (w @ k.T), w], axis=1)
    erased, L = sides[:0], beta[:, None] * (w @ w.T) * lower
    for t in range(count):  # top row first
        erased = np.concatenate([erased, (sides[t] - L[t, :t] @ erased)[None]])
    of_keys, of_queries = erased[:, :count], erased[:, count:]
    reached = np.tri(count) * (q @ w.T)
    return q @ k.T - reached @ of_keys, q - reached @ of_queries, k - of_keys.T @ w, np.eye(k.shape[1]) - w.T @ of_queries


def _through(x, w, beta):
    return x - (x @ w)[:, None] * (beta * w)


def _moved(keys, k, w, beta):
    for t in range(len(k)):
        keys = np.concatenate([_through(keys, w[t], beta[t]), k[t : t + 1]])
    return keys


def _softmax(s):
    share = np.exp(s - np.max(s, axis=-1, keepdims=True, initial=-np.inf))
    return share / np.sum(share, axis=-1, keepdims=True)
