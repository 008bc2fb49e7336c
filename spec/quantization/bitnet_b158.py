r"""BitNet b1.58: weights that are -1, 0 or 1, activations of 8 bits, and a product without multiplications.

Paper: Ma, Wang, Ma, Wang, Wang, Huang, Dong, Wang, Xue, Wei, "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", 2024,
arXiv:2402.17764, eqs. 1 to 3; activations as in the technical report, Ma et al., "BitNet b1.58 2B4T", 2025, arXiv:2504.12285, Sec. 2
(number from memory).

$$ \gamma = \frac{1}{NK}\sum_{nk}|W_{nk}|, \quad
   \tilde W = \mathrm{clip}\Big(\Big\lfloor\frac{W}{\gamma + \epsilon}\Big\rceil, -1, 1\Big), \quad
   s_t = \frac{\max(\max_k|x_{tk}|,\, \epsilon)}{127}, \quad \tilde x_{tk} = \Big\lfloor\frac{x_{tk}}{s_t}\Big\rceil, \quad
   y_{tn} = \gamma s_t\sum_k \tilde x_{tk}\tilde W_{nk} $$

with $\epsilon = 10^{-5}$ and $\lfloor\cdot\rceil$ rounding half to even: weights below half the mean magnitude become 0, all others keep
their sign alone. The sum adds, subtracts and skips integers. $|\tilde x| \le 127$ (of the eight bits, -128 never occurs), so a sum
over up to 131071 columns is below $2^{24}$ and float32 holds it as well as int32 does.

The model is trained through this layer: rounding has the slope 0 nearly everywhere, so the backward pass takes it for the identity and
differentiates $y = \hat x\hat W^\top$ with $\hat x = s\tilde x$, $\hat W = \gamma\tilde W$ (straight-through), to a full-precision $W$.

| name | symbol | shape |
|---|---|---|
| `x`, `weight` | $x$ (after a norm, which is not part of this), $W$ | `(T, K)`, `(N, K)` |
| `x_codes`, `codes` | $\tilde x$, $\tilde W$ | `(T, K)`, `(N, K)` |
| `scale`, `gamma` | $s$, $\gamma$ | `(T, 1)`, `(1, 1)` |

Deviations: the papers write $\tilde x = \mathrm{clip}(x\cdot 127/\max|x|, -128, 127)$; the scale here is the reciprocal of their factor, a
step as elsewhere in this family. Released training code divides by $\max(\gamma, \epsilon)$ (`ternarize_as_released`).
"""

import numpy as np

from twofold.spec.quantization import round_to_nearest

__all__ = ["linear", "ternarize", "quantize_activation", "matmul", "linear_backward", "ternarize_as_released"]

EPSILON = 1e-5


def linear(x, weight):
    """The layer: both sides to codes, their integer product, both scales.

    >>> linear(np.array([[127.0, -2.0, 1.0]]), np.array([[0.9, 0.1, -0.8]])).round(4).tolist()    # 0.6 (127 - 1)
    [[75.6]]
    """
    codes, gamma = ternarize(weight)
    x_codes, scale = quantize_activation(x)
    return matmul(x_codes, codes) * (scale * gamma)


def ternarize(weight, epsilon=EPSILON):
    """Codes -1, 0 and 1, and the mean magnitude of the whole weight, `(1, 1)`.

    >>> ternarize(np.array([[1.0, 3.0, -1.0, -3.0]]), 0.0)[0].tolist()    # 1 is half the mean: a tie, to the even 0
    [[0, 1, 0, -1]]
    """
    gamma = _mean(weight)
    return _codes(weight, gamma + epsilon), gamma


def ternarize_as_released(weight, epsilon=EPSILON):
    """As in released training code: the mean magnitude is floored, not increased.

    >>> weight = np.full((2, 2), 1e-5)
    >>> ternarize(weight * 0.9)[0].tolist(), ternarize_as_released(weight * 0.9)[0].tolist()
    ([[0, 0], [0, 0]], [[1, 1], [1, 1]])
    """
    gamma = np.maximum(_mean(weight), epsilon)
    return _codes(weight, gamma), gamma


def _mean(weight):
    if not np.all(np.isfinite(weight)):
        raise ValueError("weight must be finite")
    return np.abs(weight).mean(keepdims=True) if weight.size else np.zeros((1, 1))


def _codes(weight, divisor):
    return np.clip(np.rint(weight / np.where(divisor == 0, 1, divisor)), -1, 1).astype(int)


def quantize_activation(x):
    """Codes from -127 to 127, and the step of each token, at least 1e-5 / 127.

    >>> quantize_activation(np.array([[-4.0, 1.0], [0.0, 0.0]]))[0].tolist()
    [[-127, 32], [0, 0]]
    """
    if not np.all(np.isfinite(x)):
        raise ValueError("x must be finite")
    scale = np.maximum(np.abs(x).max(1, keepdims=True, initial=0), EPSILON) / 127
    return round_to_nearest.quantize(x, scale, 0 * scale, 8, None, "absmax"), scale


def matmul(x_codes, codes):
    """The integer product `(T, N)`."""
    return np.asarray(x_codes, np.int64) @ np.asarray(codes, np.int64).T


def linear_backward(x, weight, dy):
    """Straight-through gradients of `linear` in `x` and `weight`."""
    codes, gamma = ternarize(weight)
    x_codes, scale = quantize_activation(x)
    return dy @ (codes * gamma), dy.T @ (x_codes * scale)
