r"""Grouped-query attention: several query heads read one head of keys and values.

Paper: Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", 2023, arXiv:2305.13245,
Sec. 2; one key head for all is multi-query attention, Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", 2019,
arXiv:1911.02150.

What a token costs in the cache is its key heads, not its query heads. With $H_q = g H_{kv}$ query heads,

$$o_h = \text{attention}\big(q_h,\; k_{\lfloor h/g\rfloor},\; v_{\lfloor h/g\rfloor}\big).$$

$H_{kv} = H_q$ is multi-head attention, $H_{kv} = 1$ multi-query attention. The g query heads of a group are, to their keys, nothing but
more rows: packed row $r = i\,g + (h \bmod g)$ is row i of head h, and what a mask says of row $\lfloor r/g\rfloor$ holds for it. So keys
are read once for g rows, and a single decoded token becomes a matrix product.

A trained multi-head model becomes a grouped one by averaging the key and value projections of the heads that are to share.

| name | paper | shape | meaning |
|---|---|---|---|
| `q` | | `(Hq, Nq, D)` | queries of each head |
| `k`, `v` | | `(Hkv, Nk, D)`, `(Hkv, Nk, Dv)` | keys and values; Hkv divides Hq |
| `g` | | | query heads per key head |
| `mask`, `bias` | | `(Nq, Nk)` or `(Hq, Nq, Nk)` | as in `attention.dense`, for all heads or each its own |
| `sink` | | `(Hq,)` | one logit per query head |
| `w` | | `(H, …)` | one projection per head |

Deviations: masks, biases and sinks are not in the papers. Heads of a group lie next to each other, as in all released models; some
codebases interleave them (h mod Hkv), and then their projections must be reordered first.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention import dense

__all__ = ["attention", "backward", "pack", "unpack", "mean_pool"]


def attention(q, k, v, *, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """The definition: outputs `(Hq, Nq, Dv)` and log-sum-exps `(Hq, Nq)`.

    >>> q, v = np.zeros((4, 1, 1)), np.array([[[1.0]], [[2.0]]])
    >>> attention(q, v, v)[0][:, 0, 0].tolist()                                   # heads 0 and 1 share, and 2 and 3
    [1.0, 1.0, 2.0, 2.0]
    """
    g = _group(q, k)
    heads = [
        dense.attention(q[h], k[h // g], v[h // g], scale=scale, softcap=softcap, **_of_head(h, mask, bias, sink)) for h in range(len(q))
    ]
    return np.stack([o for o, _ in heads]), np.stack([lse for _, lse in heads])


def backward(q, k, v, do, *, dlse=None, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """Gradients `(dq, dk, dv, dbias, dsink)`: those of keys and values are sums over the query heads that read them."""
    g = _group(q, k)
    dq, dk, dv, dbias, dsink = zip(*[
        dense.backward(
            q[h], k[h // g], v[h // g], do[h], dlse=None if dlse is None else dlse[h], scale=scale, softcap=softcap,
            **_of_head(h, mask, bias, sink),
        )
        for h in range(len(q))
    ])  # fmt: skip
    dk, dv = (np.stack([sum(x[h : h + g]) for h in range(0, len(q), g)]) for x in (dk, dv))
    if bias is not None:
        dbias = np.stack(dbias) if bias.ndim == 3 else sum(dbias)
    return np.stack(dq), dk, dv, None if bias is None else dbias, None if sink is None else np.stack(dsink)


def pack(q, h_kv):
    """The heads of a group as rows: `(Hq, Nq, D)` to `(Hkv, Nq g, D)`, the heads of one token next to each other.

    >>> pack(np.array([[[1], [2]], [[10], [20]]]), 1)[0, :, 0].tolist()
    [1, 10, 2, 20]
    """
    h_q, n, *rest = q.shape
    g = h_q // h_kv
    return q.reshape(h_kv, g, n, *rest).swapaxes(1, 2).reshape(h_kv, n * g, *rest)


def unpack(x, g):
    """The inverse, for what comes out: `(Hkv, Nq g, …)` to `(Hq, Nq, …)`."""
    h_kv, rows, *rest = x.shape
    return x.reshape(h_kv, rows // g, g, *rest).swapaxes(1, 2).reshape(h_kv * g, rows // g, *rest)


def mean_pool(w, h_kv):
    """Projections of `(H, …)` heads averaged over the heads that are to share one `(Hkv, …)`.

    >>> mean_pool(np.array([[1.0], [3.0], [5.0], [9.0]]), 2)[:, 0].tolist()
    [2.0, 7.0]
    """
    return np.mean(w.reshape(h_kv, -1, *w.shape[1:]), axis=1)


def _group(q, k):
    if not len(k) or len(q) % len(k):
        raise ValueError(f"q must have a multiple of k's {len(k)} heads, not {len(q)}")
    return len(q) // len(k)


def _of_head(h, mask, bias, sink):
    each = lambda x: x if x is None or x.ndim == 2 else x[h]
    return {"mask": each(mask), "bias": each(bias), "sink": None if sink is None else sink[h]}
