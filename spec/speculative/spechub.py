r"""SpecHub: two drafts, one of them always the drafter's likeliest token, and a coupling that needs no search.

Paper: Sun, Zhou, Chen, Sun, "SpecHub: Provable Acceleration to Multi-Draft Speculative Decoding", 2024, arXiv:2411.05289.

The optimal coupling of two drafts with the target's token is a linear program over all pairs of tokens. Let one token, the hub
$a = \arg\max q$, be in every pair, and few pairs are left: $x$ is drawn from $q$; the second draft is the hub if $x \ne a$, else it comes
from $q$ without the hub. Pairs have the probabilities

$$D(x, a) = q(x), \qquad D(a, x) = \frac{q(a)\,q(x)}{1-q(a)} \qquad (x \ne a).$$

Each pair first serves its token $x$ as far as $p(x)$ reaches, then what is left of all pairs serves the hub:

$$g(x, a) = \min(p(x), D(x, a)), \quad g(a, x) = \min(p(x) - g(x, a), D(a, x)), \quad M = \sum (D - g), \quad \lambda = p(a)/M.$$

Given a pair, take $x$ with probability $g/D$, else the hub with probability $\lambda$, else draw from what is left of $p$ off the hub,
$p - g(\cdot, a) - g(a, \cdot)$. The pairs serve no more than $1 - p(a)$, so $\lambda \le 1$, and the hub gets $\lambda M = p(a)$.

| name | paper | shape | meaning |
|---|---|---|---|
| `p`, `q` | $p$, $q$ | `(V,)` | target and draft law at one position |
| `drafts` | $x_1, x_2$ | `(2,)` or `(1,)` | two distinct tokens, the hub one of them; the hub alone where q is certain |

Deviations: where q(a) = 1 there is one draft, kept with probability p(a). The wording of the rule is from memory; that the token has law p
and that no coupling of these pairs keeps more is proved by the tests.
Derives from: speculative.transport, speculative.rsd.
"""

import numpy as np

__all__ = ["select", "sample"]


def sample(q, rng):
    """Two drafts, the hub one of them; the hub alone where q has no other token.

    >>> from twofold.spec.rng import Tape
    >>> q = np.array([0.5, 0.25, 0.25])
    >>> sample(q, Tape(token=[0.6])), sample(q, Tape(token=[0.1, 0.6]))
    ([1, 0], [0, 2])
    """
    hub, first = int(np.argmax(q)), rng.categorical(q)
    if first != hub:
        return [first, hub]
    others = np.where(np.arange(len(q)) == hub, 0, q)
    return [hub, rng.categorical(others / others.sum())] if others.sum() > 0 else [hub]


def select(p, q, drafts, rng):
    """The definition: the token for one position, and whether it was drafted.

    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([0.25, 0.5, 0.25]), np.array([0.5, 0.25, 0.25])
    >>> select(p, q, [0, 1], Tape(accept=[0.9]))           # both pairs with token 1 serve it: 1/4 and 1/4 are no more than 1/2
    (1, True)
    """
    hub = int(np.argmax(q))
    off = np.arange(len(q)) != hub
    others = np.where(off, q, 0)
    if others.sum() == 0:
        return (hub, True) if rng.bernoulli(p[hub]) else (rng.categorical(_law(np.where(off, p, 0), p)), False)
    if hub not in drafts or len(set(drafts)) != 2 or any(q[token] == 0 for token in drafts):
        raise ValueError(f"drafts must be the hub {hub} and another token that q can have drawn, in any order, not {list(drafts)}")
    first, second = others, q[hub] * others / others.sum()  # D(x, a) and D(a, x)                     (V,)
    serve = np.minimum(np.where(off, p, 0), first)
    serve_again = np.minimum(np.where(off, p, 0) - serve, second)
    token, gain, chance = (drafts[1], serve_again, second) if drafts[0] == hub else (drafts[0], serve, first)
    if rng.bernoulli(gain[token] / chance[token]):
        return token, True
    if rng.bernoulli(p[hub] / (first - serve + second - serve_again).sum()):  # a pair was refused, so something is left
        return hub, True
    return rng.categorical(_law(np.where(off, p, 0) - serve - serve_again, p)), False


def _law(left, p):
    """The rest, normalized; the target itself where rounding left none."""
    return left / left.sum() if left.sum() > 0 else p
