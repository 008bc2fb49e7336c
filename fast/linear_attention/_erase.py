"""What the delta rules share: checked arguments, and keys and write keys at the heads of the values."""

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["keys", "other_heads", "require_contraction", "sizes_of"]


def sizes_of(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, tokens: str = "B T") -> dict[str, int]:
    """The sizes of q, k `(…, Hq, K)`, v `(…, H, V)` and beta `(…, H)`, which must fit together."""
    checks.same(q=q, k=k, v=v)
    sizes = checks.shape(q=(q, f"{tokens} Hq K"), k=(k, f"{tokens} Hq K"), v=(v, f"{tokens} H V"), beta=(beta, f"{tokens} H"))
    if sizes["Hq"] == 0 or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"v must have a multiple of the heads of q, {sizes['Hq']}, not {sizes['H']}")
    checks.dtypes(wide(q), q.dtype, beta=beta)
    checks.same_device(q=q, beta=beta)
    return sizes


def wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def other_heads(x: Tensor, heads: int) -> Tensor:
    """Rows `(…, Hq, D)` at the heads of the values, in the computing format: head h reads head h // (H / Hq)."""
    return x.repeat_interleave(heads // x.shape[-2], -2).to(wide(x))


def keys(k: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """k and beta k, both `(…, H, K)` and in the computing format."""
    key = other_heads(k, beta.shape[-1])
    return key, beta.to(key.dtype)[..., None] * key


def require_contraction(k: Tensor, beta: Tensor) -> None:
    """0 <= beta |k|² <= 2, up to the rounding of keys that were normalized in their format: waits for the device."""
    strength = beta.float() * other_heads(k, beta.shape[-1]).float().square().sum(-1)
    limit = 2 + 4 * torch.finfo(k.dtype).eps
    if bool((strength < 0).any()):
        raise ValueError(f"beta must be at least 0, but its smallest is {beta.min().item()}")
    if bool((strength > limit).any()):
        raise ValueError(f"k must have beta |k|² of at most 2, but the largest is {strength.max().item():.4g}: normalize the keys")
