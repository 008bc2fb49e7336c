r"""Flash-Decoding: the keys are cut into chunks that are attended apart, and the results merged by their log-sum-exps.

Paper: Dao, Haziza, Massa and Sizov, "Flash-Decoding for long-context inference", 2023 (PyTorch blog, no arXiv id). The occupancy rule is
that of FlashAttention-2's code (Dao, 2023, arXiv:2307.08691).

One query row gives a GPU nothing to do in parallel, its keys do. Chunk s holds the keys $b_s \le j < b_{s+1}$; every chunk is attended as
if it were all there is, with the rows where they stand, and

$$o = \sum_s e^{L_s - L}\, o_s, \qquad L = \log\textstyle\sum_s e^{L_s}.$$

This is exact for every partition. Which partition is policy: chunks of a `fixed` size cut a sequence in the same places whatever else is
in the batch, so its result has the same bits in any company; `occupancy` cuts so that the last wave of programs leaves few processors idle.

| name | symbol | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | queries, keys, values |
| `bounds` | $b$ | `(S + 1,)` | where chunks begin and the last one ends: $0 = b_0 \le \dots \le b_S = N_k$ |
| `o`, `lse` | $o_s, L_s$ | `(S, Nq, Dv)`, `(S, Nq)` | of every chunk |
| `mask`, `scale`, `softcap`, `bias`, `sink` | | | as in `attention.dense`; the sink takes its share once, after merging |
| `tiles`, `blocks`, `sms` | | | programs without splitting, tiles of keys that each walks over, processors |

Deviations: a chunk in which a row sees no key has log-sum-exp -inf and adds nothing, whatever its output holds. Released code passes
twice the number of processors to the occupancy rule, two programs running on each; that is the caller's choice here.
Derives from: attention.flash, attention.online_softmax
"""

from fractions import Fraction

import numpy as np

from twofold.spec.attention import flash
from twofold.spec.attention.dense import share

__all__ = ["attention", "partials", "combine", "fixed", "occupancy"]


def attention(q, k, v, *, bounds, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """The definition: returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`, those of `dense.attention` for any bounds.

    >>> q, v = np.zeros((1, 1)), np.array([[2.0], [4.0], [9.0]])
    >>> [round(float(attention(q, v, v, bounds=b)[0][0, 0]), 6) for b in ([0, 3], [0, 1, 1, 3], [0, 0, 2, 3])]
    [5.0, 5.0, 5.0]
    >>> [x.tolist() for x in attention(q, v[:0], v[:0], bounds=[0, 0])]           # no keys
    [[[0.0]], [-inf]]
    """
    o, lse = combine(*partials(q, k, v, bounds=bounds, mask=mask, scale=scale, softcap=softcap, bias=bias))
    return share(lse, sink)[:, None] * o, lse


def partials(q, k, v, *, bounds, mask=None, scale=None, softcap=None, bias=None):
    """Every chunk attended apart: outputs `(S, Nq, Dv)` and log-sum-exps `(S, Nq)`."""
    scale = q.shape[1] ** -0.5 if scale is None else scale
    parts = []
    for start, stop in zip(bounds[:-1], bounds[1:]):
        keys = slice(start, stop)
        options = {"mask": None if mask is None else mask[:, keys], "bias": None if bias is None else bias[:, keys]}
        parts.append(flash.forward(q, k[keys], v[keys], scale=scale, softcap=softcap, **options))
    return np.stack([o for o, _ in parts]), np.stack([lse for _, lse in parts])


def combine(o, lse):
    """Merge the chunks: outputs `(S, ..., Dv)` and log-sum-exps `(S, ...)` become `(..., Dv)` and `(...)`.

    >>> o, lse = combine(np.array([[2.0], [np.nan]]), np.array([0.0, -np.inf]))   # the second chunk has seen nothing
    >>> o.tolist(), float(lse)
    ([2.0], 0.0)
    >>> float(combine(np.zeros((2, 1)), np.full(2, -np.inf))[1])                  # nor has any other
    -inf
    """
    o = np.where((lse == -np.inf)[..., None], 0.0, o)
    top = np.max(lse, axis=0, initial=-np.inf)
    top = np.where(top == -np.inf, 0.0, top)                          # -inf - -inf is no logit
    weight = np.exp(lse - top)                                        # (S, ...)
    total = np.sum(weight, axis=0)
    empty = total == 0
    total = np.where(empty, 1.0, total)
    return np.sum(weight[..., None] * o, axis=0) / total[..., None], np.where(empty, -np.inf, top + np.log(total))


def fixed(n, size):
    """Bounds of chunks of constant size: where a sequence is cut depends on its own length only.

    >>> fixed(5, 2), fixed(4, 2), fixed(0, 2)
    ([0, 2, 4, 5], [0, 2, 4], [0, 0])
    """
    return [0, *range(size, n, size), n]


def occupancy(tiles, blocks, sms, max_splits=128):
    """Into how many chunks to cut: the fewest whose waves of programs are nearly as full as the fullest waves possible.

    >>> occupancy(tiles=100, blocks=64, sms=108), occupancy(tiles=1, blocks=64, sms=108), occupancy(tiles=1, blocks=1, sms=108)
    (1, 64, 1)
    """
    if 5 * tiles >= 4 * sms:                                          # four fifths of the processors are busy as it is
        return 1
    efficiency = {}
    for splits in range(1, min(max_splits, sms, blocks) + 1):
        if splits == 1 or -(-blocks // splits) != -(-blocks // (splits - 1)):  # one more chunk that makes none of them shorter is no use
            programs = tiles * splits
            efficiency[splits] = Fraction(programs, sms * -(-programs // sms))
    return next((s for s, e in efficiency.items() if e >= Fraction(85, 100) * max(efficiency.values())), 1)
