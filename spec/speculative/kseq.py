r"""k-SEQ: sequential selection from independent drafts, nearly as good as optimal transport and as cheap as a ratio test.

Paper: Sun, Suresh, Ro, Beirami, Jain, Yu, "SpecTr: Fast Speculative Decoding via Optimal Transport", 2023, arXiv:2310.15141, Alg. 2,
Thm. 2.

All drafts come from one law $q$, and each is tried against the same, weakened ratio: accept $x$ with probability
$\min(1, p(x)/(\rho\,q(x)))$. One attempt succeeds with probability $\beta$, and then gives token $y$ with probability $m(y)/\beta$:

$$m = \min(q, p/\rho), \qquad \beta = \sum_v m(v), \qquad \Pr(\text{some attempt succeeds}) = 1 - (1-\beta)^k.$$

What is drawn otherwise has to make up the rest, $p - \frac{1-(1-\beta)^k}{\beta}\, m$, normalized. That is a law where it is nowhere
negative, and it is where $1-(1-\beta)^k \le \rho\,\beta$, since $m \le p/\rho$. This holds for every $\rho$ from some $\rho^* \le k$
on, and no lossless ratio keeps more than $\rho^*$ does: below it the residual is negative wherever $m = p/\rho > 0$; and if that
is nowhere, $\beta$ does not depend on $\rho$.

| name | paper | shape | meaning |
|---|---|---|---|
| `p`, `q` | $q$, $p$ (swapped!) | `(V,)` | target and draft law at one position |
| `k`, `drafts` | $k$, $X$ | integer, `(k,)` | the drafts, drawn from q independently |
| `rho` | $\rho$ | number in [1, k] | how much weaker than a ratio test each attempt is |

Deviations: the paper leaves the search for rho open; here it is bisection, which returns the valid end of its interval, so the law stays
exact whatever the number of steps. Where no draft can be kept ($\beta = 0$), the token is drawn from p.
Derives from: speculative.chain, speculative.transport.
"""

import numpy as np

__all__ = ["select", "rho"]

STEPS = 40  # of bisection: the interval ends at k 2^-40, less than any float32 ratio can tell


def select(p, q, drafts, rng):
    """The definition: the token for one position, and whether it was drafted.

    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    >>> select(p, q, [2, 0], Tape(accept=[0.9, 0.3]))       # rho is about 1.29: 0.9 of 0.5 over 0.25 fails, 0.3 of 0.25 over 0.5 does not
    (0, True)
    """
    k = len(drafts)
    ratio = rho(p, q, k)
    for attempt, token in enumerate(drafts):
        if q[token] == 0:
            raise ValueError(f"drafts[{attempt}] = {token} has probability 0 under q: it was not drawn from q")
        if rng.bernoulli(p[token] / (ratio * q[token])):
            return token, True
    once = np.minimum(q, p / ratio)  # what one attempt gives                                            (V,)
    beta = once.sum()
    if beta == 0:
        return rng.categorical(p), False
    left = np.maximum(p - once * ((1 - (1 - beta) ** k) / beta), 0)  # below 0 by rounding only
    return rng.categorical(left / left.sum() if left.sum() > 0 else p), False


def rho(p, q, k):
    """The least ratio in [1, k] that meets the condition, found from above by bisection.

    >>> from fractions import Fraction
    >>> fractions = lambda *weights: np.array([Fraction(w, sum(weights)) for w in weights])
    >>> rho(fractions(3, 1, 2), fractions(1, 1, 4), 2)
    Fraction(3, 2)
    >>> rho(fractions(1, 1), fractions(1, 1), 5)            # equal laws: the first draft is always kept
    1
    """
    if _valid(p, q, k, 1):
        return 1
    low, high = 1, k
    for _ in range(STEPS):
        middle = (low + high) / (p[0] * 0 + 2)  # in the arithmetic of p
        low, high = (low, middle) if _valid(p, q, k, middle) else (middle, high)
    return high


def _valid(p, q, k, ratio):
    """The condition under which what k attempts give is nowhere more than p."""
    beta = np.minimum(q, p / ratio).sum()
    return 1 - (1 - beta) ** k <= ratio * beta
