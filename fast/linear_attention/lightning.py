"""Lightning attention: linear attention with a constant decay per head, in blocks (arXiv:2401.04658).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, lam `(H,)` in (0, 1]; states `(B, H, K, V)` in float32. q arrives
scaled. Everything is `linear_attention.simple_gla` with g = log lam for every token; lam gets gradients.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.linear_attention import simple_gla
from twofold.fast.linear_attention._decay import constant

__all__ = ["recurrent", "chunked", "step", "slopes_exponential", "slopes_alibi"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, S0: Tensor | None = None, block: int = 64, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    return simple_gla.chunked(q, k, v, constant(v, lam, "lam"), S0, block, cu_seqlens=cu_seqlens)


def recurrent(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    return simple_gla.recurrent(q, k, v, constant(v, lam, "lam"), S0)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, then read: the output `(B, H, V)` and the new state, float32."""
    return simple_gla.step(state, q, k, v, constant(v[:, None], lam, "lam")[:, 0])


def slopes_exponential(H: int, layer: int, layers: int, *, device: torch.device | str | None = None) -> Tensor:
    """-log lam of H heads `(H,)`: 8 h / H, less in every later layer; head 0 never forgets."""
    _check(H, layer, layers)
    return torch.arange(H, dtype=torch.float64, device=device).mul(8 / max(H, 1) * (1 - layer / layers)).float()


def slopes_alibi(H: int, layer: int, layers: int, *, device: torch.device | str | None = None) -> Tensor:
    """-log lam of H heads `(H,)`, as ALiBi's: 2^(-8 (h + 1) / H), almost none in the last layer."""
    _check(H, layer, layers)
    power = 1 << (max(H, 1).bit_length() - 1)
    plain = lambda n: 2.0 ** (torch.arange(1, n + 1, dtype=torch.float64, device=device) * (-8 / n))
    factor = 1 - layer / (layers - 1) + 1e-5 if layers > 1 else 1 + 1e-5
    return (torch.cat([plain(power), plain(2 * power)[::2]])[:H] * factor).float()


def _check(H, layer, layers):
    checks.at_least(0, H=H, layer=layer)
    if layer >= layers:
        raise ValueError(f"layer must be less than the {layers} layers, not {layer}")
