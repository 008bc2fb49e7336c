r"""Warping: from a model's logits to the law that tokens are drawn from. Whatever is verified must be this law, at every position.

Paper: Holtzman, Buys, Du, Forbes, Choi, "The Curious Case of Neural Text Degeneration", 2019, arXiv:1904.09751, Sec. 3.1 (top-p), 5 (top-k,
temperature); repetition penalty: Keskar et al., 2019, arXiv:1909.05858, Sec. 4.1; min-p: Nguyen et al., 2024, arXiv:2407.01082, Sec. 3.

Order: bias, penalties, mask, temperature and softmax, top-k, top-p, min-p; each of the last three keeps some tokens and renormalizes:

$$W(p)(v) = \frac{p(v)\,[v \in K]}{\sum_{u \in K} p(u)}, \qquad K = \begin{cases} \text{the } k \text{ likeliest} \\
\text{the shortest list of likeliest tokens of mass} \ge P \\ \{v : p(v) \ge m \max p\}. \end{cases}$$

| name | paper | shape | meaning |
|---|---|---|---|
| `logits` | $u$ | `(V,)` | the model's scores |
| `counts` | $g$ | `(V,)` | how often each token stands in the context (servers differ on whether the prompt counts) |
| `mask` | | `(V,)` | True where a token is allowed |
| `T`, `k`, `mass`, `ratio` | $t, k, p, p_{base}$ | numbers | temperature; top-k, top-p, min-p, off at 0, 1 (or more), 0 |
| `repetition` | $\theta$ | number | divides a positive logit of a token in the context, multiplies another |
| `presence`, `frequency` | | numbers | subtracted from the logit of a token in the context, once; once per count |

Deviations: ties go to the lowest id, so top-k keeps exactly min(k, V) tokens; top-p keeps the token that crosses and at least one;
T = 0 is the one-hot argmax. Servers order these differently; the order here is a contract of this package, not of the papers.
Section numbers are from memory.
"""

import numpy as np

__all__ = ["pipeline", "along", "temperature", "top_k", "top_p", "min_p", "penalize"]


def pipeline(logits, counts=None, mask=None, T=1, k=0, mass=1, ratio=0, **penalties):
    """The definition: the law `(V,)` that a token is drawn from.

    >>> pipeline(np.log([0.5, 0.25, 0.25]), k=2).round(3).tolist()           # ids 1 and 2 tie: the lower one stays
    [0.667, 0.333, 0.0]
    >>> pipeline(np.array([1.0, 3.0, 3.0]), T=0).tolist()
    [0.0, 1.0, 0.0]
    """
    logits = penalize(logits, np.zeros(len(logits)) if counts is None else counts, **penalties)
    logits = logits if mask is None else np.where(mask, logits, -np.inf)
    return min_p(top_p(top_k(temperature(logits, T), k), mass), ratio)


def along(logits, draft, counts=None, masks=None, **settings):
    """`pipeline` at every position of a drafted chain, the bonus row included `(gamma + 1, V)`: counts grow with the draft.

    `logits` and `masks` are `(gamma + 1, V)`, `draft` is `(gamma,)`, `counts` `(V,)` are those before the draft.
    """
    rows, counts = [], np.zeros(logits.shape[1]) if counts is None else counts
    for i in range(len(draft) + 1):
        rows.append(pipeline(logits[i], counts, None if masks is None else masks[i], **settings))
        counts = counts + (np.arange(len(counts)) == draft[i]) if i < len(draft) else counts
    return np.stack(rows)


def temperature(logits, T):
    """Softmax of logits / T `(V,)`; at T = 0 all mass on the first greatest logit. No finite logit is an error."""
    if not -np.inf < logits.max() < np.inf:
        raise ValueError(f"the greatest logit must be a finite number, not {logits.max()}: is any token allowed?")
    if T == 0:
        return (np.arange(len(logits)) == np.argmax(logits)) * 1.0
    weights = np.exp((logits - logits.max()) / T)
    return weights / weights.sum()


def top_k(p, k):
    """The k likeliest tokens, renormalized `(V,)`; 0 keeps all."""
    return _kept(p, _likeliest_first(p)[:k]) if k else p


def top_p(p, mass):
    """The shortest list of likeliest tokens whose mass reaches `mass`, renormalized `(V,)`; 1 keeps all.

    >>> top_p(np.array([0.5, 0.25, 0.25]), 0.5).tolist()              # reached exactly: nothing more is needed
    [1.0, 0.0, 0.0]
    """
    if mass >= 1:
        return p
    order = _likeliest_first(p)
    short = np.cumsum(p[order]) < mass
    return _kept(p, order[: 1 + short.sum()])  # the crossing token is the last one kept


def min_p(p, ratio):
    """The tokens at least `ratio` times as likely as the likeliest, renormalized `(V,)`; 0 keeps all."""
    return _kept(p, np.flatnonzero(p >= ratio * p.max())) if ratio else p


def penalize(logits, counts, repetition=1, presence=0, frequency=0, bias=None):
    """Logits `(V,)` after bias (added first), repetition penalty, then presence and frequency penalties."""
    logits = logits if bias is None else logits + bias
    repeated = np.where(logits > 0, logits / repetition, logits * repetition)
    return np.where(counts > 0, repeated, logits) - presence * (counts > 0) - frequency * counts


def _likeliest_first(p):
    return np.argsort(-p, kind="stable")


def _kept(p, tokens):
    kept = np.where(np.isin(np.arange(len(p)), tokens), p, 0)
    return kept / kept.sum()
