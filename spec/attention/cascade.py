r"""Cascade attention: requests that share a prefix attend it together, each attends its own suffix, and the parts are merged.

Paper: Ye et al., "FlashInfer", 2025, arXiv:2501.01005, Sec. 2.2 (composition of attention states); Juravsky et al., "Hydragen", 2024,
arXiv:2402.05099, Sec. 3 (decomposition over a shared prefix).

Keys fall into levels: a system prompt that all requests share, a conversation that some share, what is a request's own. A row's result is
the merger, $\oplus$ of `online_softmax`, of its results on the levels along its path from the root:

$$(o, L) = \bigoplus_{\ell} \text{attention}(q, k_\ell, v_\ell, \text{mask}_\ell), \qquad o \leftarrow \sigma(L - z)\,o.$$

The last step is for a sink z, and is taken once. A level that R requests share is read once for all of their rows instead of R times,
and the product is one of matrices.

| name | paper | shape | meaning |
|---|---|---|---|
| `q` | $q$ | `(Nq, D)` | the rows of one request, or of several |
| `levels` | | list of `(k, v, mask)` | keys `(n, D)`, values `(n, Dv)`, mask `(Nq, n)` or None |
| `qs` | | list of `(Nq, D)` | rows by request |
| `kp`, `vp` | | `(P, D)`, `(P, Dv)` | the prefix that every row sees |
| `suffixes` | | list of `(k, v)` | keys and values by request, causal from the end |

Deviations: none in the function. Where these levels are stored, and which pass takes which rows, is the engine's business: the papers'
schedulers are left out. A request has no more rows than suffix keys, or one row and no suffix: further rows would stand in the prefix,
which is not masked.
Derives from: attention.online_softmax
"""

from functools import reduce

import numpy as np

from twofold.spec.attention import dense
from twofold.spec.attention.online_softmax import merge

__all__ = ["attention", "shared_prefix", "traffic"]


def attention(q, levels, *, scale=None, softcap=None, sink=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)` over the keys of all levels; there is at least one level.

    >>> q = np.zeros((1, 1)); key = np.ones((1, 1)); nobody = np.zeros((1, 1), dtype=bool)
    >>> o, lse = attention(q, [(key, 2 * key, None), (key, 4 * key, None)])
    >>> o.tolist(), float(np.exp(lse[0]).round(6))
    ([[3.0]], 2.0)
    >>> o, lse = attention(q, [(key, 2 * key, nobody), (key[:0], key[:0], None)])   # levels that are masked or empty
    >>> o.tolist(), lse.tolist()
    ([[0.0]], [-inf])
    >>> attention(q, [(key, 2 * key, None), (key[:0], key[:0], None)], sink=0.0)[0].tolist()   # the sink takes its half once
    [[1.0]]
    """
    parts = [dense.attention(q, k, v, mask=mask, scale=scale, softcap=softcap) for k, v, mask in levels]
    o, lse = reduce(merge, parts)
    return dense.share(lse, sink)[:, None] * o, lse


def shared_prefix(qs, kp, vp, suffixes, *, scale=None):
    """Returns one pair `(o, lse)` per request: every row sees the whole prefix, and its own suffix up to its own position.

    >>> one = np.ones((1, 1))
    >>> [o.tolist() for o, _ in shared_prefix([0 * one, 0 * one], one, 3 * one, [(one, 5 * one), (one[:0], one[:0])])]
    [[[4.0]], [[3.0]]]
    """
    rows = np.concatenate([np.zeros((0, kp.shape[1])), *qs])
    o, lse = dense.attention(rows, kp, vp, scale=scale)               # the prefix is read once for the rows of all requests
    results, start = [], 0
    for q, (k, v) in zip(qs, suffixes, strict=True):
        own = slice(start, start + len(q))
        causal = np.tri(len(q), len(k), len(k) - len(q), dtype=bool)  # aligned to the end
        results.append(merge((o[own], lse[own]), dense.attention(q, k, v, mask=causal, scale=scale)))
        start = start + len(q)
    return results


def traffic(prefix, suffixes, d, dv):
    """How many elements of keys and values `shared_prefix` reads, for the lengths of the prefix and of each suffix.

    >>> traffic(1000, [10, 20], 64, 64), traffic(1000, [10], 64, 64) + traffic(1000, [20], 64, 64)   # together, and one by one
    (131840, 259840)
    """
    return (prefix + sum(suffixes)) * (d + dv)
