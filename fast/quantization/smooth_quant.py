"""SmoothQuant: fold a scale per channel into norm and weights, then multiply int8 by int8. The definition is
`twofold.spec.quantization.smooth_quant`.

`smoothing_scale` and `fold` run once, before inference: the scale is computed in float64 and rounded to the dtype of `act_max`, the folded
weights in float32 and rounded once to their own. Smoothing that a dtype cannot hold is an error that names the channel, not an infinity.

Codes are int8, scales float32. A token (for `tensor` the whole matrix) that holds a NaN or an infinity gets the scale NaN and codes 0, so
its outputs are NaN and no other token's are; under a given scale only the code of that element is 0. Nothing here has a gradient.
"""

from collections.abc import Sequence

import torch

from twofold.fast import checks
from twofold.fast.quantization import round_to_nearest

__all__ = ["smoothing_scale", "fold", "quantize_activation", "matmul"]

FLOOR = 1e-5
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def smoothing_scale(act_max: torch.Tensor, weight_max: torch.Tensor, alpha: float) -> torch.Tensor:
    """The divisor `(K,)` of each activation channel, from the largest magnitudes `(K,)` of activations and of weights."""
    checks.shape(act_max=(act_max, "K"), weight_max=(weight_max, "K"))
    checks.dtypes(*FLOATS, act_max=act_max, weight_max=weight_max)
    checks.same_device(act_max=act_max, weight_max=weight_max)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    for name, values in (("act_max", act_max), ("weight_max", weight_max)):
        if not (values.isfinite() & (values >= 0)).all():
            raise ValueError(f"{name} must be finite and not negative: it holds largest magnitudes")
    scale = act_max.double() ** alpha / weight_max.double().clamp(min=FLOOR) ** (1 - alpha)
    return scale.clamp(min=FLOOR).to(act_max.dtype)


def fold(
    norm_weight: torch.Tensor, norm_bias: torch.Tensor | None, weights: Sequence[torch.Tensor], scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Tensor]]:
    """The norm's weight and bias `(K,)` divided, and the columns of every weight `(N, K)` multiplied, by `scale (K,)`."""
    named = {"norm_weight": (norm_weight, "K")} | ({} if norm_bias is None else {"norm_bias": (norm_bias, "K")})
    checks.shape(**named, scale=(scale, "K"))
    for i, weight in enumerate(weights):
        checks.shape(scale=(scale, "K"), **{f"weights[{i}]": (weight, "N K")})
    given = {name: tensor for name, (tensor, _) in named.items()} | {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    checks.dtypes(*FLOATS, scale=scale, **given)
    checks.same_device(scale=scale, **given)
    if not (scale > 0).all():
        raise ValueError("scale must be positive: it divides the norm's weight")
    folded = {name: (x.float() / scale.float() if x.ndim == 1 else x.float() * scale.float()).to(x.dtype) for name, x in given.items()}
    for name, values in folded.items():
        if lost := (~values.isfinite()).reshape(-1, len(scale)).any(0).nonzero().flatten().tolist():
            where = f"channel {lost[0]}, where scale is {float(scale[lost[0]])}"
            raise ValueError(f"{name} must stay finite in {values.dtype} when smoothed, and does not at {where}")
    return folded["norm_weight"], folded.get("norm_bias"), [folded[f"weights[{i}]"] for i in range(len(weights))]


def quantize_activation(x: torch.Tensor, granularity: str, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of `x (T, K)` and their scale, `(T, 1)` per `token` or `(1, 1)` per `tensor`; a given scale is used as it is."""
    checks.shape(x=(x, "T K"))
    checks.dtypes(*FLOATS, x=x, scale=scale)
    checks.contiguous(x=x)
    if granularity not in ("token", "tensor"):
        raise ValueError(f"granularity must be 'token' or 'tensor', not {granularity!r}")
    rows = x if granularity == "token" else x.reshape(1, -1)
    if scale is not None:
        checks.shape(scale=(scale, f"{len(rows)} 1"))
    elif rows.numel():
        codes, scale, _ = round_to_nearest.encode(rows, 8, None, "absmax")
        return codes.reshape(x.shape), scale
    else:
        scale = torch.ones((len(rows), 1), device=x.device)
    if not rows.numel():
        return torch.empty(x.shape, dtype=torch.int8, device=x.device), scale
    return round_to_nearest.quantize(rows, scale, torch.zeros_like(scale), 8, None, "absmax").reshape(x.shape), scale


def matmul(
    x_codes: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None,
    *, dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    """The exact product of `x_codes (T, K)` with `codes (N, K)` transposed, times both scales, plus `bias (N,)`, cast once."""
    checks.shape(x_codes=(x_codes, "T K"), codes=(codes, "N K"))
    x_scale, scale = _per_row("x_scale", x_scale, len(x_codes)), _per_row("scale", scale, len(codes))
    return round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale, bias, dtype=dtype)


def _per_row(name, scale, rows):
    if not isinstance(scale, torch.Tensor) or tuple(scale.shape) not in {(1, 1), (rows, 1)}:
        given = tuple(scale.shape) if isinstance(scale, torch.Tensor) else type(scale).__name__
        raise ValueError(f"{name} must have shape ({rows}, 1), one scale per row, or (1, 1), one for all, not {given}")
    return scale.expand(rows, 1)
