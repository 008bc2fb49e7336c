r"""Speculative cascades: say which mixture of two models is wanted, then speculate for that mixture, exactly.

Paper: Narasimhan, Jitkrittum, Rawat, Kim, Gupta, Menon, Kumar, "Faster Cascades via Speculative Decoding", 2024, arXiv:2405.19261.

A cascade writes with the small model where that is good enough, and defers to the large one elsewhere. After every context the rule
$r \in \{0, 1\}$ decides, and what is written has the law

$$\pi = (1-r)\,q + r\,p, \qquad r = \begin{cases} [\max q < 1 - t] & \text{Chow} \\
[\max q < \max p - t\,\mathrm{TV}(p, q)] & \text{OPT.} \end{cases}$$

A token-specific rule defers on some tokens only, and gives their mass to the large model:

$$\pi(v) = q(v)\,(1 - r(v)) + p(v) \sum_u q(u)\,r(u), \qquad r(v) = [\,p(v) < \max p - t\,].$$

Each is a target law like any other: draft from q, verify against $\pi$ with `chain.verify` (or any lossless rule), and the text has the
law $\pi$ exactly. What is given up against p is the choice of $\pi$, named beforehand; nothing is given up in the sampling.

| name | paper | shape | meaning |
|---|---|---|---|
| `p`, `q` | $p, q$ | `(V,)` | the large and the small model's law at one position, after warping |
| `t` | $\alpha$ | number | the price of deferring: 0 or more; the larger, the more is left to the small model |

Deviations: the rules are as remembered and not checked against the paper's own statement of them, the token-specific one above all. OPT
counts a mistake as 1 and a refusal as t, and takes the cheaper model, each believed about its own mistakes. Ties go to the small model.
Derives from: speculative.chain.
"""

import numpy as np

__all__ = ["chow", "opt", "token_specific"]


def chow(p, q, t):
    """The small model where its likeliest token has a probability of 1 - t at least: only q decides.

    >>> p, q = np.array([0.2, 0.8]), np.array([0.75, 0.25])
    >>> chow(p, q, t=0.25).tolist(), chow(p, q, t=0.2).tolist()
    ([0.75, 0.25], [0.2, 0.8])
    """
    return q if q.max() >= 1 - t else p


def opt(p, q, t):
    """The small model where its likeliest token is likelier than the large one's, but for the price of what would be refused."""
    refused = np.maximum(p - q, 0).sum()  # the total variation: how often a draft from q would be refused by p
    return q if q.max() >= p.max() - t * refused else p


def token_specific(p, q, t):
    """The small model's tokens where the large one finds them nearly as good as its best; the others' mass is drawn from p.

    >>> p, q = np.array([0.5, 0.375, 0.125]), np.array([0.25, 0.25, 0.5])
    >>> token_specific(p, q, t=0.125).tolist()                       # token 2 is not good enough: half of the drafts
    [0.5, 0.4375, 0.0625]
    """
    good = p >= p.max() - t
    return np.where(good, q, 0) + p * np.where(good, 0, q).sum()
