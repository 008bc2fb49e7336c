r"""Mixture of heads: attention whose heads are experts, a few of them chosen for each token.

Paper: Jin et al., "MoH: Multi-Head Attention as Mixture-of-Head Attention", 2024, arXiv:2410.11842, Sec. 3.

Multi-head attention is a sum over heads, $\sum_h W^O_h o_h$. A mixture weighs the summands. Some heads are shared, every token uses them;
of the others, the routed ones, each token uses the k that score highest:

$$y = \sum_h g_h\, W^O_h o_h, \qquad [\alpha_1, \alpha_2] = \text{softmax}(W_h x),$$
$$g_h = \alpha_1\,\text{softmax}(W_s x)_h \ \text{(shared)}, \qquad
g_h = \alpha_2\,\text{softmax}(W_r x)_h \ \text{if } h \in \text{top-}k(W_r x), \text{ else } 0 \ \text{(routed)}.$$

Left alone, a router comes to love a few heads. The balance loss is small where the heads that are chosen often are not those with much
probability: $\sum_h f_h P_h$ over the routed heads, f the share of tokens that choose h and P the mean probability of h.

| name | paper | shape | meaning |
|---|---|---|---|
| `x` | $x_t$ | `(N, D)` | tokens |
| `w_h`, `w_s`, `w_r` | $W_h, W_s, W_r$ | `(2, D)`, `(Hs, D)`, `(Hr, D)` | the share of both kinds; scores of shared and of routed heads |
| `k` | $K$ | | routed heads that a token uses |
| `o` | $H^i$ | `(H, N, Dv)` | outputs of the heads, shared ones first |
| `g` | $g_i$ | `(N, H)` | gates |
| `w_o` | $W_O^i$ | `(H, D, Dv)` | output projections |

Deviations: the gates of the chosen heads are not normalized again, as in the text; the released vision models do so, and scale both
kinds. Among equal scores the lowest index is chosen. Section and symbols are from memory.
"""

import numpy as np

__all__ = ["combine", "gates", "balance_loss"]


def combine(o, g, w_o):
    """The definition: the gated sum of the heads' projected outputs `(N, D)`.

    >>> combine(np.ones((2, 1, 1)), np.array([[0.5, 0.0]]), np.array([[[2.0]], [[8.0]]])).tolist()
    [[1.0]]
    """
    return sum(g[:, h, None] * (o[h] @ w_o[h].T) for h in range(len(o)))


def gates(x, w_h, w_s, w_r, k):
    """Gates `(N, Hs + Hr)` of all heads, shared ones first; 0 for routed heads that a token does not use.

    >>> x = np.zeros((1, 1))
    >>> gates(x, np.zeros((2, 1)), np.zeros((1, 1)), np.zeros((4, 1)), 2).tolist()        # ties: the first two
    [[0.5, 0.125, 0.125, 0.0, 0.0]]
    """
    alpha = _softmax(x @ w_h.T)                                       # (N, 2)
    scores = x @ w_r.T                                                # (N, Hr)
    routed = np.where(_chosen(scores, k), _softmax(scores), 0.0)
    return np.concatenate([alpha[:, :1] * _softmax(x @ w_s.T), alpha[:, 1:] * routed], axis=1)


def balance_loss(x, w_r, k):
    """How much probability lies on the heads that are chosen; k / Hr where all heads are equally probable."""
    scores = x @ w_r.T
    return np.sum(np.mean(_chosen(scores, k), axis=0) * np.mean(_softmax(scores), axis=0))


def _chosen(scores, k):
    """Whether a head is among the k highest of its token: fewer than k are higher, or equal and before it."""
    order = np.arange(scores.shape[1])
    higher = (scores[:, None, :] > scores[:, :, None]) | ((scores[:, None, :] == scores[:, :, None]) & (order[None, :] < order[:, None]))
    return np.sum(higher, axis=2) < k                                 # (N, Hr)


def _softmax(s):
    p = np.exp(s - np.max(s, axis=1, initial=-np.inf)[:, None])
    return p / np.sum(p, axis=1)[:, None]
