"""Multi-head latent attention on tensors (B, T, H, D), with one latent (B, T, d_c) and one rotated key (B, T, d_R) per token.

See `twofold.spec.attention.mla`. `expand` is for prompts and training: keys and values of every head, then `attention.flash`. `absorb` is
for decoding: the heads attend the latents themselves, which are read once, keys and values in one, by the kernel of `attention.split_kv`;
its cache may lie in pages. `absorb` has no gradients. Where the two round, they round differently.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import _latent, rope
from twofold.fast.kernels.split_attention import SIZE

__all__ = ["expand", "absorb", "compress", "queries"]


def expand(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, Tq, H, d_n), qr (B, Tq, H, d_R), c (B, Tk, d_c), kr (B, Tk, d_R) -> (B, Tq, H, d_v), and (B, H, Tq) in float32."""
    checks.shape(qn=(qn, "B Tq H d_n"), c=(c, "B Tk d_c"), kr=(kr, "B Tk d_R"))
    return _latent.expand(qn, qr, c[:, :, None], kr, w_uk, w_uv, scale=scale, causal=causal, window=window)


def absorb(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None, length: Tensor | None = None, table: Tensor | None = None, size: int = SIZE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, N, H, d_n), qr (B, N, H, d_R), c (B, Tk, d_c), kr (B, Tk, d_R) -> (B, N, H, d_v), and (B, H, N) in float32.

    `length` (B,) is how many of the Tk tokens each sequence has; with `table` (B, n), c and kr are pools (n_blocks, page, ·), and length is
    needed. Sequences are cut every `size` tokens: where, depends on the sequence alone.
    """
    checks.shape(c=(c, "rows tokens d_c"), kr=(kr, "rows tokens d_R"))
    options = {"scale": scale, "causal": causal, "window": window, "length": length, "table": table, "size": size}
    return _latent.absorb(qn, qr, c[:, :, None], kr, w_uk, w_uv, **options)


def compress(
    h: Tensor, pos: Tensor, *, w_dkv: Tensor, gain: Tensor, w_kr: Tensor, base: float = 1e4, eps: float = 1e-6, interleaved: bool = True
) -> tuple[Tensor, Tensor]:
    """What tokens h (B, T, M) at positions pos (T,) or (B, T) leave in the cache: c (B, T, d_c) and kr (B, T, d_R)."""
    checks.shape(h=(h, "B T M"), w_dkv=(w_dkv, "d_c M"), gain=(gain, "d_c"), w_kr=(w_kr, "d_R M"))
    checks.same(h=h, w_dkv=w_dkv, w_kr=w_kr)
    return _latent.norm(h @ w_dkv.mT, gain, eps), rope.rotate(h @ w_kr.mT, pos, base=base, interleaved=interleaved)


def queries(
    h: Tensor, pos: Tensor, *, w_dq: Tensor, gain: Tensor, w_uq: Tensor, d_rope: int, base: float = 1e4, eps: float = 1e-6,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries of tokens h (B, T, M), unrotated (B, T, H, d_n) and rotated (B, T, H, d_R)."""
    checks.shape(h=(h, "B T M"), w_dq=(w_dq, "d_q M"), gain=(gain, "d_q"), w_uq=(w_uq, "H D d_q"))
    checks.same(h=h, w_dq=w_dq, w_uq=w_uq)
    if not 0 <= d_rope <= w_uq.shape[1]:
        raise ValueError(f"d_rope must lie between 0 and the {w_uq.shape[1]} numbers of a query, not be {d_rope}")
    q = torch.einsum("btq,hdq->bthd", _latent.norm(h @ w_dq.mT, gain, eps), w_uq)
    qn, qr = q.split([q.shape[3] - d_rope, d_rope], 3)
    return qn.contiguous(), rope.rotate(qr, pos, base=base, interleaved=interleaved)
