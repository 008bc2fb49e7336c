r"""Typical acceptance: keep what the target finds plausible, by a threshold that falls where the target itself is undecided.

Paper: Cai, Li, Geng, Peng, Lee, Chen, Dao, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024,
arXiv:2401.10774, Sec. 2.3.1; the idea of a typical token: Hewitt, Manning, Liang, 2022, arXiv:2210.15191.

A drafted token is accepted where the target gives it more than a threshold, a constant or a share of its own certainty:

$$p(x) > \min\left(\varepsilon,\; \delta\, e^{-H(p)}\right), \qquad H(p) = -\sum_v p(v) \ln p(v).$$

$e^{H}$ is the number of equally likely tokens that would leave the target as undecided, so $\delta e^{-H}$ is $\delta$ times the
probability of one of these. Of a tree, a node is accepted if its parent is and its token passes at its parent's row. The longest accepted
path is kept, and the target's likeliest token follows it. No coin is tossed, and the text does *not* have the target's law: a plausible
draft is kept whenever it comes, and the last token of a round is greedy.

| name | paper | shape | meaning |
|---|---|---|---|
| `p` | $p_{\text{original}}$ | `(V,)`; tree `(N, V)` | the target's law at a position; after each node |
| `tokens`, `parents` | | `(N,)` | a token tree: node 0, parent -1, is the last token written; parents precede children |
| `eps` | $\epsilon$ | number | the threshold where the target is sure; 0.09 in the released code |
| `delta` | $\delta$ | number | what share of certainty is asked elsewhere; 0.3 there, about the root of `eps` |

Deviations: the first token of a round is greedy in the paper; here it is the last one of the round before, node 0, which the verifier has
drawn already. The released code adds 1e-5 inside the logarithm, which lets the entropy of a certain row be slightly negative; here 0 ln 0
is 0. Of equally long paths the one of greater $\sum \ln p$ is kept, then the one that ends in the lowest id.
The 1e-5 of the released code is from memory.
Derives from: speculative.greedy.
"""

import numpy as np

from twofold.spec.speculative import greedy

__all__ = ["verify_tree", "threshold"]


def verify_tree(p, tokens, parents, eps, delta):
    """The definition: the longest accepted path, node ids without the root, and the likeliest token after it.

    >>> p = np.array([[0.5, 0.45, 0.05], [0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    >>> verify_tree(p, [-1, 1, 0], [-1, 0, 1], eps=0.09, delta=0.3)          # 0.45 at the root, then 0.25
    ([1, 2], 0)
    >>> verify_tree(p, [-1, 2, 1], [-1, 0, 0], eps=0.09, delta=0.3)          # 0.05 is not enough; its sibling has 0.45
    ([2], 0)
    >>> verify_tree(p[2:], [-1], [-1], eps=0.09, delta=0.3)
    ([], 0)
    """
    if len(parents) != len(tokens) or parents[0] != -1 or any(not 0 <= parents[n] < n for n in range(1, len(parents))):
        raise ValueError(f"parents must be -1 and then ids lower than the node's own, one per token, not {list(parents)}")
    path, score, least = {0: []}, {0: 0}, {0: threshold(p[0], eps, delta)}  # of the accepted nodes
    for node, parent in enumerate(parents):
        if parent in path and p[parent][tokens[node]] > least[parent]:
            path[node], score[node] = [*path[parent], node], score[parent] + np.log(p[parent][tokens[node]])
            least[node] = threshold(p[node], eps, delta)
    last = max(path, key=lambda node: (len(path[node]), score[node], -node))
    return path[last], greedy.likeliest(p[last])


def threshold(p, eps, delta):
    """What a token's probability must exceed.

    >>> threshold(np.array([1.0, 0.0]), eps=0.09, delta=0.3), threshold(np.full(8, 1 / 8), eps=0.09, delta=0.3).round(4)
    (np.float64(0.09), np.float64(0.0375))
    """
    if not (eps >= 0 and delta >= 0):
        raise ValueError(f"eps and delta must be at least 0, not {eps} and {delta}")
    if np.any(p != p):
        raise ValueError(f"probabilities must be numbers, not {p}")
    present = np.where(p > 0, p, 1)  # 0 ln 0 = 1 ln 1
    return np.minimum(eps, delta * np.exp(np.sum(present * np.log(present), axis=-1)))
