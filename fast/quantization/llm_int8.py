"""LLM.int8(): int8 by int8, and a few outlier columns in full precision in the same kernel. The definition is
`twofold.spec.quantization.llm_int8`.

`matmul` quantizes the weight in every call. A layer does that once, with `quantize(weight)`, and calls `outlier_columns`, `quantize` and
`matmul_decomposed` for each input. Codes are int8, scales float32, outputs have the dtype of `x`, which the weight shares. Outlier columns
stay on the device: no call waits for their number. The sum over them is float32 and is added before the only cast.

A NaN reaches no threshold: its token gets the scale NaN and codes 0, hence outputs NaN, and no other token changes. An infinity makes its
column an outlier, as any large value does. A weight row that holds either makes its output channel NaN. Nothing here has a gradient.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import int8_matmul
from twofold.fast.quantization import round_to_nearest

__all__ = ["matmul", "outlier_columns", "quantize", "matmul_decomposed"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def matmul(
    x: torch.Tensor, weight: torch.Tensor, threshold: float, outliers: str = "weight", bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`x (T, K)` times `weight (N, K)` transposed, plus `bias (N,)`: outlier columns from the `weight`, or `dequantized` from its codes."""
    checks.shape(x=(x, "T K"), weight=(weight, "N K"))
    if outliers not in ("weight", "dequantized"):
        raise ValueError(f"outliers must be 'weight' or 'dequantized', not {outliers!r}")
    checks.same(x=x, weight=weight)
    columns = outlier_columns(x, threshold)
    codes, scale = quantize(weight)
    return matmul_decomposed(x, columns, *quantize(x, columns), codes, scale, weight if outliers == "weight" else None, bias)


def outlier_columns(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """The columns `(K,)` of `x (T, K)` in which any token reaches the threshold, compared with what is stored."""
    checks.shape(x=(x, "T K"))
    checks.dtypes(*FLOATS, x=x)
    if not threshold >= 0:
        raise ValueError(f"threshold must not be negative or NaN, and is {threshold}")
    if not len(x):
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    largest = torch.where(x.isnan(), -1, x.abs()).amax(0)                                     # -1: a column of NaN reaches nothing
    return largest.double() >= threshold  # in the dtype of x the threshold itself would be rounded


def quantize(x: torch.Tensor, exclude: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of `x (T, K)` and one scale per row, `(T, 1)`; columns that `exclude (K,)` names get code 0 and no say in the scale."""
    checks.shape(x=(x, "T K"), **({} if exclude is None else {"exclude": (exclude, "K")}))
    checks.dtypes(*FLOATS, x=x)
    checks.dtypes(torch.bool, exclude=exclude)
    checks.same_device(x=x, exclude=exclude)
    checks.contiguous(x=x)
    if not x.shape[1]:
        return torch.empty_like(x, dtype=torch.int8), torch.ones((len(x), 1), device=x.device)
    inliers = x if exclude is None else x.masked_fill(exclude, 0)
    return round_to_nearest.encode(inliers, 8, None, "absmax")[:2]


def matmul_decomposed(
    x: torch.Tensor, columns: torch.Tensor, x_codes: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor,
    weight: torch.Tensor | None = None, bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Both sums from codes at hand, in one launch; `x_codes` must be 0 in the outlier `columns (K,)`.

    Without a weight the outlier columns are read from `codes (N, K)` and `scale (N, 1)`.
    """
    optional = ({} if weight is None else {"weight": (weight, "N K")}) | ({} if bias is None else {"bias": (bias, "N")})
    checks.shape(
        x=(x, "T K"), columns=(columns, "K"), x_codes=(x_codes, "T K"), x_scale=(x_scale, "T 1"),
        codes=(codes, "N K"), scale=(scale, "N 1"), **optional,
    )  # fmt: skip
    checks.dtypes(*FLOATS, x=x, x_scale=x_scale, scale=scale, bias=bias)
    checks.dtypes(torch.bool, columns=columns)
    checks.dtypes(torch.int8, x_codes=x_codes, codes=codes)
    checks.same(x=x, weight=weight)
    checks.same_device(x=x, columns=columns, x_codes=x_codes, x_scale=x_scale, codes=codes, scale=scale, bias=bias)
    checks.contiguous(x=x, columns=columns, x_codes=x_codes, codes=codes, weight=weight, bias=bias)
    if x.shape[1] > int8_matmul.MOST_COLUMNS:
        raise ValueError(f"x must have at most {int8_matmul.MOST_COLUMNS} columns, or the int32 sum may overflow, not {x.shape[1]}")
    return int8_matmul.int8(x_codes, x_scale, codes, scale, bias, x.dtype, x, columns, weight)
