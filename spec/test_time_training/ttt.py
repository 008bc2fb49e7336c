r"""TTT layers: the hidden state is a model, and every token is a training example for it.

Paper: Sun, Li, Dalal, Xu, Vikram, Zhang, Dubois, Chen, Wang, Koyejo, Hashimoto, Guestrin, "Learning to (Learn at Test Time): RNNs with
Expressive Hidden States", 2024, arXiv:2407.04620, Sec. 2.4 (mini-batches), Sec. 2.5 (dual form), Sec. 2.7 (instances), App. A.

A model f with weights W is to turn each key into its value. Weights are trained on the tokens as they come, by gradient descent in
mini-batches: all gradients of a batch are taken at the weights of its start, so that they do not wait for each other, while a token is
answered by the weights that have seen all of the batch up to itself:

$$G_s = \partial\, \tfrac12\lVert f(k_s) - v_s\rVert^2 / \partial (k_s W + b), \qquad
W_t = W - \textstyle\sum_{s \le t} \eta_{ts}\, k_s \otimes G_s, \quad b_t = b - \sum_{s \le t} \eta_{ts}\, G_s, \qquad o_t = f_{W_t}(q_t),$$

with $f(x) = x + \mathrm{LN}(xW + b)$, so that the normed output learns $v - k$. The dual form never makes $W_t$:

$$Z = QW + b - (\eta \odot \mathrm{tril}(QK^\top))\,G - \mathrm{tril}(\eta)\,G.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $\theta_Q x, \theta_K x, \theta_V x$ | `(T, D)`; `v` `(T, V)` without a norm | test view, training view, label |
| `eta` | $\eta$ | `(T, batch)` | step of row t for position s of its own batch |
| `W`, `b` | $W, b$ | `(D, V)`, `(V,)` or None | weights before the first token |
| `ln` | $\gamma, \beta$ | pair of `(V,)` or None | the norm; None also drops residual and bias update: f(x) = xW + b |
| `batch` | $b$ | | tokens per mini-batch; the last one may be short |

Deviations: none known; sections are from memory. The layer's learned step sizes are the caller's.
Derives from: linear_attention.affine (ln = None, batch = 1: the delta rule with beta = eta)
"""

import numpy as np

__all__ = ["primal", "dual", "mlp"]

EPS = 1e-6  # beside the variance


def primal(q, k, v, eta, W, b=None, ln=None, batch=16):
    """The definition: weights after every token. Returns the outputs `(T, V)` and the weights `(W, b)` after the last one.

    >>> one = np.ones((3, 1)); v = np.full((3, 1), 4.0); half = np.full((3, 3), 0.5)
    >>> primal(one, one, v, half, np.zeros((1, 1)), batch=1)[0].ravel().tolist()              # half of what is missing, each time
    [2.0, 3.0, 3.5]
    >>> primal(one, one, v, half, np.zeros((1, 1)), batch=3)[0].ravel().tolist()              # all three gradients at the start
    [2.0, 4.0, 6.0]
    """
    b, outputs = np.zeros(W.shape[1]) if b is None else b, [v[:0]]
    for Q, K, target, steps in _batches(q, k, v, eta, ln, batch):
        G = _gradient(K @ W + b, target, ln)
        for t in range(len(Q)):
            Wt, bt = W - _sum(steps[t], K) @ G, b - (steps[t] @ G if ln else 0)
            outputs.append(_answer(Q[t : t + 1], Q[t : t + 1] @ Wt + bt, ln))
        W, b = Wt, bt
    return np.concatenate(outputs), (W, b)


def dual(q, k, v, eta, W, b=None, ln=None, batch=16):
    """The same as products of matrices: a batch is attention to the batch's own gradients, and one product with its weights."""
    b, outputs = np.zeros(W.shape[1]) if b is None else b, [v[:0]]
    for Q, K, target, steps in _batches(q, k, v, eta, ln, batch):
        G = _gradient(K @ W + b, target, ln)
        Z = Q @ W + b - (steps * (Q @ K.T)) @ G - (steps @ G if ln else 0)
        outputs.append(_answer(Q, Z, ln))
        W, b = W - _sum(steps[-1], K) @ G, b - (steps[-1] @ G if ln else 0)
    return np.concatenate(outputs), (W, b)


def mlp(q, k, v, eta, W1, b1, W2, b2, ln=None, batch=16):
    """The definition for two layers with a GELU (tanh) between: weights `(W1, b1, W2, b2)`, all of them trained."""
    outputs = [v[:0]]
    for Q, K, target, steps in _batches(q, k, v, eta, ln, batch):
        hidden, slope = _gelu(K @ W1 + b1)
        G2 = _gradient(hidden @ W2 + b2, target, ln)
        G1 = (G2 @ W2.T) * slope
        for t in range(len(Q)):
            A1, A2 = W1 - _sum(steps[t], K) @ G1, W2 - _sum(steps[t], hidden) @ G2
            a1, a2 = (b1 - steps[t] @ G1, b2 - steps[t] @ G2) if ln else (b1, b2)
            row = Q[t : t + 1]
            outputs.append(_answer(row, _gelu(row @ A1 + a1)[0] @ A2 + a2, ln))
        W1, b1, W2, b2 = A1, a1, A2, a2
    return np.concatenate(outputs), (W1, b1, W2, b2)


def _batches(q, k, v, eta, ln, batch):
    """Each mini-batch: queries, keys, what the linear part is to give, and steps `(n, n)`, none for later tokens."""
    for start in range(0, len(q), batch):
        Q, K, V, steps = (x[start : start + batch] for x in (q, k, v, eta))
        yield Q, K, V - K if ln else V, np.tril(steps[:, : len(Q)])


def _sum(steps, x):
    return (steps[:, None] * x).T


def _answer(x, z, ln):
    return x + ln[0] * _normed(z)[0] + ln[1] if ln else z


def _gradient(z, target, ln):
    """The gradient by z of half the squared distance of the (normed) output to its target."""
    if not ln:
        return z - target
    unit, deviation = _normed(z)
    y = ln[0] * (ln[0] * unit + ln[1] - target)
    mean = lambda x: np.mean(x, axis=1)[:, None]
    return (y - mean(y) - unit * mean(y * unit)) / deviation


def _normed(z):
    centered = z - np.mean(z, axis=1)[:, None]
    deviation = np.sqrt(np.mean(centered * centered, axis=1) + EPS)[:, None]
    return centered / deviation, deviation


def _gelu(x):
    """GELU by its tanh, and its slope."""
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    t = np.tanh(inner)
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
