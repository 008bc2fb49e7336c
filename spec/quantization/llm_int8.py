r"""LLM.int8(): int8 by int8 for all columns but the few that hold outliers, which are multiplied in full precision.

Paper: Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022, arXiv:2208.07339,
Sec. 3.1 (vector-wise quantization) and Sec. 3.2 (mixed-precision decomposition; eq. 8, number from memory).

Beyond some billions of parameters, activations have a few columns with values of 6 and more, the same in every token. Let

$$ O = \{k : \exists t,\ |x_{tk}| \ge \theta\}, \qquad \theta = 6. $$

Columns outside $O$ become `absmax` codes of 8 bits: one scale per token, from the columns outside $O$ alone, and one per output channel,
from the whole row of the weight, which is quantized before anybody knows $O$. With $s = \max|\cdot|/127$ of either side,

$$ y_{tn} = s^x_t s^W_n \sum_{k\notin O} X^8_{tk}W^8_{nk} \;+\; \sum_{k\in O} x_{tk}W_{nk} \;+\; b_n. $$

The first sum is an exact integer. $\theta = \infty$ leaves it alone, $\theta = 0$ leaves the second one, which is then $xW^\top$.

| name | symbol | shape |
|---|---|---|
| `x`, `weight` | $x$, $W$ | `(T, K)`, `(N, K)` |
| `columns`, also `exclude` | $k \in O$ | `(K,)`, true or false |
| `x_codes`, `x_scale` | $X^8$, 0 for $k \in O$; $s^x$ | `(T, K)`, `(T, 1)` |
| `codes`, `scale` | $W^8$, $s^W$ | `(N, K)`, `(N, 1)` |

$O$ depends on all tokens together: one token with an outlier changes which columns of its neighbors are rounded, and so their outputs.

Deviations: scales are $c/127$, where the paper stores the maximum $c$ and divides by $127^2$ at the end, and 1 where $c = 0$. Released code
takes $c_t$ over all values below $\theta$, also those inside $O$ (`quantize_as_released`), and once weights are stored as int8 alone reads
the outlier columns from them (`outliers="dequantized"`).
"""

import numpy as np

from twofold.spec.quantization import round_to_nearest

__all__ = ["matmul", "outlier_columns", "quantize", "matmul_decomposed", "quantize_as_released"]


def matmul(x, weight, threshold, outliers="weight", bias=None):
    """The layer: outlier columns read from the `weight`, or `dequantized` from its codes.

    >>> x, weight = np.array([[127.0, 2.4, 9.0]]), np.array([[127.0, 127.0, 0.3]])
    >>> [float(matmul(x, weight, threshold)[0, 0]) for threshold in (np.inf, 0.0)]    # codes say 2 for 2.4 and 0 for 0.3
    [16383.0, 16436.5]
    """
    if outliers not in ("weight", "dequantized"):
        raise ValueError(f"outliers must be 'weight' or 'dequantized', not {outliers!r}")
    columns = outlier_columns(x, threshold)
    codes, scale = quantize(weight)
    return matmul_decomposed(x, columns, *quantize(x, columns), codes, scale, weight if outliers == "weight" else None, bias)


def outlier_columns(x, threshold):
    """The columns in which any token reaches the threshold.

    >>> outlier_columns(np.array([[6.0, -1.0, 0.0], [0.0, 5.9, -7.0]]), 6.0).tolist()
    [True, False, True]
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative or NaN, and is {threshold}")
    return np.any(np.abs(x) >= threshold, axis=0)


def quantize(x, exclude=None):
    """Codes and one scale per row, `(T, 1)`; excluded columns have code 0 and no say in the scale. A row of zeros has the scale 1.

    >>> quantize(np.array([[5.0, 1.0]]), np.array([True, False]))[0].tolist()
    [[0, 127]]
    """
    inliers = x if exclude is None else np.where(exclude, 0, x)
    scale = round_to_nearest.parameters(inliers, 8, None, "absmax")[0] if x.shape[1] else np.ones((len(x), 1))
    return round_to_nearest.quantize(inliers, scale, 0 * scale, 8, None, "absmax"), scale


def matmul_decomposed(x, columns, x_codes, x_scale, codes, scale, weight=None, bias=None):
    """Both sums from codes at hand; `x_codes` are 0 in the outlier `columns`. Without a weight those are read from its codes."""
    kept = codes * scale if weight is None else weight
    y = round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale) + x[:, columns] @ kept[:, columns].T
    return y if bias is None else y + bias


def quantize_as_released(x, threshold):
    """As in the released kernels: the scale of a token also counts its ordinary values in outlier columns, which are then not coded.

    >>> quantize_as_released(np.array([[5.0, 1.0], [7.0, 1.0]]), 6.0)[0].tolist()     # the paper: 127 in both rows
    [[0, 25], [0, 127]]
    """
    _, scale = quantize(np.where(np.abs(x) < threshold, x, 0))
    inliers = np.where(outlier_columns(x, threshold), 0, x)
    return round_to_nearest.quantize(inliers, scale, 0 * scale, 8, None, "absmax"), scale
