"""Grouped-tied attention on tensors (B, T, H, D), with tied states x (B, T, Hkv, d) and one rotated key (B, T, d_R) per token.

See `twofold.spec.attention.grouped_tied`. Query head h reads state h // (H / Hkv). `attention` is that of `attention.flash`, with
gradients; those of x come from both of its uses. `cached` is for decoding: x is read once, as key and value in one, by the kernel of
`attention.split_kv`; its cache may lie in pages. It has no gradients.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import flash, rope
from twofold.fast.attention._arguments import FLOATS, places, scale_or_default, share_heads, widths, window_bounds
from twofold.fast.attention._latent import WIDEST_KEY
from twofold.fast.kernels.split_attention import SIZE, split_attention

__all__ = ["attention", "project", "queries", "cached"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, Tq, H, d), k and v (B, Tk, Hkv, d) -> output (B, Tq, H, d), log-sum-exp (B, H, Tq) in float32."""
    return flash.forward(q, k, v, scale=scale, causal=causal, window=window)


def project(
    h: Tensor, pos: Tensor, *, w_x: Tensor, w_kr: Tensor, base: float = 1e4, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Keys and values (B, T, Hkv, d) of tokens h (B, T, M) at positions pos (T,) or (B, T).

    What a cache holds of them are the values, and the last d_R channels of the keys of any head.
    """
    checks.shape(h=(h, "B T M"), w_x=(w_x, "Hkv d M"), w_kr=(w_kr, "d_R M"))
    checks.same(h=h, w_x=w_x, w_kr=w_kr)
    if len(w_kr) > w_x.shape[1]:
        raise ValueError(f"w_kr must give at most the {w_x.shape[1]} channels of a key, not {len(w_kr)}")
    x = torch.einsum("btm,kdm->btkd", h, w_x)
    kr = rope.rotate(h @ w_kr.mT, pos, base=base, interleaved=interleaved)
    return torch.cat([x[..., : x.shape[3] - kr.shape[2]], kr[:, :, None].expand(-1, -1, x.shape[2], -1)], 3), x


def queries(
    h: Tensor, pos: Tensor, *, w_q: Tensor, d_rope: int, base: float = 1e4, interleaved: bool = False
) -> Tensor:
    """Queries (B, T, H, d) of tokens h (B, T, M), the last d_rope channels rotated."""
    checks.shape(h=(h, "B T M"), w_q=(w_q, "H d M"))
    checks.same(h=h, w_q=w_q)
    if not 0 <= d_rope <= w_q.shape[1]:
        raise ValueError(f"d_rope must lie between 0 and the {w_q.shape[1]} channels of a query, not be {d_rope}")
    q = torch.einsum("btm,hdm->bthd", h, w_q)
    kept, turned = q.split([q.shape[3] - d_rope, d_rope], 3)
    return torch.cat([kept, rope.rotate(turned, pos, base=base, interleaved=interleaved)], 3)


def cached(
    q: Tensor, x: Tensor, kr: Tensor, *, scale: float | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    length: Tensor | None = None, table: Tensor | None = None, size: int = SIZE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, N, H, d), x (B, Tk, Hkv, d), kr (B, Tk, d_R) -> (B, N, H, d), and (B, H, N) in float32.

    `length` (B,) is how many of the Tk tokens each sequence has; with `table` (B, n), x and kr are pools (n_blocks, page, …), and length is
    needed. Sequences are cut every `size` tokens.
    """
    sizes = checks.shape(q=(q, "B N H d"), x=(x, "rows tokens Hkv d"), kr=(kr, "rows tokens d_R"))
    checks.same(q=q, x=x, kr=kr)
    checks.dtypes(*FLOATS, q=q)
    if table is None:
        checks.shape(q=(q, "B N H d"), x=(x, "B Tk Hkv d"))
    places(q, length, table)
    share_heads(sizes, k="x")
    widths(sizes, x="d")
    widths(sizes, 0, min(WIDEST_KEY, sizes["d"]), kr="d_R")
    checks.contiguous(x=x, kr=kr)
    checks.at_least(1, size=size)
    scale = scale_or_default(scale, sizes["d"])
    left, right = window_bounds(causal, window)
    kept = sizes["d"] - sizes["d_R"]
    tied = torch.nn.functional.pad(q[..., :kept], (0, sizes["d_R"]))  # 0 where the key is not tied to x
    q_rest, k_rest = (q[..., kept:].contiguous(), kr) if sizes["d_R"] else (None, None)
    return split_attention(
        tied, x, None, q_rest=q_rest, k_rest=k_rest, table=table, length=length, size=size, left=left, right=right, scale=scale
    )
