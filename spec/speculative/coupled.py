r"""Gumbel coupling: drafter and target sample with the same noise, and the draft is kept where both pick the same token.

Paper: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding", 2024, arXiv:2408.07978 (the
coupling and its match probability); Kobus, Gündüz, "Speculative Sampling via Exponential Races", 2025, arXiv:2504.15475; Rowan, Phan,
Khisti, "List-Level Distribution Coupling with Applications to Speculative Decoding and Lossy Compression", 2025, arXiv:2506.05632 (lists).

With one vector of Gumbel noise $g$ per position of the text, $\arg\max_v (\log p_v + g_v)$ is a draw from $p$. Equivalently, every token
arrives after $E_v / p_v$, $E_v = e^{-g_v} \sim \mathrm{Exp}(1)$, and the first to arrive wins. The drafter holds the same race with its
$q$. Both name token $i$ if no $E_j$ comes before $E_i \max(p_j / p_i,\, q_j / q_i)$, so they agree with probability

$$\Pr(x = y) = \sum_{i:\, p_i, q_i > 0} \Big(\sum_j \max\big(\tfrac{p_j}{p_i}, \tfrac{q_j}{q_i}\big)\Big)^{-1}
\ \ge\ \frac{1-\mathrm{TV}}{1+\mathrm{TV}},$$

less than the $1-\mathrm{TV}$ of a ratio test. But the text is a function of the target and the noise alone: any drafter, any draft
length, any moment to stop gives the same text, token for token, and nobody needs $q$ to verify.

| name | paper | shape | meaning |
|---|---|---|---|
| `gumbel` | $g$ | `(gamma, V)`, verifying `(gamma + 1, V)` | the noise of the positions behind the context, the same for whoever reads it |
| `p`, `q` | $\mathcal P, \mathcal Q$ | `(gamma + 1, V)`, `(V,)` | target's law and draft law; any positive multiple names the same token |
| `draft` | $x$ | `(gamma,)` | drafted tokens, from wherever |
| `races` | $S$ | `(K, V)` | arrival times of K lists, Exp(1) each |

Deviations: a token of probability 0 takes no part, so there is no logarithm of 0. Of equal times the lowest id wins. Authors and titles
of the last two papers are from memory. The residual of a ratio test must never be drawn with this noise: it has decided the draft already.
Derives from: speculative.match.
"""

import numpy as np

__all__ = ["verify", "draft", "match_probability", "lists"]


def verify(p, gumbel, draft):
    """The definition: how many draft tokens the target's own draws repeat, and the draw that did not (or came after all of them).

    >>> p, gumbel = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([[0.0, 1.0], [0.0, 0.0]])
    >>> verify(p, gumbel, [1]), verify(p, gumbel, [0]), verify(p[:1], gumbel[:1], [])
    ((1, 1), (0, 1), (0, 1))
    """
    for position, drafted in enumerate(draft):
        token = _winner(p[position], gumbel[position])
        if token != drafted:
            return position, token
    return len(draft), _winner(p[len(draft)], gumbel[len(draft)])


def draft(drafter, context, gumbel):
    """Tokens drawn one after another from `drafter(context) -> (V,)`, one for each row of the noise that the target will use there.

    >>> draft(lambda context: np.array([0.5, 0.5]), [], np.array([[0.0, 1.0], [0.5, 0.0]]))
    [1, 0]
    """
    tokens = []
    for noise in gumbel:
        tokens = [*tokens, _winner(drafter([*context, *tokens]), noise)]
    return tokens


def match_probability(p, q):
    """The chance that both races name the same token.

    >>> from fractions import Fraction as F
    >>> match_probability(np.array([F(1, 2), F(1, 6), F(1, 3)]), np.array([F(1, 6), F(1, 6), F(2, 3)]))
    Fraction(5, 8)
    """
    common = [i for i in range(len(p)) if p[i] > 0 and q[i] > 0]
    return sum((1 / np.maximum(p / p[i], q / q[i]).sum() for i in common), 0 * p[0])


def lists(p, q, races):
    """One position, K drafts: each list holds its own race for q, the target one for p over the earliest time of each token in any list.

    The earliest of K times is again exponential, so the target's token has law p, and each draft has law q: (token, drafts).

    >>> lists(np.array([0.5, 0.5]), np.array([0.25, 0.75]), np.array([[1.0, 2.0], [3.0, 0.5]]))
    (1, [1, 1])
    """
    return _first(p, races.min(0)), [_first(q, race) for race in races]


def _winner(p, gumbel):
    tokens = _possible(p)
    return int(tokens[np.argmax(np.log(p[tokens]) + gumbel[tokens])])


def _first(p, times):
    tokens = _possible(p)
    return int(tokens[np.argmin(times[tokens] / p[tokens])])


def _possible(p):
    if not np.all(p >= 0) or not np.any(p > 0):
        raise ValueError(f"probabilities must be numbers of at least 0, one of them positive, not {p}")
    return np.flatnonzero(p > 0)
