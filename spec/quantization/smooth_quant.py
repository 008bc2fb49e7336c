r"""SmoothQuant: divide each activation channel by a number, multiply its weight column by it, and only then quantize both.

Paper: Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
2022, arXiv:2211.10438, eqs. 3 and 4; the settings O1 to O3 are its table 2 (numbers from memory).

A few channels of the activations are a hundred times larger than the rest, in every token, and one scale per token must span them. A scale
per channel cannot leave an integer sum over channels, but it can move into the weight, whose columns are even:

$$ y = xW^\top = \hat x\hat W^\top, \qquad \hat x_{tk} = x_{tk}/s_k, \qquad \hat W_{nk} = W_{nk}s_k, \qquad
   s_k = \frac{\max_t|x_{tk}|^\alpha}{\max_n|W_{nk}|^{1-\alpha}}. $$

$\alpha = 1$ levels the activations, $\alpha = 0$ the weight, $\alpha = 1/2$ shares the trouble: both maxima become
$\sqrt{\max|x|\max|W|}$. The norm before the layer already multiplies each channel by a weight, so $1/s$ is folded into that weight and
costs nothing. Then both sides become `absmax` codes of 8 bits, and $y \approx (X_8W_8^\top)\cdot s_xs_w$ with an exact integer product.

| name | symbol | shape |
|---|---|---|
| `act_max` | $\max_t\lvert x_{tk}\rvert$, over calibration data | `(K,)` |
| `weight_max` | $\max_n\lvert W_{nk}\rvert$, over all layers that read the same $x$ | `(K,)` |
| `scale` of `fold` | $s$ | `(K,)` |
| `x_codes`, `codes` | $X_8$, $W_8$ | `(T, K)`, `(N, K)` |
| `x_scale`, `scale` | $s_x$, $s_w$ | `(T, 1)` per token or `(1, 1)`; `(N, 1)` per row or `(1, 1)` |

O1: activations per token, on the fly. O2: per tensor, on the fly. O3: per tensor, with a scale from calibration given as `scale`.

Deviations: the weight's maximum and $s$ itself are at least 1e-5, as in the released code; eq. 4 divides by zero for a zero column, and
an activation channel that is always zero would be folded with $1/0$.
"""

import numpy as np

from twofold.spec.quantization import round_to_nearest

__all__ = ["smoothing_scale", "fold", "quantize_activation", "matmul"]

FLOOR = 1e-5


def smoothing_scale(act_max, weight_max, alpha):
    """The divisor of each activation channel.

    >>> smoothing_scale(np.array([64.0, 1.0, 0.0]), np.array([1.0, 4.0, 1.0]), 0.5).tolist()    # the last channel was never active
    [8.0, 0.5, 1e-05]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    if not np.all(np.isfinite(act_max) & np.isfinite(weight_max) & (act_max >= 0) & (weight_max >= 0)):
        raise ValueError("act_max and weight_max must be finite and not negative")
    return np.maximum(act_max**alpha / np.maximum(weight_max, FLOOR) ** (1 - alpha), FLOOR)


def fold(norm_weight, norm_bias, weights, scale):
    """The norm's weight and bias (or None) divided, and the columns of every weight that reads the norm's output multiplied, by `scale`."""
    return norm_weight / scale, None if norm_bias is None else norm_bias / scale, [weight * scale for weight in weights]


def quantize_activation(x, granularity, scale=None):
    """int8 codes and their scale, one per `token` or one per `tensor`; a given scale is used as it is. Rows of a weight are tokens here.

    >>> [values.tolist() for values in quantize_activation(np.array([[127.0, 1.4], [0.0, 0.0]]), "token")]    # a zero row: scale 1
    [[[127, 1], [0, 0]], [[1.0], [1.0]]]
    >>> quantize_activation(np.array([[254.0, -3.0]]), "tensor", np.array([[1.0]]))[0].tolist()    # a static scale clips, ties go to even
    [[127, -3]]
    """
    if granularity not in ("token", "tensor"):
        raise ValueError(f"granularity must be 'token' or 'tensor', not {granularity!r}")
    rows = x if granularity == "token" else x.reshape(1, -1)
    if scale is None:
        scale = round_to_nearest.parameters(rows, 8, None, "absmax")[0] if rows.size else np.ones((len(rows), 1))
    return round_to_nearest.quantize(rows, scale, 0 * scale, 8, None, "absmax").reshape(x.shape), scale


def matmul(x_codes, x_scale, codes, scale, bias=None):
    """The exact integer product, times the product of both scales, plus the bias."""
    return round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale, bias)
