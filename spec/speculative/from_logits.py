r"""Verification from logits: what a serving engine calls after its target's pass.

Paper: Leviathan, Kalman, Matias, 2022, arXiv:2211.17192, Alg. 1 and Sec. 2.2 (sampling methods as a change of both laws); Miao et al.,
2023, arXiv:2305.09781, Sec. 4.3 (trees).

An engine holds logits and each request's settings, not probabilities. What is verified must be the law that is sampled from,

$$p_i = W(l_i), \qquad q_i = W(d_i),$$

with one warp $W$ (temperature, top-k, top-p, min-p) for the target's logits $l$ and the drafter's $d$, at every position and at the bonus
row. Then the rule of `chain` is exact for the warped target. A draft that was not drawn (greedy, copied, retrieved) has no $d$.

| name | paper | shape | meaning |
|---|---|---|---|
| `logits` | | chain `(gamma + 1, V)`, tree `(N, V)` | the target's scores at each position, or after each node, penalized and masked |
| `draft` | $x$ | `(gamma,)` | drafted tokens |
| `draft_logits` | | `(gamma, V)` or None | the drafter's scores that each was drawn from, same settings; None: certain |
| `tokens`, `parents` | | `(N,)` | a token tree; see `match` |
| `T`, `k`, `mass`, `ratio` | | numbers | see `warp` |

Deviations: none in law. A drafter that warps otherwise is as lossless, with the rows of its own warp: use `chain.verify`. Trees are
verified by exact match, which asks for no q and is exact however they were drawn, sorted or pruned.
Derives from: speculative.chain, speculative.warp, speculative.match.
"""

from twofold.spec.speculative import chain, match, warp

__all__ = ["verify", "verify_tree"]


def verify(logits, draft, draft_logits, rng, T=1, k=0, mass=1, ratio=0):
    """The definition: how many draft tokens are kept, and the one token that follows them.

    >>> import numpy as np
    >>> from twofold.spec.rng import Tape
    >>> logits = np.log([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    >>> verify(logits, [1], None, Tape([0.8], [0.9]), k=2)                   # of two tokens the draft has 7 / 9 < 0.8: refused
    (0, 0)
    >>> verify(logits, [1], None, Tape([0.8], [0.9]), T=0)                   # the draft is the likeliest token
    (1, 0)
    """
    p = [warp.pipeline(row, T=T, k=k, mass=mass, ratio=ratio) for row in logits]
    if draft_logits is None:
        return chain.verify_onehot(p, draft, rng)
    return chain.verify(p, [warp.pipeline(row, T=T, k=k, mass=mass, ratio=ratio) for row in draft_logits], draft, rng)


def verify_tree(logits, tokens, parents, rng, T=1, k=0, mass=1, ratio=0):
    """The same for a tree: the accepted path, the root left out, and the token that follows it."""
    return match.verify_tree([warp.pipeline(row, T=T, k=k, mass=mass, ratio=ratio) for row in logits], tokens, parents, rng)
