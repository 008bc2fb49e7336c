r"""The optimum of several drafts for one position: how often any verifier that keeps the target's law can keep a draft.

Paper: Sun, Suresh, Ro, Beirami, Jain, Yu, "SpecTr: Fast Speculative Decoding via Optimal Transport", 2023, arXiv:2310.15141, Sec. 3 and 4;
the least cut and its closed forms: Khisti, Ebrahimi, Dbouk, Behboodi, Memisevic, Louizos, "Multi-Draft Speculative Sampling: Canonical
Decomposition and Theoretical Limits", 2024, arXiv:2410.18234; Hu, Zheng, Viswanathan, Chen, Rossi, Wu, Manocha, Huang, "Towards Optimal
Multi-draft Speculative Decoding", 2025, arXiv:2502.18779.

A verifier couples the drafts $X_1, \dots, X_k$ with a token $Y \sim p$, and keeps a draft where $Y$ is one of them. The best coupling is an
optimal transport; as what can be kept is a flow from drafts to tokens, its value is a least cut (max-flow, min-cut):

$$\alpha^* = \max \Pr(Y \in \{X_1, \dots, X_k\}) = \min_{A} \; p(A) + 1 - Q_k(A), \qquad Q_k(A) = \Pr(\text{all drafts in } A),$$

for no set $A$ can receive more than $p(A)$, and drafts outside it occur with probability $1 - Q_k(A)$ only. With independent drafts
$Q_k(A) = q(A)^k$; for one draft the cut is $\{v : p(v) < q(v)\}$ and its value $1 - \mathrm{TV}(p, q)$.

| name | paper | shape | meaning |
|---|---|---|---|
| `p`, `q` | $q$, $p$ (swapped!) | `(V,)` | target and draft law at one position |
| `k` | $k$ | integer | drafts, 0 or more |

Deviations: the papers solve a linear program; this looks at all $2^{|V|}$ sets, which is exact on fractions and only meant for small
vocabularies. The bibliographic details and section numbers are from memory.
Derives from: speculative.specinfer, speculative.rsd.
"""

from itertools import combinations

from twofold.spec.speculative import rsd

__all__ = ["optimum", "optimum_without_replacement"]


def optimum(p, q, k):
    """The definition, for k independent drafts: the greatest probability with which one of them can be kept.

    >>> import numpy as np
    >>> p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    >>> float(optimum(p, q, 1)), float(optimum(p, q, 9)), float(optimum(q, q, 1)), float(optimum(p, q, 0))
    (0.5, 0.5, 1.0, 0.0)
    """
    return _least_cut(p, lambda tokens: q[tokens].sum() ** k)


def optimum_without_replacement(p, q, k):
    """The same for k drafts without replacement, as `rsd.sample` draws them.

    >>> import numpy as np
    >>> float(optimum_without_replacement(np.array([0.5, 0.5]), np.array([0.25, 0.75]), 2))       # both tokens are drafted
    1.0
    """
    return _least_cut(p, lambda tokens: _all_inside(q, tokens, k))


def _least_cut(p, inside):
    """The least of p(A) + 1 - inside(A) over all sets A of tokens."""
    sets = [list(tokens) for size in range(len(p) + 1) for tokens in combinations(range(len(p)), size)]
    return min(p[tokens].sum() + 1 - inside(tokens) for tokens in sets)


def _all_inside(q, tokens, k):
    """The probability that k draws without replacement, or as many as q allows, all lie in a set of tokens."""
    if k == 0 or q.sum() == 0:
        return 1
    return sum(q[x] * _all_inside(rsd.without(q, x), tokens, k - 1) for x in tokens if q[x] > 0)
