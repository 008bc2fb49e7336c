"""Rotary positions on tensors (B, T, …, d), in plain PyTorch with gradients. See `twofold.spec.attention.rope`.

Angles are computed in float64, since positions are large; the rotation in float32 (float64 where x is), rounded once.
"""

import torch
from torch import Tensor

__all__ = ["rotate", "interleave"]


def rotate(x: Tensor, pos: Tensor, *, theta: Tensor | None = None, base: float = 1e4, interleaved: bool = False) -> Tensor:
    """Turn pair i of every row of x (B, T, …, d) by pos theta_i, for whole positions (T,) or (B, T) and theta (d / 2,)."""
    pairs = _pairs(x)
    if pos.is_floating_point():
        raise TypeError(f"pos must hold integers, not {pos.dtype}")
    if tuple(pos.shape) not in ((x.shape[1],), tuple(x.shape[:2])):
        raise ValueError(f"pos must have shape (T,) or (B, T) for the (B, T) = {tuple(x.shape[:2])} rows of x, not {tuple(pos.shape)}")
    if theta is None:
        theta = base ** (-torch.arange(pairs, device=x.device, dtype=torch.float64) / max(pairs, 1))
    if tuple(theta.shape) != (pairs,):
        raise ValueError(f"theta must have shape ({pairs},), not {tuple(theta.shape)}")
    angle = pos.double()[..., None] * theta.double()  # (…, T, d / 2)
    angle = angle.view(*angle.shape[:-1], *[1] * (x.ndim - 3), pairs)
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = angle.cos().to(wide.dtype), angle.sin().to(wide.dtype)
    a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else (wide[..., :pairs], wide[..., pairs:])
    turned = a * cos - b * sin, b * cos + a * sin
    return (torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)).to(x.dtype)


def interleave(x: Tensor) -> Tensor:
    """Channels in halves, put into pairs, for x (B, T, …, d)."""
    pairs = _pairs(x)
    return torch.stack([x[..., :pairs], x[..., pairs:]], -1).flatten(-2)


def _pairs(x):
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(f"x must have shape (B, T, …, d) with d even, not {tuple(x.shape)}")
    return x.shape[-1] // 2
