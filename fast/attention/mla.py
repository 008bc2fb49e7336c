"""Multi-head latent attention on tensors (B, T, H, D), with one latent (B, T, d_c) and one rotated key (B, T, d_R) per token.

See `twofold.spec.attention.mla`. `expand` is for prompts and training: keys and values of every head, then `attention.flash`. `absorb` is
for decoding: the heads attend the latents themselves, which are read once, keys and values in one, by the kernel of `attention.split_kv`;
its cache may lie in pages. `absorb` has no gradients. Where the two round, they round differently.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import flash
from twofold.fast.attention._arguments import FLOATS, places, scale_or_default, widths, window_bounds
from twofold.fast.kernels.split_attention import SIZE, split_attention

__all__ = ["expand", "absorb", "compress", "queries"]

WIDEST, WIDEST_KEY = 512, 64  # wider latents and rotated keys do not fit a tile


def expand(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, Tq, H, d_n), qr (B, Tq, H, d_R), c (B, Tk, d_c), kr (B, Tk, d_R) -> (B, Tq, H, d_v), and (B, H, Tq) in float32."""
    _check(qn, qr, c, kr, w_uk, w_uv)
    checks.shape(qn=(qn, "B Tq H d_n"), c=(c, "B Tk d_c"), kr=(kr, "B Tk d_R"))
    heads = qn.shape[2]
    k = torch.cat([torch.einsum("btc,hnc->bthn", c, w_uk), kr[:, :, None].expand(-1, -1, heads, -1)], 3)  # (B, Tk, H, d_n + d_R)
    v = torch.einsum("btc,hvc->bthv", c, w_uv).contiguous()
    return flash.forward(torch.cat([qn, qr], 3), k, v, scale=scale, causal=causal, window=window)


def absorb(
    qn: Tensor, qr: Tensor, c: Tensor, kr: Tensor, w_uk: Tensor, w_uv: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None, length: Tensor | None = None, table: Tensor | None = None, size: int = SIZE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """qn (B, N, H, d_n), qr (B, N, H, d_R), c (B, Tk, d_c), kr (B, Tk, d_R) -> (B, N, H, d_v), and (B, H, N) in float32.

    `length` (B,) is how many of the Tk tokens each sequence has; with `table` (B, n), c and kr are pools (n_blocks, page, ·), and length is
    needed. Sequences are cut every `size` tokens: where, depends on the sequence alone.
    """
    sizes = _check(qn, qr, c, kr, w_uk, w_uv)
    left, right = window_bounds(causal, window)
    if table is None:
        checks.shape(qn=(qn, "B N H d_n"), c=(c, "B Tk d_c"), kr=(kr, "B Tk d_R"))
    else:
        checks.shape(c=(c, "n_blocks page d_c"), kr=(kr, "n_blocks page d_R"))
    places(qn, length, table)
    widths(sizes, 0, WIDEST, c="d_c")
    widths(sizes, 0, WIDEST_KEY, kr="d_R")
    checks.at_least(1, size=size)
    scale = scale_or_default(scale, sizes["d_n"] + sizes["d_R"])
    down = torch.einsum("bthn,hnc->bthc", qn, w_uk).contiguous()  # (B, N, H, d_c)
    q_rest, k_rest = (qr, kr) if sizes["d_R"] else (None, None)
    o, lse = split_attention(
        down, c[:, :, None], None, q_rest=q_rest, k_rest=k_rest, table=table, length=length, size=size, left=left, right=right, scale=scale
    )
    return torch.einsum("bthc,hvc->bthv", o, w_uv), lse


def compress(
    h: Tensor, pos: Tensor, *, w_dkv: Tensor, gain: Tensor, w_kr: Tensor, base: float = 1e4, eps: float = 1e-6, interleaved: bool = True
) -> tuple[Tensor, Tensor]:
    """What tokens h (B, T, M) at positions pos (T,) or (B, T) leave in the cache: c (B, T, d_c) and kr (B, T, d_R)."""
    checks.shape(h=(h, "B T M"), w_dkv=(w_dkv, "d_c M"), gain=(gain, "d_c"), w_kr=(w_kr, "d_R M"))
    checks.same(h=h, w_dkv=w_dkv, w_kr=w_kr)
    return _norm(h @ w_dkv.mT, gain, eps), _rope(h @ w_kr.mT, pos, base, interleaved)


def queries(
    h: Tensor, pos: Tensor, *, w_dq: Tensor, gain: Tensor, w_uq: Tensor, d_rope: int, base: float = 1e4, eps: float = 1e-6,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Queries of tokens h (B, T, M), unrotated (B, T, H, d_n) and rotated (B, T, H, d_R)."""
    checks.shape(h=(h, "B T M"), w_dq=(w_dq, "d_q M"), gain=(gain, "d_q"), w_uq=(w_uq, "H D d_q"))
    checks.same(h=h, w_dq=w_dq, w_uq=w_uq)
    if not 0 <= d_rope <= w_uq.shape[1]:
        raise ValueError(f"d_rope must lie between 0 and the {w_uq.shape[1]} numbers of a query, not be {d_rope}")
    q = torch.einsum("btq,hdq->bhtd", _norm(h @ w_dq.mT, gain, eps), w_uq)
    qn, qr = q.split([q.shape[3] - d_rope, d_rope], 3)
    pos = pos if pos.ndim == 1 else pos[:, None]  # for every head
    return qn.transpose(1, 2).contiguous(), _rope(qr, pos, base, interleaved).transpose(1, 2).contiguous()


def _norm(x, gain, eps):
    wide = x.float()
    return (gain.float() * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps))).to(x.dtype)


def _rope(x, pos, base, interleaved):
    """Turn pair i of row t (…, T, d) by the angle t base^(-2i/d), which is computed in float64: positions are large."""
    if x.shape[-1] % 2:
        raise ValueError(f"w_kr and d_rope must give an even number of rotated numbers, not {x.shape[-1]}")
    if pos.is_floating_point():
        raise TypeError(f"pos must hold integers, not {pos.dtype}")
    if pos.shape[-1] != x.shape[-2]:
        raise ValueError(f"pos must hold the positions of the {x.shape[-2]} tokens of h, not {tuple(pos.shape)}")
    pairs = x.shape[-1] // 2
    angle = pos.double()[..., None] * base ** (-torch.arange(pairs, device=x.device, dtype=torch.float64) / max(pairs, 1))  # (…, T, d/2)
    cos, sin = angle.cos().float(), angle.sin().float()
    wide = x.float()
    a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else (wide[..., :pairs], wide[..., pairs:])
    turned = a * cos - b * sin, b * cos + a * sin
    return (torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)).to(x.dtype)


def _check(qn, qr, c, kr, w_uk, w_uv):
    """Shapes that hold with and without pages."""
    sizes = checks.shape(
        qn=(qn, "B T H d_n"), qr=(qr, "B T H d_R"), c=(c, "rows tokens d_c"), kr=(kr, "rows tokens d_R"),
        w_uk=(w_uk, "H d_n d_c"), w_uv=(w_uv, "H d_v d_c"),
    )  # fmt: skip
    checks.same(qn=qn, qr=qr, c=c, kr=kr, w_uk=w_uk, w_uv=w_uv)
    checks.dtypes(*FLOATS, qn=qn)
    checks.contiguous(qr=qr, c=c, kr=kr)
    return sizes
