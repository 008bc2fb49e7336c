r"""The law of a row in four numbers and a temperature: whatever top-k, top-p and min-p leave of a row is a beginning of one order.

Paper: Fan, Lewis, Dauphin, "Hierarchical Neural Story Generation", 2018, arXiv:1805.04833, Sec. 5.4 (top-k); Holtzman et al., 2019,
arXiv:1904.09751, Sec. 3.1 (top-p); Nguyen et al., 2024, arXiv:2407.01082, Sec. 3 (min-p). What is here is a rewriting of `warp.pipeline`.

Put the tokens in the order of falling logits, equals by rising id. Top-k keeps the first k, top-p the first that reach its share of those,
min-p the first that are likely enough: three beginnings of one list, and the shortest of them is what stays. Its last token, the logit
$c$ and the id $\ell$, tells of every other token whether it stays, without a look at the rest of the row:

$$p(v) = \frac{[v \text{ kept}]}{Z} \exp\frac{l_v - m}{T}, \qquad v \text{ kept} \iff l_v > c \text{ or } (l_v = c,\, v \le \ell),$$

with the greatest logit $m$ and the total weight $Z = \sum_{v \text{ kept}} \exp((l_v - m) / T)$.

So a server need not store, sort or normalize probabilities: the logits stay as they are, and five numbers give p(v) wherever it is wanted.

| name | symbol | shape | meaning |
|---|---|---|---|
| `logits` | $l$ | `(V,)` | scores, after penalties; minus infinity where a token is not allowed |
| `T`, `k`, `mass`, `ratio` | | numbers | temperature; top-k, top-p, min-p, off at 0, 1 (or more), 0 |
| `law` | $T, m, c, \ell, Z$ | five numbers | temperature, greatest logit, logit and id of the last token kept, total weight |
| `ids` | $v$ | `(n,)` | tokens whose probability is asked for |

Deviations: `warp.pipeline` orders by probability, here it is by logit; rounding can make two probabilities equal, never two logits. Top-p's
mass is a share of what top-k left, and min-p's measure is the greatest probability, as there. Where nothing is cut, c is minus infinity and
the id the last one. T = 0 keeps the first greatest logit alone; its law says T = 1, so that nobody divides by 0.
Z is relative to m: log Z of the bare logits would lose as many digits as m / T has, all of them near T = 0. Sections are from memory.

Derives from: `warp`.
"""

import numpy as np

__all__ = ["row", "restore", "probability", "statistics"]


def row(logits, T=1, k=0, mass=1, ratio=0):
    """The definition: the law `(T, greatest, cut, last, total)` of a row of logits.

    >>> logits = np.log([0.125, 0.5, 0.125, 0.25])
    >>> T, greatest, cut, last, total = row(logits, k=3)                # ids 0 and 2 tie for the third place: the lower one stays
    >>> bool(cut == logits[0]), int(last), round(float(total), 3)
    (True, 0, 1.75)
    >>> row(np.array([1.0, 3.0, 3.0]), T=0)[2:4] == (3.0, 1)            # one token, the first of the greatest
    True
    >>> row(logits)[2:4]                                                # nothing is cut
    (-inf, 3)
    """
    greatest = _greatest(logits)
    order = np.argsort(-logits, kind="stable")  # likeliest first, equals by id                           (V,)
    if T == 0:
        return 1, greatest, greatest, order[0], 1
    weights = np.exp((logits[order] - greatest) / T)[: k or None]  # what top-k keeps, the greatest is 1  (k,)
    short = np.cumsum(weights) < mass * weights.sum()
    reached = 1 + short.sum() if mass < 1 else len(weights)  # the token that crosses the mass is the last one kept
    near = (weights >= ratio).sum()
    kept = min(len(weights), reached, near)
    cut, last = (logits[order[kept - 1]], order[kept - 1]) if kept < len(logits) else (-np.inf, len(logits) - 1)
    return T, greatest, cut, last, weights[:kept].sum()


def restore(logits, law):
    """The probabilities `(V,)` of all tokens: what `warp.pipeline` gives.

    >>> logits = np.log([0.125, 0.5, 0.125, 0.25])
    >>> restore(logits, row(logits, k=3)).round(3).tolist()
    [0.143, 0.571, 0.0, 0.286]
    """
    return probability(logits, law, np.arange(len(logits)))


def probability(logits, law, ids):
    """The probabilities `(n,)` of these tokens; each is read from its own logit."""
    T, greatest, cut, last, total = law
    ids, chosen = np.asarray(ids), logits[ids]  # (n,)
    kept = (chosen > cut) | ((chosen == cut) & (ids <= last))
    return np.where(kept, np.exp((chosen - greatest) / T), 0) / total


def statistics(logits):
    """The greatest logit, the log-sum-exp, the first id of the greatest, and the entropy (in nats) of the row's softmax.

    >>> [round(float(x), 3) for x in statistics(np.array([0.0, 2.0, 2.0, -np.inf]))]
    [2.0, 2.759, 1.0, 0.885]
    """
    greatest = _greatest(logits)
    weights = np.exp(logits - greatest)
    below = np.where(weights > 0, logits - greatest, 0)  # a token of probability 0 adds nothing to the entropy
    total = weights.sum()
    return greatest, greatest + np.log(total), np.argmax(logits), np.log(total) - (weights * below).sum() / total


def _greatest(logits):
    greatest = logits.max()
    if not -np.inf < greatest < np.inf:
        raise ValueError(f"the greatest logit must be a finite number, not {greatest}: is any token allowed?")
    return greatest
