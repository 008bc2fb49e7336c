r"""Recursive rejection of drafts drawn without replacement: no draft is wasted on a token that was refused before.

Paper: Jeon, Gagrani, Goel, Park, Lee, Lott, "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
2024, arXiv:2402.14160, Alg. 1; Chen, May, Svirschevski, Huang, Ryabinin, Jia, Chen, "Sequoia", 2024, arXiv:2402.12374, Alg. 2.
The race: Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", 2019, arXiv:1903.06059.

A refused token has no weight left in the residual. A draft law that can still propose it does so in vain. So draw distinct drafts, each
from what the ones before it left of $q$, and verify each against the law it was really drawn from:

$$q_1 = q, \qquad q_{j+1} = \mathrm{norm}(q_j \text{ without } x_j), \qquad r_{j+1} = \mathrm{norm}([r_j - q_j]_+).$$

Once the drafts cover the support of $p$ one of them is kept. In one step instead of $k$: let every token $v$ run for a time
$E_v / q(v)$, with $E_v$ independent and exponential; the first $k$ to arrive are the drafts, in that order (Gumbel-top-$k$, as
$-\log$ of the time is $\log q(v)$ plus Gumbel noise).

| name | paper | shape | meaning |
|---|---|---|---|
| `p`, `q` | $q$, $p$ (swapped!) | `(V,)`, tree `(N, V)` | the laws at one position, or after each node; q as it was before any draw |
| `k` | $K$ | integer | drafts wanted; fewer come where q has fewer tokens |
| `drafts` | $\tilde X$ | `(k,)` | distinct tokens in the order in which they were drawn |
| `noise` | $E$ | `(V,)` | independent exponential variables of mean 1 |
| `tokens`, `parents` | | `(N,)` | a token tree, as in `match`; the children of a node, by id, are its drafts |

Deviations: where the support of q is exhausted, drafting stops; Sequoia goes on uniformly over the tokens not yet tried, which is as
lossless if both sides do it. The paper's other tree (a beam over whole sequences, RSD-S) is not told here.
Derives from: speculative.specinfer.
"""

import numpy as np

from twofold.spec.speculative import match, specinfer

__all__ = ["sample", "race", "select", "verify_tree"]


def sample(q, k, rng):
    """The definition of the drafts: k tokens one after another, each from q without those before it.

    >>> from twofold.spec.rng import Tape
    >>> sample(np.array([0.5, 0.25, 0.25]), 2, Tape(token=[0.1, 0.4]))       # 0 is drawn; then 1 and 2 have 1/2 each
    [0, 1]
    >>> sample(np.array([0.0, 1.0]), 2, Tape(token=[0.1]))                   # nothing else can be drawn
    [1]
    """
    drafts = []
    while len(drafts) < k and q.sum() > 0:
        drafts = [*drafts, rng.categorical(q)]
        q = without(q, drafts[-1])
    return drafts


def race(q, k, noise):
    """The same law in one step: the first k of the times `noise / q`, ties by id.

    >>> race(np.array([0.5, 0.25, 0.0, 0.25]), 3, np.array([3.0, 1.0, 0.1, 2.0]))        # 6, 4, never, 8
    [1, 0, 3]
    """
    runners = np.flatnonzero(q)
    return runners[np.argsort(noise[runners] / q[runners], kind="stable")[:k]].tolist()


def select(p, q, drafts, rng):
    """The token for one position and whether it was drafted: each draft is tried against the law it was drawn from.

    >>> from twofold.spec.rng import Tape
    >>> select(np.array([0.0, 0.5, 0.5]), np.array([0.5, 0.25, 0.25]), [0, 1], Tape(accept=[0.0, 0.9]))    # r and q are equal then
    (1, True)
    """
    laws = [q]
    for token in drafts:
        laws = [*laws, without(laws[-1], token)]
    return specinfer.select(p, laws, drafts, rng)


def verify_tree(p, q, tokens, parents, rng):
    """Select at every node among its children: the accepted path without the root, and the token after it."""
    return match.walk(tokens, parents, lambda node, drafts: select(p[node], q[node], drafts, rng)[0])


def without(q, token):
    """q with one token taken out, normalized `(V,)`; all zero where it was the last one."""
    rest = np.where(np.arange(len(q)) == token, 0, q)
    return rest / rest.sum() if rest.sum() > 0 else rest
