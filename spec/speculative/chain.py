r"""Speculative decoding: keep a drafted chain of tokens as far as the target law allows, and lose nothing.

Paper: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", 2022,
arXiv:2211.17192, Alg. 1, App. A.1 and A.5; the same rule in Chen et al., 2023, arXiv:2302.01318, Alg. 2, Thm. 1.

A drafted token $x$ is kept with probability $\min(1, p(x)/q(x))$. Where it is refused, one token is drawn from what the
draft law leaves uncovered, the residual $\mathrm{norm}([p-q]_+)$; where all are kept, one more comes from the last row of $p$:

$$\Pr(y) = \underbrace{\min(p(y), q(y))}_{\text{drafted and kept}} + \underbrace{\Pr(\text{refused})}_{\sum[p-q]_+}\;
\frac{[p(y)-q(y)]_+}{\sum[p-q]_+} = p(y).$$

Every emitted token has law $p$ given what precedes it, whatever $q$ is. A drafted one is kept with probability
$\alpha = \sum_v \min(p, q) = 1-\mathrm{TV}(p,q)$.

| name | paper | shape | meaning |
|---|---|---|---|
| `p` | $p$ | `(gamma + 1, V)` | target law at each position, after warping; the last row is the bonus row |
| `q` | $q$ | `(gamma, V)` | the law each draft token was really drawn from |
| `draft` | $x$ | `(gamma,)` | drafted tokens; none is legal and draws from `p[0]` |
| `lenience` | $l$ | number in (0, 1] | how far the law may stray: no token becomes more than 1/l times as likely |

Deviations: none in law. The paper's uniform is `rng.bernoulli`, whose argument may exceed 1. Chen et al. call the target q and the draft p.
A token with q(x) = 0 cannot have been drawn from q: an error. Lenience is the paper's A.5 for sampling, applied to ratio and residual
alike; the bound p' <= p/l is proved by the tests, the paper's wording of it is from memory.
"""

import numpy as np

__all__ = ["verify", "verify_onehot", "verify_lenient"]


def verify(p, q, draft, rng):
    """The definition: how many draft tokens are kept, and the one token that follows them.

    Generic over floats and `fractions.Fraction`: under an enumerating `rng` the return value's exact law comes out.

    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([[0.5, 0.5]])
    >>> verify(p, q, [0], Tape(accept=[0.4], token=[0.9]))       # 0.4 < 0.25 / 0.5: kept, and a bonus token from p[1]
    (1, 1)
    >>> verify(p, q, [0], Tape(accept=[0.6], token=[0.1]))       # refused: only token 1 is likelier under p than under q
    (0, 1)
    """
    for position, token in enumerate(draft):
        if q[position][token] == 0:
            raise ValueError(f"draft[{position}] = {token} has probability 0 under q[{position}]: it was not drawn from q")
        if not rng.bernoulli(p[position][token] / q[position][token]):  # a probability above 1 always succeeds
            return position, rng.categorical(residual(p[position], q[position]))
    return len(draft), rng.categorical(p[len(draft)])


def verify_onehot(p, draft, rng):
    """The same for a draft that was certain (greedy, copied, retrieved): q is one-hot at each draft token, so nobody need store it.

    >>> from twofold.spec.rng import Tape
    >>> verify_onehot(np.array([[0.5, 0.5], [1.0, 0.0]]), [0], Tape(accept=[0.5], token=[0.0]))      # 0.5 < p(x) = 0.5 fails
    (0, 1)
    """
    for position, token in enumerate(draft):
        if not rng.bernoulli(p[position][token]):
            certain = np.arange(len(p[position])) == token  # the draft law                              (V,)
            return position, rng.categorical(residual(p[position], certain))
    return len(draft), rng.categorical(p[len(draft)])


def verify_lenient(p, q, draft, lenience, rng):
    """Keep more and lose a little: l q in place of q, in the ratio and in the residual. `lenience` 1 is `verify`.

    The law of a token becomes min(q, p / l) + Pr(refused) norm([p - l q]_+), which is at most p / l everywhere.
    """
    return verify(p, [lenience * row for row in q], draft, rng)


def residual(p, q):
    """What the draft law leaves of the target law, normalized `(V,)`; the target itself where nothing is left."""
    left = np.maximum(p - q, 0)
    mass = left.sum()
    return p if mass == 0 else left / mass  # mass is 0 only where refusal has probability 0: rounding brought us here
