r"""Exact match: draw the target's own token, and keep the draft where it guessed that token.

Paper: Miao, Oliaro, Zhang, Cheng, Wang, et al., "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative
Inference and Verification", 2023, arXiv:2305.09781, Sec. 4.3 (naive sampling, the baseline there).

The target draws $y \sim p(\cdot \mid c)$ as if nobody had drafted. Where a drafted token equals $y$ its row is already scored, so the
walk goes on from there; where none does, $y$ ends the round. The text is the target's for *any* draft: sampled, copied, chosen from a
list, sorted, pruned, as long as the draft does not depend on the target's coins. The price is the chance of a match: with drafts $C$

$$\Pr(\text{match}) = \sum_v p(v)\,\Pr(v \in C), \qquad\text{for one draft from } q:\ \sum_v p(v)\,q(v) \le \sum_v \min(p(v), q(v)).$$

Where the drafts are certain (the $k$ likeliest tokens), nothing is lost: one-hot drafts verified one by one, each with its own coin,
keep the same tokens with the same law (`sequential`).

| name | paper | shape | meaning |
|---|---|---|---|
| `p` | $P_{LLM}$ | chain `(gamma + 1, V)`, tree `(N, V)`, one position `(V,)` | the target's law at each position, or after each node |
| `draft`, `drafts` | | `(gamma,)`, `(k,)` | a chain of tokens; distinct tokens for one position |
| `tokens`, `parents` | $\mathcal N$ | `(N,)` | a token tree: node 0, parent -1, is the last token written; parents precede children |

Deviations: none in law. The paper states the tree; a chain is a tree of width 1. Of equal siblings the lowest id is followed.
Derives from: speculative.chain.
"""

import numpy as np

from twofold.spec.speculative import chain

__all__ = ["verify", "verify_tree", "sequential", "walk"]


def verify(p, draft, rng):
    """The definition: how many draft tokens the target's own draws repeat, and the draw that did not (or came after all of them).

    >>> from twofold.spec.rng import Tape
    >>> p = np.array([[0.5, 0.5], [0.25, 0.75]])
    >>> verify(p, [0], Tape(token=[0.4, 0.3])), verify(p, [1], Tape(token=[0.4]))
    ((1, 1), (0, 0))
    """
    for position, drafted in enumerate(draft):
        token = rng.categorical(p[position])
        if token != drafted:
            return position, token
    return len(draft), rng.categorical(p[len(draft)])


def verify_tree(p, tokens, parents, rng):
    """The same on a tree: the nodes that the target's draws run through, the root left out, and the draw that leaves the tree.

    >>> from twofold.spec.rng import Tape
    >>> p = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    >>> verify_tree(p, [-1, 0, 1], [-1, 0, 0], Tape(token=[0.6, 0.2]))      # token 1 is node 2, which has no child
    ([2], 0)
    >>> verify_tree(p[:1], [-1], [-1], Tape(token=[0.6]))                   # nothing was drafted
    ([], 1)
    """
    return walk(tokens, parents, lambda node, drafts: rng.categorical(p[node]))


def sequential(p, drafts, rng):
    """One position, drafts tried one by one: accept with the probability that is left to it, else take it out of the law.

    The token and whether it was drafted, with the same joint law as one draw from p and a look whether it is among the drafts.

    >>> from twofold.spec.rng import Tape
    >>> sequential(np.array([0.5, 0.25, 0.25]), [0, 1], Tape(accept=[0.6, 0.4]))        # refused at 1/2; then 1/4 of 1/2 is 1/2
    (1, True)
    """
    if len(set(drafts)) < len(drafts):
        raise ValueError(f"drafts must be distinct, not {list(drafts)}: what was refused once has no probability left")
    left = p
    for token in drafts:
        if rng.bernoulli(left[token]):
            return token, True
        left = chain.residual(left, np.arange(len(p)) == token)
    return rng.categorical(left), False


def walk(tokens, parents, choose):
    """Down a tree from its root: `choose(node, drafts)` gives the next token; follow the first child that bears it, while there is one.

    `drafts` are the tokens of the node's children by id. Every tree verifier is this walk, with its own way to choose.
    """
    check(tokens, parents)
    path = [0]
    while True:
        children = [n for n, parent in enumerate(parents) if parent == path[-1]]
        token = choose(path[-1], [tokens[n] for n in children])
        child = next((n for n in children if tokens[n] == token), None)
        if child is None:
            return path[1:], token
        path = [*path, child]


def check(tokens, parents):
    """Refuse what is no tree in order."""
    if len(parents) != len(tokens) or parents[0] != -1 or any(not 0 <= parents[n] < n for n in range(1, len(parents))):
        raise ValueError(f"parents must be -1 and then ids lower than the node's own, one per token, not {list(parents)}")
