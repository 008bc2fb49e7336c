r"""Blockwise parallel decoding: extra heads guess a block of tokens, the model's own head keeps the prefix that it could have written.

Paper: Stern, Shazeer, Uszkoreit, "Blockwise Parallel Decoding for Deep Autoregressive Models", 2018, arXiv:1811.03115, Sec. 3 (predict,
verify, accept), 4 (one pass for both), 5.1 (top-k), 5.2 (distance).

Head $k$ of $K$ predicts the token $k$ places ahead, $k = 1$ being the model's ordinary head $p$. One pass over a guessed block gives
$p(\cdot \mid x_{<i})$ at each of its positions, and every head's guesses behind each. The longest prefix is kept in which

$$x_i = \arg\max p_i \quad\text{(exact)}, \qquad x_i \in \text{the } k \text{ likeliest of } p_i, \qquad
|x_i - \arg\max p_i| \le \varepsilon,$$

then follows $\arg\max p_\tau$, the model's own token. That token is head 1's guess, from which the next block starts with the guesses of
heads 2 … K; so a round writes at least one token, whatever the other heads say. With $k = 1$ or $\varepsilon = 0$ the text is that of
greedy decoding; with more it is not, but each token obeys its bound after the prefix that was really written.

| name | paper | shape | meaning |
|---|---|---|---|
| `logits` | $p_1 \dots p_K$ | `(K, V)` | every head's scores at one position |
| `p` | $p_1$ | `(gamma + 1, V)` | the model's own row at each position of the block and behind it; logits serve as well |
| `draft` | $\hat y$ | `(gamma,)` | the guesses, those of heads 2 … K |
| `k`, `eps` | $k$, $\epsilon$ | integer, number | how many of the likeliest count; how far an ordinal token (a pixel's intensity) may lie |

Deviations: ties go to the lowest id, so exactly k tokens are among the k likeliest. The paper counts head 1's guess as the block's first,
which is always accepted; here it is the token that ended the round before. Its minimum block size (Sec. 5.3) is left out.
Derives from: speculative.greedy.
"""

import numpy as np

from twofold.spec.speculative import greedy

__all__ = ["propose", "verify_top_k", "verify_distance"]


def propose(logits):
    """The guess of every head, its likeliest token `(K,)`: the first goes into the text, the others are the next block.

    >>> propose(np.array([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]]))
    [1, 0]
    """
    return [greedy.likeliest(row) for row in logits]


def verify_top_k(p, draft, k):
    """The definition, of which exact acceptance is k = 1: how many guesses stay, and the model's own token behind them.

    >>> p = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    >>> verify_top_k(p, [1], k=1), verify_top_k(p, [1], k=2), verify_top_k(p, [2], k=2)      # ids 1 and 2 tie: 1 is the second
    ((0, 0), (1, 2), (0, 0))
    >>> verify_top_k(p, [], k=1)
    (0, 0)
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return _longest(p, draft, lambda row, token: _rank(row, token) < k)


def verify_distance(p, draft, eps):
    """The same for tokens whose ids are an ordinal scale: a guess may lie up to `eps` from the likeliest token.

    >>> verify_distance(np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]), [1], eps=1)
    (1, 0)
    """
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, not {eps}")
    return _longest(p, draft, lambda row, token: abs(token - greedy.likeliest(row)) <= eps)


def _longest(p, draft, accepts):
    for position, token in enumerate(draft):
        likeliest = greedy.likeliest(p[position])
        if not accepts(p[position], token):
            return position, likeliest
    return len(draft), greedy.likeliest(p[len(draft)])


def _rank(row, token):
    """How many tokens come before this one: the likelier ones, and equals of lower id."""
    return np.sum(row > row[token]) + np.sum(row[:token] == row[token])
