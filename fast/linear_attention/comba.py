"""Comba: a delta rule that looks up its memory before it fades, under a key of its own, and corrects the query too (arXiv:2506.02475).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-decays g `(B, T, H)`, at most 0, write strengths beta
`(B, T, H)`, what is looked up p `(B, T, H, K)`, and d `(H,)`; states `(B, H, K, V)` in float32. q arrives scaled, q and k of length 1.

`chunked` is the one to use, on the kernels of `fast/kernels/erasing_recurrence.py`. Write keys beta k and queries q - d p are rounded to
the format of k.
beta p·k beyond e^g - 1 … e^g + 1 makes the state diverge: an error with `check=True`, which waits for the device.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import erasing_recurrence
from twofold.fast.linear_attention import _erase, affine

__all__ = ["recurrent", "chunked", "step"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, p: Tensor, d: Tensor, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    query, log_decay, write = _rows(q, k, v, g, beta, p, d)
    if check:
        _require_contraction(write, log_decay, p)
    return erasing_recurrence.run(query.to(q.dtype), write.to(k.dtype), v, log_decay, p, S0, chunk, cu_seqlens, check)


def recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, p: Tensor, d: Tensor, S0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    query, log_decay, write = _rows(q, k, v, g, beta, p, d)
    return affine.recurrent(query, write, v.to(query.dtype), log_decay, p, -write, S0)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, p: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Look up, fade and write one token, rows `(B, Hq, K)`, `(B, H, V)`, `(B, H)`, p `(B, H, K)`, then read: output and new state."""
    query, log_decay, write = _rows(q, k, v, g, beta, p, d, "B")
    output, state = affine.step(state, query, write, v, log_decay, p, -write)
    return output.to(v.dtype), state


def _rows(q, k, v, g, beta, p, d, tokens="B T"):
    """Queries with their correction, one log-decay for all channels, and what is written under: at the heads of the values."""
    heads = _erase.sizes_of(q, k, v, beta, tokens)["H"]
    checks.shape(v=(v, f"{tokens} H V"), g=(g, f"{tokens} H"), q=(q, f"{tokens} Hq K"), p=(p, f"{tokens} H K"), d=(d, "H"))
    checks.same(q=q, p=p)
    checks.dtypes(_erase.wide(q), q.dtype, g=g, d=d)
    checks.same_device(q=q, g=g, d=d)
    _, write = _erase.keys(k, beta)
    wide = write.dtype
    return _erase.other_heads(q, heads) - d.to(wide)[:, None] * p.to(wide), g.to(wide)[..., None], write


def _require_contraction(write, log_decay, p):
    """The one eigenvalue of e^g I - beta k p that is not e^g lies between -1 and 1, up to the rounding of the format."""
    eigenvalue = log_decay.clamp(max=0).exp()[..., 0] - (write * p).sum(-1)  # a positive g is the kernel's to refuse
    if bool((eigenvalue.abs() > 1 + 4 * torch.finfo(p.dtype).eps).any()):
        worst = eigenvalue.flatten()[eigenvalue.abs().argmax()].item()
        raise ValueError(f"beta must keep e^g - beta k·p between -1 and 1, but it is {worst:.4g} somewhere: normalize the keys")
