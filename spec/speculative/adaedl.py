r"""AdaEDL: stop drafting before a token is drawn, where the drafter's row is too spread out.

Paper: Agrawal, Jeon, Lee, "AdaEDL: Early Draft Stopping for Speculative Decoding of Large Language Models via an Entropy-based Lower Bound
on Token Acceptance Probability", 2024, arXiv:2410.18351.

The chance that a drafted token is kept is $1 - \mathrm{TV}(p, q)$, which needs the target's row. The drafter's own entropy estimates it:

$$1 - \mathrm{TV}(p, q) \;\gtrsim\; 1 - \sqrt{c\,H(q)}, \qquad H(q) = -\sum_v q(v) \ln q(v).$$

Drafting ends before position i if the estimate for $q_i$ is below $\lambda$. The row is known before its token is drawn, so the decision
sees no token that it decides about, and the text keeps the target's law with no further care.

| name | paper | shape | meaning |
|---|---|---|---|
| `q` | $q_i$ | `(V,)` | the drafter's law at the position that is about to be drafted |
| `c` | $\gamma$ | number, at least 0 | how much doubt an entropy stands for; fitted |
| `threshold` | $\lambda$ | number | least estimated chance of being kept that is worth a draft |

Deviations: the estimate is a bound for targets that are spread like the drafter is, not for every target; a certain drafter may be certain
and wrong. The paper moves the threshold along with the acceptance that it sees; what this module takes is the threshold of the round, and
any rule that moves it between rounds is as safe. Both statements of the paper are from memory.
"""

import numpy as np

__all__ = ["stop", "bound"]


def stop(q, c, threshold):
    """Whether the draft ends before this position.

    >>> bool(stop(np.array([1.0, 0.0]), c=0.25, threshold=1)), bool(stop(np.array([0.5, 0.5]), c=0.25, threshold=0.75))
    (False, True)
    """
    return bound(q, c) < threshold


def bound(q, c):
    """The estimated chance that a token drawn from this row is kept; below 0 where the row is spread far.

    >>> bound(np.array([0.25, 0.25, 0.25, 0.25]), c=1).round(4)                   # 1 - sqrt(ln 4)
    np.float64(-0.1774)
    """
    if np.any(q != q):
        raise ValueError(f"probabilities must be numbers, not {q}")
    present = np.where(q > 0, q, 1)  # 0 ln 0 = 1 ln 1
    return 1 - np.sqrt(c * -np.sum(present * np.log(present)))
