"""Attention to latents (B, T, h_c, d_c) with one rotated key (B, T, d_R) per token, for one latent (`mla`) and several (`grouped_latent`).

Head h reads latent h // (H / h_c). `expand` makes keys and values of every head; `absorb` attends the latents themselves, as key heads
whose values they are.
"""

import torch

from twofold.fast import checks
from twofold.fast.attention import flash
from twofold.fast.attention._arguments import FLOATS, places, scale_or_default, share_heads, widths, window_bounds
from twofold.fast.kernels.split_attention import split_attention

__all__ = ["WIDEST", "WIDEST_KEY", "absorb", "expand", "norm"]

WIDEST, WIDEST_KEY = 512, 64  # wider latents and rotated keys do not fit a tile


def expand(qn, qr, c, kr, w_uk, w_uv, *, scale, causal, window):
    sizes = _check(qn, qr, c, kr, w_uk, w_uv)
    checks.shape(qn=(qn, "B Tq H d_n"), c=(c, "B Tk h_c d_c"), kr=(kr, "B Tk d_R"))
    by_group = lambda w: w.unflatten(0, (sizes["h_c"], -1))  # (h_c, H / h_c, ·, d_c)
    k = torch.einsum("btac,agnc->btagn", c, by_group(w_uk)).flatten(2, 3)  # (B, Tk, H, d_n)
    v = torch.einsum("btac,agvc->btagv", c, by_group(w_uv)).flatten(2, 3).contiguous()
    k = torch.cat([k, kr[:, :, None].expand(-1, -1, sizes["H"], -1)], 3)
    return flash.forward(torch.cat([qn, qr], 3), k, v, scale=scale, causal=causal, window=window)


def absorb(qn, qr, c, kr, w_uk, w_uv, *, scale, causal, window, length, table, size):
    sizes = _check(qn, qr, c, kr, w_uk, w_uv)
    left, right = window_bounds(causal, window)
    if table is None:
        checks.shape(qn=(qn, "B N H d_n"), c=(c, "B Tk h_c d_c"), kr=(kr, "B Tk d_R"))
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


def norm(x, gain, eps):
    """Each row over the root of its mean square."""
    wide = x.float()
    return (gain.float() * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps))).to(x.dtype)


def _check(qn, qr, c, kr, w_uk, w_uv):
    """What holds with and without pages."""
    sizes = checks.shape(
        qn=(qn, "B T H d_n"), qr=(qr, "B T H d_R"), c=(c, "rows tokens h_c d_c"), kr=(kr, "rows tokens d_R"),
        w_uk=(w_uk, "H d_n d_c"), w_uv=(w_uv, "H d_v d_c"),
    )  # fmt: skip
    checks.same(qn=qn, qr=qr, c=c, kr=kr, w_uk=w_uk, w_uv=w_uv)
    checks.dtypes(*FLOATS, qn=qn)
    share_heads(sizes, "h_c", q="qn", k="c")
    checks.contiguous(qr=qr, c=c, kr=kr)
    return sizes
