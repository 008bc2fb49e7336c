r"""Block verification: judge a drafted chain as a whole, and keep more of it than one token at a time can.

Paper: Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami, Suresh, "Block Verification Accelerates Speculative Decoding", 2024,
arXiv:2403.10444, Alg. 2.

Every prefix of the draft has a *reach*, the share of its drafted probability that the target has room for, cut at 1 at every step:

$$P_0 = 1, \qquad P_{i+1} = \min\left(1,\; P_i\, \frac{p_i(x_i)}{q_i(x_i)}\right).$$

Each prefix of length $1 \dots \gamma$ has a coin of its own, and the longest whose coin succeeds is kept:

$$h_\gamma = P_\gamma, \qquad h_i = \frac{Z_i}{Z_i + 1 - P_i}, \qquad Z_i = \sum_v [P_i\, p_i(v) - q_i(v)]_+.$$

The token that follows comes from $\mathrm{norm}([P_\tau p_\tau - q_\tau]_+)$, from $p_\gamma$ if everything is kept. The coins are
such that a prefix stays, given that it was drafted, with probability exactly $P_i$. The next token then has law $p_i$: as a drafted one
with probability $\min(q_i, P_i p_i)$, as a drawn one with probability $[P_i p_i - q_i]_+$, together $P_i p_i$.

| name | paper | shape | meaning |
|---|---|---|---|
| `p` | $\mathcal{M}_b$ | `(gamma + 1, V)` | target law at each position, after warping; the last row is the bonus row |
| `q` | $\mathcal{M}_s$ | `(gamma, V)` | the law each draft token was really drawn from |
| `draft` | $X$ | `(gamma,)` | drafted tokens; none is legal and draws from `p[0]` |
| `reach` | $p_i$ | `(gamma + 1,)` | $P_i$: how likely the first i draft tokens are kept, given that they were drafted |
| `kept` | $\tau$ | integer | how many draft tokens are kept |

Deviations: none in law. The coins are drawn from the shortest prefix to the longest, all of them, so that the i-th coin is the i-th
uniform. The paper's symbols are from memory. $P_i = 1$ with $Z_i = 0$ makes $h_i$ 0/0: then $p_i = q_i$ and a longer prefix is kept anyway,
so the coin is called a success. Where $P_i = 0$ nothing beyond can be kept.
Derives from: speculative.chain.
"""

import numpy as np

from twofold.spec.speculative import chain

__all__ = ["verify"]


def verify(p, q, draft, rng):
    """The definition: how many draft tokens are kept, and the one token that follows them.

    Two tokens are refused one by one, yet their product is kept: the first is drafted too often, the second not often enough.

    >>> from twofold.spec.rng import Tape
    >>> p, q = np.array([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.25, 0.75]])
    >>> chain.verify(p, q, [0, 0], Tape(accept=[0.9, 0.9], token=[0.6]))
    (0, 1)
    >>> verify(p, q, [0, 0], Tape(accept=[0.9, 0.9], token=[0.6]))        # reach 1, 1/2, then min(1, 1/2 * 3) = 1
    (2, 1)
    >>> verify(np.array([[0.25, 0.75]]), np.zeros((0, 2)), [], Tape(token=[0.5]))
    (0, 1)
    """
    reach, kept = [1], 0
    for position, token in enumerate(draft):
        if q[position][token] == 0:
            raise ValueError(f"draft[{position}] = {token} has probability 0 under q[{position}]: it was not drawn from q")
        reach = reach + [np.minimum(1, reach[-1] * p[position][token] / q[position][token])]
    for length in range(1, len(draft) + 1):
        if rng.bernoulli(_chance(reach[length], p[length], q[length]) if length < len(draft) else reach[length]):
            kept = length
    if kept == len(draft):
        return kept, rng.categorical(p[kept])
    return kept, rng.categorical(chain.residual(reach[kept] * p[kept], q[kept]))


def _chance(reach, p, q):
    """h: the chance of a prefix's own coin, given the rows after it."""
    left = np.maximum(reach * p - q, 0).sum()
    return 1 if reach == 1 and left == 0 else left / (left + 1 - reach)
