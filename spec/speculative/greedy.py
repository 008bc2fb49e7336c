r"""Greedy verification: keep a draft for as long as each token is the target's likeliest, and add the target's own next one.

Paper: Stern, Shazeer, Uszkoreit, "Blockwise Parallel Decoding for Deep Autoregressive Models", 2018, arXiv:1811.03115, Sec. 3; Xia, Ge,
Wang, Chen, Wei, Sui, "Speculative Decoding: Exploiting Speculative Execution for Accelerating Seq2seq Generation", 2022,
arXiv:2203.16487, Sec. 3.

Greedy decoding writes $g_t = \arg\max_v p(v \mid g_{<t})$. A draft $x$ behind a greedy text is kept as far as it is that text, and the row
in which it first differs already holds the token that should have stood there:

$$\tau = \max\,\{\,i \le \gamma : x_j = \arg\max_v p_j(v) \text{ for all } j < i\,\}, \qquad y = \arg\max_v p_\tau(v).$$

So a round emits $\tau + 1$ tokens of the greedy text, whatever the drafter is. No coin is tossed, and the drafter's law is not needed.

| name | paper | shape | meaning |
|---|---|---|---|
| `p` | $p_1$ | `(gamma + 1, V)` | the target's probabilities or logits at each position, of which only the order counts |
| `draft` | $\hat y$ | `(gamma,)` | drafted tokens; none is legal |
| `kept` | $\hat k$ | integer | how many are kept |

Deviations: Stern et al. count the token that follows as the first of the next block. Xia et al. accept more, a token among the likeliest
few whose score is near the best; that is not greedy decoding any more, and another rule. Of equal tokens the lowest id is the likeliest,
and the loop that is to be reproduced must say so too. Section numbers are from memory.
Derives from: speculative.chain, for a target at temperature 0.
"""

import numpy as np

__all__ = ["verify"]


def verify(p, draft):
    """The definition: how many draft tokens are kept, and the one token that follows them.

    >>> p = np.array([[1.0, 3.0, 0.0], [2.0, 0.0, 2.0], [0.0, 1.0, 9.0]])
    >>> verify(p, [1, 0]), verify(p, [1, 2]), verify(p, [0, 0]), verify(p[:1], [])          # ids 0 and 2 tie in row 1: 0 it is
    ((2, 2), (1, 0), (0, 1), (0, 1))
    """
    kept = 0
    while kept < len(draft) and draft[kept] == likeliest(p[kept]):
        kept = kept + 1
    return kept, likeliest(p[kept])


def likeliest(row):
    """The first greatest entry; a row without one, with a NaN or with nothing above minus infinity, is an error."""
    if not row.max() > -np.inf:
        raise ValueError(f"the greatest entry of a row must be a number above minus infinity, not {row.max()}")
    return int(np.argmax(row))
