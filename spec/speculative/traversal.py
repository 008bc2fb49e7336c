r"""Traversal verification: judge a tree from its leaves up, so that a path is kept or refused as a whole.

Paper: Weng, Hu, Chen, Liu, Mei, Qiu, Tian, Shi, "Traversal Verification for Speculative Tree Decoding", 2025, arXiv:2505.12398.

Verification from the root down gives up a whole subtree at the first refusal. Here a refusal at a leaf falls back to its siblings, then to
its parent. A node carries a weight: the root $a = 1$, a child with token $x$

$$a_{\text{child}} = \min\Bigl(1, \; a\,\frac{P(x)}{Q(x)}\Bigr),$$

where $P, Q$ are its parent's rows as they stand. Descend to first children down to a node that has none left; accept the path to it with
probability $a$, and draw the next token from its $P$. If it is refused, delete it, and change its parent's rows and weight:

$$r = [a P - Q]_+, \quad Z = \sum r, \qquad P \leftarrow \mathrm{norm}(r), \qquad a \leftarrow \frac{Z}{Z + 1 - a},$$

and, without replacement, $Q \leftarrow \mathrm{norm}(Q \text{ without } x)$. On a chain this has the law of block verification, at one
position that of recursive rejection.

| name | paper | shape | meaning |
|---|---|---|---|
| `p`, `q` | $\mathcal M_b$, $\mathcal M_s$ | `(N, V)` | the target's law after each node; the law its children were drawn from |
| `tokens`, `parents` | $X$ | `(N,)` | a token tree, as in `match`; children in the order in which they were drawn |
| `replace` | | bool | whether siblings were drawn independently; else without replacement, as by `sample` |

Deviations: the paper states the rule for both kinds of siblings; where 0/0 stands for a weight it is 1, and the root, whose weight is
always 1, tosses no coin. The wording of the rule is from memory; the laws that the paper claims for it are proved by the tests.
Derives from: speculative.block, speculative.rsd.
"""

import numpy as np

from twofold.spec.speculative import match
from twofold.spec.speculative.rsd import sample, without

__all__ = ["verify_tree", "sample"]


def verify_tree(p, q, tokens, parents, rng, replace=False):
    """The definition: the accepted path without the root, and the token after it.

    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5]] * 3)
    >>> verify_tree(p, q, [-1, 0, 0], [-1, 0, 1], Tape(accept=[0.4], token=[0.7]))           # node 2 has weight 1/2
    ([1, 2], 0)
    >>> verify_tree(p, q, [-1, 0, 0], [-1, 0, 1], Tape(accept=[0.6, 0.4], token=[0.7]))      # then node 1 has no weight left
    ([], 1)
    """
    match.check(tokens, parents)

    def visit(node, weight):
        """Path and token from this node on, or None where it is refused."""
        target, draft = p[node], q[node]  # as they stand                                               (V,)
        for child in (n for n, parent in enumerate(parents) if parent == node):
            x = tokens[child]
            if draft[x] == 0:
                raise ValueError(f"tokens[{child}] = {x} has probability 0 under its law: it was not drawn from it")
            found = visit(child, min(1, weight * target[x] / draft[x]))
            if found:
                return [child, *found[0]], found[1]
            left = np.maximum(weight * target - draft, 0)
            mass = left.sum()
            target = left / mass if mass > 0 else target
            weight = mass / (mass + 1 - weight) if mass + 1 - weight > 0 else 1
            draft = draft if replace else without(draft, x)
        return ([], rng.categorical(target)) if node == 0 or rng.bernoulli(weight) else None

    return visit(0, 1)
