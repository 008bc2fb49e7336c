r"""The arithmetic of speculation: how many tokens a target call yields, what that saves, and how far to draft.

Paper: Leviathan, Kalman, Matias, 2022, arXiv:2211.17192, Sec. 3.3-3.5: Eq. 1, Thm. 3.8, Cor. 3.9, Thm. 3.11.

If every drafted token is kept with probability $\alpha$, independently, a round of $\gamma$ drafts emits

$$\mathbb{E}[\text{tokens}] = 1 + \alpha + \dots + \alpha^\gamma = \frac{1-\alpha^{\gamma+1}}{1-\alpha}$$

tokens, and takes the time of one target call and $\gamma$ drafter calls.

| name | paper | meaning |
|---|---|---|
| `alpha` | $\alpha = \mathbb{E}[\beta]$ | chance that a drafted token is kept, in [0, 1] |
| `gamma` | $\gamma$ | tokens drafted per round |
| `c` | $c$, in `operations` $\hat c$ | cost of a drafter call over that of a target call: time, or arithmetic per token |

Deviations: the geometric sum is summed, which needs no case for alpha = 1. Theorem numbers are from memory.
Where acceptance varies from place to place, $\mathbb{E}[\alpha^i] \ge \mathbb{E}[\alpha]^i$: the mean alpha under-predicts.
"""

__all__ = ["expected_tokens", "speedup", "operations", "best_gamma"]


def expected_tokens(alpha, gamma):
    """Mean tokens emitted per target call; gamma + 1 where alpha is 1.

    >>> expected_tokens(0.5, 2), expected_tokens(1, 4), expected_tokens(0, 4)
    (1.75, 5, 1)
    """
    return sum(alpha**i for i in range(gamma + 1))


def speedup(alpha, gamma, c):
    """Mean wall-clock gain over decoding one token per call, if a call of gamma + 1 rows costs what a call of one costs."""
    return expected_tokens(alpha, gamma) / (gamma * c + 1)


def operations(alpha, gamma, c):
    """Mean arithmetic per emitted token over that of plain decoding: the price, at least 1 where the drafter is not free of refusals."""
    return (gamma * c + gamma + 1) / expected_tokens(alpha, gamma)


def best_gamma(alpha, c, gamma_max):
    """The draft length in 0 … gamma_max of the greatest `speedup`; the shortest of equals.

    >>> best_gamma(0.8, 0.1, 20), best_gamma(0.3, 0.3, 20)     # drafting pays only where alpha exceeds c
    (6, 0)
    """
    return max(range(gamma_max + 1), key=lambda gamma: (speedup(alpha, gamma, c), -gamma))
