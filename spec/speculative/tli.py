r"""Token-level intersection: a drafter of another vocabulary, confined to the tokens that both spell alike.

Paper: Timor, Mamou, Korat et al., "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous
Vocabularies", 2025, arXiv:2502.05202, Alg. 4.

Let C be the target's tokens whose string is a token of the drafter too. The drafter's law is restricted to them and renormalized, and
this law is the one that is drawn from *and* verified with, in the target's ids:

$$q'(v) = \frac{q(\mathrm{common}(v))}{\sum_{u \in C} q(\mathrm{common}(u))} \quad (v \in C), \qquad q'(v) = 0 \quad (v \notin C).$$

The ratio test is lossless for any draft law that is really drawn from, so it is for $q'$. Tokens outside C are never drafted; they come
from the residual, and how often is what the intersection costs.

| name | paper | shape | meaning |
|---|---|---|---|
| `q` | $q$ | `(draft vocabulary,)` | the drafter's law |
| `common` | $D \cap T$ | `(V,)` ids | for each of the target's tokens the drafter's id of the same string, -1 where there is none |

Deviations: the law comes back as None where the drafter gives common tokens no mass: then the draft ends before this place. That decision
reads the row and no token, so it may be made. Special tokens must not be common, however they are spelled. Between two tokens the
drafter reads the text so far with its own tokenizer, or the common tokens as they are; either is lossless. The number is from memory.
Derives from: speculative.chain.
"""

import numpy as np

__all__ = ["restrict"]


def restrict(q, common):
    """The law `(V,)` in the target's ids, or None.

    >>> q = np.array([0.5, 0.25, 0.25])                # say, of "b", "a", "ba"
    >>> restrict(q, np.array([1, 0, -1])).round(3).tolist(), restrict(q, np.array([-1, -1, -1]))     # of "a", "b", "ab"; of others
    ([0.333, 0.667, 0.0], None)
    """
    shared = np.where(common >= 0, q[common], 0)  # (V,); what -1 picks is not used
    mass = shared.sum()
    return shared / mass if mass > 0 else None
