"""Grouped latent attention on tensors (B, T, H, D), with latents (B, T, h_c, d_c) and one rotated key (B, T, d_R) per token.

See `twofold.spec.attention.grouped_latent`. Head h reads latent h // (H / h_c). `expand` is for prompts and training: keys and values of
every head, then `attention.flash`. `absorb` is for decoding: latents are key heads whose values are themselves, to the kernel of
`attention.split_kv`; its cache may lie in pages. `absorb` has no gradients.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import _latent, rope
from twofold.fast.kernels.split_attention import SIZE

__all__ = ["expand", "absorb", "compress"]


def expand(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, Tq, H, d_n), qr (B, Tq, H, d_R), c (B, Tk, h_c, d_c), kr (B, Tk, d_R) -> (B, Tq, H, d_v), and (B, H, Tq) in float32."""
    return _latent.expand(qn, qr, c, kr, w_uk, w_uv, scale=scale, causal=causal, window=window)


def absorb(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None, length: Tensor | None = None, table: Tensor | None = None, size: int = SIZE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, N, H, d_n), qr (B, N, H, d_R), c (B, Tk, h_c, d_c), kr (B, Tk, d_R) -> (B, N, H, d_v), and (B, H, N) in float32.

    `length` (B,) is how many of the Tk tokens each sequence has; with `table` (B, n), c and kr are pools (n_blocks, page, …), and length is
    needed. Sequences are cut every `size` tokens.
    """
    options = {"scale": scale, "causal": causal, "window": window, "length": length, "table": table, "size": size}
    return _latent.absorb(qn, qr, c, kr, w_uk, w_uv, **options)


def compress(
    h: Tensor, pos: Tensor, *, w_dkv: Tensor, gain: Tensor, w_kr: Tensor, base: float = 1e4, eps: float = 1e-6, interleaved: bool = True
) -> tuple[Tensor, Tensor]:
    """What tokens h (B, T, M) at positions pos (T,) or (B, T) leave in the cache: c (B, T, h_c, d_c) and kr (B, T, d_R)."""
    checks.shape(h=(h, "B T M"), w_dkv=(w_dkv, "h_c d_c M"), gain=(gain, "h_c d_c"), w_kr=(w_kr, "d_R M"))
    checks.same(h=h, w_dkv=w_dkv, w_kr=w_kr)
    c = _latent.norm(torch.einsum("btm,acm->btac", h, w_dkv), gain, eps)
    return c, rope.rotate(h @ w_kr.mT, pos, base=base, interleaved=interleaved)
