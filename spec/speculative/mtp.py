r"""Multi-token prediction: small modules, trained along with the model, each of which predicts one token further than the one before.

Paper: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437, Sec. 2.2, Eq. 21-25.

The main model's states $h^0$ predict the next token. Depth $k$ takes each state of the depth before, tells it the token that this depth
had to predict, and predicts one token further, with the main model's embedding and output head:

$$h'^k_i = M_k\,[\,\mathrm{RMSNorm}(h^{k-1}_i);\ \mathrm{RMSNorm}(e(t_{i+k}))\,], \qquad h^k_i = \mathrm{TRM}_k(h'^k_0 \dots h'^k_i)_i,$$
$$P_k(t_{i+k+1}) = \mathrm{softmax}(\mathrm{Head}\,h^k_i).$$

In training $t$ is the text, so all places are computed at once; of T places the last $k$ have nothing to predict at depth $k$. In drafting
one module plays every depth: the states of all places move one depth further, told the text shifted by one, its last token just drafted.
So the last row of depth $k$ is what training computes there.

| name | paper | shape | meaning |
|---|---|---|---|
| `h` | $h^{k-1}$ | `(n, D)` | states of the depth before, at places 0 … n - 1 |
| `tokens` | $t_{i+k}$ | `(n,)` in `module` | for each place the token that the depth before predicted |
| | $t_0 \dots t_T$ | `(T + 1,)` in `loss` | the text, one token longer than the places |
| `token` | $t_{i+1}$ | `(n,)` | for each place the token after it; the last is the text's last one |
| `embed`, `head` | Emb, OutHead | `(V, D)` | the main model's |
| `m` | $M_k$ | `(D, 2 D)` | state first, embedding second |
| `layer` | $\mathrm{TRM}_k$ | `(n, D)` -> `(n, D)` | one causal Transformer block |
| `probs` | $P_k$ | `(K, T, V)` | the laws of depths 1 … K (the paper's D) at all places |
| `weight` | $\lambda$ | number | of this loss beside the main model's |

Deviations: RMSNorm has no weight, which folds into `m`, and eps 1e-6. Each depth's loss is the mean over its T - k labels; the paper's
formula divides by T (from memory). The paper has one module per depth; the released model has one module, K = 1, which drafts any number.
Derives from: speculative.eagle.
"""

import numpy as np

from twofold.spec.speculative import eagle

__all__ = ["module", "loss", "draft"]


def module(h, tokens, embed, m, layer):
    """The definition: one depth further `(n, D)`."""
    told = np.concatenate([normalize(h), normalize(embed[tokens])], axis=1)             # (n, 2 D)
    return layer(told @ m.T)


def normalize(x):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)


def loss(probs, tokens, weight):
    """The depths' mean cross-entropies, averaged and weighted; a place without a label is not read.

    >>> probs = np.full((2, 2, 4), 0.25)                   # two depths, two places: depth 1 has one label, depth 2 none
    >>> round(float(loss(probs, [0, 1, 2], weight=1.0)), 3), round(float(np.log(4) / 2), 3)
    (0.693, 0.693)
    """
    K, T, _ = probs.shape
    total = 0
    for k in range(1, min(K, T - 1) + 1):
        labels = tokens[k + 1 :]                                                       # (T - k,)
        total = total - np.log(probs[k - 1][np.arange(T - k), labels]).mean()
    return weight / K * total


def draft(h, token, gamma, embed, m, layer, head, rng=None):
    """The drafted tokens `(gamma,)` and the law that each was drawn from `(gamma, V)`; at least one place."""
    told, drafted, q = list(token), [], []
    for _ in range(gamma):
        h = module(h, told, embed, m, layer)
        q.append(eagle.softmax(head @ h[-1]))                                          # (V,)
        drafted.append(eagle.choose(q[-1], rng))
        told = [*told[1:], drafted[-1]]
    return drafted, np.stack(q) if q else np.zeros((0, len(head)))
