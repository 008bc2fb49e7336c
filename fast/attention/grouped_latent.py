"""Grouped latent attention on tensors (B, T, H, D), with latents (B, T, h_c, d_c) and one rotated key (B, T, d_R) per token.

See `twofold.spec.attention.grouped_latent`. Head h reads latent h // (H / h_c). `expand` is for prompts and training: keys and values of
every head, then `attention.flash`. `absorb` is for decoding: latents are key heads whose values are themselves, to the kernel of
`attention.split_kv`; its cache may lie in pages. `absorb` has no gradients.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import flash
from twofold.fast.attention._arguments import FLOATS, places, scale_or_default, share_heads, widths, window_bounds
from twofold.fast.attention.mla import WIDEST, WIDEST_KEY, _norm, _rope
from twofold.fast.kernels.split_attention import SIZE, split_attention

__all__ = ["expand", "absorb", "compress"]


def expand(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, Tq, H, d_n), qr (B, Tq, H, d_R), c (B, Tk, h_c, d_c), kr (B, Tk, d_R) -> (B, Tq, H, d_v), and (B, H, Tq) in float32."""
    sizes = _check(qn, qr, c, kr, w_uk, w_uv)
    checks.shape(qn=(qn, "B Tq H d_n"), c=(c, "B Tk h_c d_c"), kr=(kr, "B Tk d_R"))
    by_group = lambda w: w.unflatten(0, (sizes["h_c"], -1))  # (h_c, H / h_c, ·, d_c)
    k = torch.einsum("btac,agnc->btagn", c, by_group(w_uk)).flatten(2, 3)  # (B, Tk, H, d_n)
    v = torch.einsum("btac,agvc->btagv", c, by_group(w_uv)).flatten(2, 3).contiguous()
    k = torch.cat([k, kr[:, :, None].expand(-1, -1, sizes["H"], -1)], 3)
    return flash.forward(torch.cat([qn, qr], 3), k, v, scale=scale, causal=causal, window=window)


def absorb(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None, length: Tensor | None = None, table: Tensor | None = None, size: int = SIZE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, N, H, d_n), qr (B, N, H, d_R), c (B, Tk, h_c, d_c), kr (B, Tk, d_R) -> (B, N, H, d_v), and (B, H, N) in float32.

    `length` (B,) is how many of the Tk tokens each sequence has; with `table` (B, n), c and kr are pools (n_blocks, page, …), and length is
    needed. Sequences are cut every `size` tokens.
    """
    sizes = _check(qn, qr, c, kr, w_uk, w_uv)
    left, right = window_bounds(causal, window)
    if table is None:
        checks.shape(qn=(qn, "B N H d_n"), c=(c, "B Tk h_c d_c"), kr=(kr, "B Tk d_R"))
    else:
        checks.shape(c=(c, "n_blocks page h_c d_c"), kr=(kr, "n_blocks page d_R"))
    places(qn, length, table)
    widths(sizes, 0, WIDEST, c="d_c")
    widths(sizes, 0, WIDEST_KEY, kr="d_R")
    checks.at_least(1, size=size)
    scale = scale_or_default(scale, sizes["d_n"] + sizes["d_R"])
    down = torch.einsum("bthn,hnc->bthc", qn, w_uk).contiguous()  # (B, N, H, d_c)
    q_rest, k_rest = (qr, kr) if sizes["d_R"] else (None, None)
    o, lse = split_attention(
        down, c, None, q_rest=q_rest, k_rest=k_rest, table=table, length=length, size=size, left=left, right=right, scale=scale
    )
    return torch.einsum("bthc,hvc->bthv", o, w_uv), lse


def compress(
    h: Tensor, pos: Tensor, *, w_dkv: Tensor, gain: Tensor, w_kr: Tensor, base: float = 1e4, eps: float = 1e-6, interleaved: bool = True
) -> tuple[Tensor, Tensor]:
    """What tokens h (B, T, M) at positions pos (T,) or (B, T) leave in the cache: c (B, T, h_c, d_c) and kr (B, T, d_R)."""
    checks.shape(h=(h, "B T M"), w_dkv=(w_dkv, "h_c d_c M"), gain=(gain, "h_c d_c"), w_kr=(w_kr, "d_R M"))
    checks.same(h=h, w_dkv=w_dkv, w_kr=w_kr)
    return _norm(torch.einsum("btm,acm->btac", h, w_dkv), gain, eps), _rope(h @ w_kr.mT, pos, base, interleaved)


def _check(qn, qr, c, kr, w_uk, w_uv):
    """Shapes that hold with and without pages."""
    sizes = checks.shape(
        qn=(qn, "B T H d_n"), qr=(qr, "B T H d_R"), c=(c, "rows tokens h_c d_c"), kr=(kr, "rows tokens d_R"),
        w_uk=(w_uk, "H d_n d_c"), w_uv=(w_uv, "H d_v d_c"),
    )  # fmt: skip
    checks.same(qn=qn, qr=qr, c=c, kr=kr, w_uk=w_uk, w_uv=w_uv)
    checks.dtypes(*FLOATS, qn=qn)
    share_heads(sizes, "h_c", q="qn", k="c")
    checks.contiguous(qr=qr, c=c, kr=kr)
    return sizes
