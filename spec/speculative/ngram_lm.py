r"""An n-gram language model with Witten-Bell smoothing: the cheapest drafter, and a target that a test can afford.

Paper: Witten, Bell, "The zero-frequency problem", 1991, IEEE Trans. Inf. Theory 37(4), method C, as an interpolated back-off;
used as a drafter in Leviathan et al., 2022, arXiv:2211.17192, Sec. 4.

A context that was seen $N(c)$ times with $T(c)$ distinct continuations trusts its own counts, and leaves to the shorter context the mass
that new continuations had so far, one for each that it has met:

$$P_n(v \mid c) = \frac{\mathrm{count}(c, v) + T(c)\,P_{n-1}(v \mid c_{2:})}{N(c) + T(c)}, \qquad P_0(v) = \frac1V.$$

An unseen context says nothing: $P_n = P_{n-1}$. So every token keeps a positive probability after every context.

| name | paper | shape | meaning |
|---|---|---|---|
| `tokens` | | `(T,)` | the training text, ids below V |
| `order` | $n$ | integer, at least 1 | an n-gram looks at the last n - 1 tokens |
| `context` | $c$ | any length | what precedes; only its last order - 1 tokens matter |

Deviations: no padding at the start of the text: the first tokens are counted only after the contexts they have.
"""

from collections import Counter

import numpy as np

__all__ = ["fit", "probs"]


def fit(tokens, order, V):
    """Count every continuation of every context shorter than `order`: the model is (counts by context, order, V)."""
    tokens, counts = tuple(tokens), {}
    for end, token in enumerate(tokens):
        for n in range(min(order - 1, end) + 1):
            counts.setdefault(tokens[end - n : end], Counter())[token] += 1
    return counts, order, V


def probs(model, context, one=1.0):
    """The next token's law `(V,)`, from the shortest context to the longest. `one` sets the arithmetic: Fraction(1) makes it exact.

    >>> probs(fit([0, 1, 0, 0], order=2, V=2), [1]).tolist()      # unigrams (3 + 2/2, 1 + 2/2) / 6; a 0 once followed 1
    [0.8333333333333333, 0.16666666666666666]
    >>> probs(fit([], order=3, V=4), [2, 1]).tolist()             # nothing seen
    [0.25, 0.25, 0.25, 0.25]
    """
    counts, order, V = model
    p = np.array([one / V] * V)
    for n in range(min(order - 1, len(context)) + 1):
        seen = counts.get(tuple(context[len(context) - n :]), Counter())
        if seen:
            count = np.array([seen[v] for v in range(V)])                   # (V,)
            p = (count + len(seen) * p) / (seen.total() + len(seen))
    return p
