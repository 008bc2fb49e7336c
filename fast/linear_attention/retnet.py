"""Retention: a memory that fades at a constant rate, one for each head (arXiv:2307.08621).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, gamma `(H,)` in [0, 1]; states `(B, H, K, V)` in float32. q arrives
scaled, q and k rotated. Everything is `linear_attention.simple_gla` with g = log gamma for every token; gamma gets gradients where it is
not 0.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import rope
from twofold.fast.linear_attention import simple_gla
from twofold.fast.linear_attention._decay import constant

__all__ = ["recurrent", "parallel", "chunked", "step", "decays", "rotate"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, S0: Tensor | None = None, chunk: int = 64, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    return simple_gla.chunked(q, k, v, constant(v, gamma, "gamma"), S0, chunk, cu_seqlens=cu_seqlens)


def recurrent(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    return simple_gla.recurrent(q, k, v, constant(v, gamma, "gamma"), S0)


def parallel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All pairs of tokens at once: memory O(T² K)."""
    return simple_gla.parallel(q, k, v, constant(v, gamma, "gamma"), S0)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, then read: the output `(B, H, V)` and the new state, float32."""
    return simple_gla.step(state, q, k, v, constant(v[:, None], gamma, "gamma")[:, 0])


def decays(H: int, *, device: torch.device | str | None = None) -> Tensor:
    """The rates of H heads `(H,)`, from the one that forgets fastest."""
    checks.at_least(0, H=H)
    return 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float32, device=device))


def rotate(x: Tensor, pos: Tensor, theta: Tensor | None = None) -> Tensor:
    """Turn the pair (2i, 2i+1) of x `(B, T, H, K)` by pos theta_i, for positions `(T,)` or `(B, T)`: `attention.rope.rotate`."""
    return rope.rotate(x, pos, theta=theta, interleaved=True)
