"""Grouped-query attention on tensors (B, T, H, D), with keys of Hkv heads: MHA, GQA and MQA. See `twofold.spec.attention.grouped`.

The kernels of `attention.flash` and `attention.split_kv` read key head h // (H / Hkv) by themselves, so nothing is repeated in memory.
Without a `mask` or `bias` tensor attention is that of `attention.flash`; with one it is `attention.dense`, whole matrices in float32.
"""

from typing import Any

from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import dense, flash

__all__ = ["attention", "backward", "pack", "unpack", "mean_pool"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None, softcap: float | None = None,
    bias: Tensor | None = None, sink: Tensor | None = None, causal: bool = False, window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, Dv) -> output (B, Tq, H, Dv), log-sum-exp (B, H, Tq) in float32.

    `mask` and `bias` broadcast to (B, H, Tq, Tk) and stand alone; `causal` and `window` are those of `flash.forward`.
    """
    if _tiled(mask, bias, causal, window):
        return flash.forward(q, k, v, causal=causal, window=window, scale=scale, softcap=softcap, sink=sink)
    return dense.attention(q, k, v, mask=mask, scale=scale, softcap=softcap, bias=bias, sink=sink)


def backward(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, *, dlse: Tensor | None = None, mask: Tensor | None = None, scale: float | None = None,
    softcap: float | None = None, bias: Tensor | None = None, sink: Tensor | None = None, causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients (dq, dk, dv, dbias, dsink), those of keys and values summed over the query heads that read them."""
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "sink": sink}
    if _tiled(mask, bias, causal, window):
        options |= {"causal": causal, "window": window}
        return flash.backward(q, k, v, *flash.forward(q, k, v, **options), do, dlse=dlse, **options)
    return dense.backward(q, k, v, do, dlse=dlse, mask=mask, bias=bias, **options)


def pack(q: Tensor, h_kv: int) -> Tensor:
    """The heads of a group as rows: (B, T, H, D) to (B, T g, Hkv, D), the heads of one token next to each other."""
    checks.shape(q=(q, "B T H D"))
    _demand_groups("q", q.shape[2], h_kv)
    return q.unflatten(2, (h_kv, q.shape[2] // h_kv)).transpose(2, 3).flatten(1, 2)


def unpack(x: Tensor, g: int) -> Tensor:
    """The inverse, for what comes out: (B, T g, Hkv, D) to (B, T, H, D)."""
    checks.shape(x=(x, "B rows Hkv D"))
    if g < 1 or x.shape[1] % g:
        raise ValueError(f"x must have a multiple of g = {g} rows, not {x.shape[1]}")
    return x.unflatten(1, (x.shape[1] // g, g)).transpose(2, 3).flatten(2, 3)


def mean_pool(w: Tensor, h_kv: int) -> Tensor:
    """Projections (H, …) averaged over the heads that are to share one, (Hkv, …); summed in float32."""
    _demand_groups("w", len(w), h_kv)
    return w.unflatten(0, (h_kv, len(w) // h_kv)).float().mean(1).to(w.dtype)


def _tiled(mask, bias, causal, window):
    tiled = mask is None and bias is None
    if not tiled and (causal or window is not None):
        raise ValueError("mask and bias stand alone: write causal and window into the mask")
    return tiled


def _demand_groups(name, heads, h_kv):
    if h_kv < 1 or heads % h_kv:
        raise ValueError(f"h_kv must divide the {heads} heads of {name}, which {h_kv} does not")
