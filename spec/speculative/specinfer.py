r"""Recursive rejection: several drafts drawn independently for one position, tried one after another, then whole trees of them.

Paper: Miao, Oliaro, Zhang, Cheng, Wang, et al., "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative
Inference and Verification", 2023, arXiv:2305.09781, Alg. 2 (multi-step speculative sampling); the name and the analysis of one level:
Yang, Huang, Dai, Chen, "Multi-Candidate Speculative Decoding", 2024, arXiv:2401.06706.

Each draft is a new attempt of speculative sampling at what the attempts before it left to do. With $r_1 = p$, draft $x_j \sim q_j$ is kept
with probability $\min(1, r_j(x_j)/q_j(x_j))$; where it is refused the law still owed is the residual, and the last one is drawn from:

$$r_{j+1} = \mathrm{norm}([r_j - q_j]_+), \qquad \Pr(\text{all refused}) = \prod_j \mathrm{TV}(r_j, q_j).$$

By induction from the end, the token has law $r_1 = p$: one attempt turns any sampler of $r_{j+1}$ into one of $r_j$. A refused token has no
weight in any later residual, so a repeated draft is refused again, and what is drawn in the end is none of the drafts. On a tree the
attempts at a node are its children, all drawn from `q[node]`.

| name | paper | shape | meaning |
|---|---|---|---|
| `p` | $P_{LLM}$ | `(V,)`, tree `(N, V)` | the target's law at one position, or after each node |
| `qs`, `q` | $P_{SSM_s}$ | `(k, V)`, tree `(N, V)` | the law each draft was drawn from; the law the children of each node were drawn from |
| `drafts` | $\mathcal H$ | `(k,)` | drafted tokens, repetitions allowed, in the order in which they are tried |
| `tokens`, `parents` | $\mathcal N$ | `(N,)` | a token tree, as in `match` |

Deviations: the paper takes the children in random order, this takes them by id. Both are lossless, as is any order that is blind to the
tokens' values; sorting sampled drafts by probability is not.
Derives from: speculative.chain, speculative.match.
"""

from twofold.spec.speculative import chain, match

__all__ = ["select", "verify_tree"]


def select(p, qs, drafts, rng):
    """The definition: the token for one position, and whether it was drafted.

    >>> import numpy as np
    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    >>> select(p, [q, q], [1, 0], Tape(accept=[0.6, 0.9]))      # 0.6 of 1/4 over 1/2; then all that is left is token 0
    (0, True)
    >>> select(p, [], [], Tape(token=[0.9]))
    (2, False)
    """
    left = p  # the law still owed                                                                       (V,)
    for attempt, (q, token) in enumerate(zip(qs, drafts)):
        if q[token] == 0:
            raise ValueError(f"drafts[{attempt}] = {token} has probability 0 under its law: it was not drawn from it")
        if rng.bernoulli(left[token] / q[token]):
            return token, True
        left = chain.residual(left, q)
    return rng.categorical(left), False


def verify_tree(p, q, tokens, parents, rng):
    """Select at every node among its children: the accepted path without the root, and the token after it.

    >>> import numpy as np
    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]), np.array([[0.5, 0.5]] * 3)
    >>> verify_tree(p, q, [-1, 1, 0], [-1, 0, 1], Tape(accept=[0.9, 0.6], token=[0.5]))    # node 1 is kept, its child is not
    ([1], 1)
    """
    return match.walk(tokens, parents, lambda node, drafts: select(p[node], [q[node]] * len(drafts), drafts, rng)[0])
