r"""EAGLE: a single layer continues the target's own hidden states, told each time which token was drawn; the target's LM head reads it.

Paper: Li, Wei, Zhang, Zhang, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty", 2024, arXiv:2401.15077,
Sec. 3.1 (drafting), 3.2 (training).

A feature $f_i$ is the target's last hidden state at token $x_i$: the LM head turns it into the law of $x_{i+1}$. It cannot know which
token was drawn from that law, and $f_{i+1}$ depends on it. So the layer is told: at place $i$ it reads the feature and the token after,

$$z_i = \mathrm{FC}\,[\,e(x_{i+1});\, f_i\,], \qquad \hat f_{i+1} = \mathrm{Layer}(z_0 \dots z_i)_i, \qquad
q(\cdot \mid x_{\le i+1}) = \mathrm{softmax}(\mathrm{LMHead}\,\hat f_{i+1}).$$

Drafting goes on with the predicted feature in place of the true one and the drawn token in place of the next. After verification the
target's own features take the place of the predicted ones on the accepted path.

| name | paper | shape | meaning |
|---|---|---|---|
| `features` | $f_0 \dots f_{T-1}$ | `(T, D)` | the target's last hidden states; at least one |
| `tokens` | $x_0 \dots x_T$ | `(T + 1,)` | the text, one token longer than the features; the first is not read |
| `embed`, `lm_head` | $e$, LM head | `(V, D)` | the target's own matrices, frozen |
| `fc` | FC | `(D, 2 D)` | embedding first, feature second |
| `layer` | one decoder layer | `(t, D)` -> `(t, D)` | causal: row i depends on rows 0 … i |
| `q` | $\hat p$ | `(gamma, V)` | the law of each drafted token; the paper calls the target p too |

Deviations: this is a chain; the paper drafts a tree of fixed shape, `layer` under the tree's mask. The matrix FC has no bias. `rng` None
drafts the likeliest token, the lowest id of equals. Loss: means over places and, for the features, over channels.
"""

import numpy as np

__all__ = ["draft", "predict", "loss"]


def draft(features, tokens, embed, fc, layer, lm_head, gamma, rng=None):
    """The definition: the drafted tokens `(gamma,)` and the law that each was drawn from `(gamma, V)`.

    >>> eye = np.eye(2)                                       # a layer that passes on the token it was told, not the feature
    >>> draft(eye[:1], [0, 1], eye, np.hstack([eye, 0 * eye]), lambda z: z, eye[::-1], gamma=3)[0]
    [0, 1, 0]
    >>> draft(eye[:1], [0, 1], eye, np.hstack([eye, 0 * eye]), lambda z: z, eye[::-1], gamma=0)[1].shape
    (0, 2)
    """
    text, drafted, q = list(tokens), [], []
    for _ in range(gamma):
        predicted = predict(features, text + drafted, embed, fc, layer)[-1]             # (D,)
        q.append(softmax(lm_head @ predicted))                                         # (V,)
        drafted.append(choose(q[-1], rng))
        features = np.concatenate([features, predicted[None]])                         # as if it were true
    return drafted, np.stack(q) if q else np.zeros((0, len(lm_head)))


def predict(features, tokens, embed, fc, layer):
    """The predicted features that follow each of the given ones `(T, D)`: row i is f_{i+1}. Training runs on true features throughout."""
    told = np.concatenate([embed[tokens[1:]], features], axis=1)                        # (T, 2 D)
    return layer(told @ fc.T)


def loss(predicted, features, lm_head, weight=0.1):
    """How far predicted features are from the true ones at the same places, both `(T, D)`: SmoothL1, and a little of the laws they give."""
    distance = np.abs(predicted - features)
    smooth = np.where(distance < 1, distance * distance / 2, distance - 0.5).mean()
    p, logits = softmax(features @ lm_head.T), predicted @ lm_head.T                    # (T, V)
    greatest = logits.max(axis=-1)
    log_sum_exp = greatest + np.log(np.exp(logits - greatest[:, None]).sum(axis=-1))    # (T,)
    cross_entropy = (log_sum_exp - (p * logits).sum(axis=-1)).mean()
    return smooth + weight * cross_entropy


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def choose(row, rng):
    """A draw from a row, or its likeliest token where there is no `rng`."""
    if not np.all(row >= 0):
        raise ValueError(f"a row to draft from must hold probabilities, not {row}")
    return int(np.argmax(row)) if rng is None else rng.categorical(row)
