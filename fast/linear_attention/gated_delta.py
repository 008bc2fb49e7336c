"""The gated delta rule: the memory fades by one factor per token, then is corrected under the token's key (arXiv:2412.06464).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-decays g `(B, T, H)`, at most 0, write strengths beta
`(B, T, H)` in [0, 2]; states `(B, H, K, V)` in float32. q arrives scaled, k of length 1.

`chunked` is the one to use, on the kernels of `fast/kernels/erasing_recurrence.py`. It computes what `chunked_factored` of the spec
computes, from one triangular system instead of two. Write keys beta k and what is looked up, e^g k, are rounded to the format of k.
beta |k|² above 2 makes the state diverge: an error with `check=True`, which waits for the device.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import erasing_recurrence
from twofold.fast.linear_attention import _erase, affine

__all__ = ["recurrent", "chunked", "step", "gate"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    log_decay, key, write = _rows(q, k, v, g, beta)
    if check:
        _erase.require_contraction(k, beta)
    return erasing_recurrence.run(q, write.to(k.dtype), v, log_decay, key.to(k.dtype), S0, chunk, cu_seqlens, check)


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    log_decay, key, write = _rows(q, k, v, g, beta)
    return affine.recurrent(_erase.other_heads(q, v.shape[2]), write, v.to(key.dtype), log_decay, key, -write, S0)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Fade, write what is missing of one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H)`, then read: output and new state, float32."""
    log_decay, key, write = _rows(q, k, v, g, beta, "B")
    output, state = affine.step(state, _erase.other_heads(q, v.shape[1]), write, v, log_decay, key, -write)
    return output.to(v.dtype), state


def gate(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """The layer's log-decays `(…, H)`, in float32, from projections `(…, H)` and parameters `(H,)`: -e^{A_log} softplus(x + dt_bias)."""
    checks.shape(A_log=(A_log, f"{x.shape[-1]}"), dt_bias=(dt_bias, f"{x.shape[-1]}"))
    x, A_log, dt_bias = (y.to(_erase.wide(x)) for y in (x, A_log, dt_bias))
    return -A_log.exp() * torch.logaddexp(x + dt_bias, x.new_zeros(()))


def _rows(q, k, v, g, beta, tokens="B T"):
    """One log-decay for all channels, what is looked up, and what is written under."""
    _erase.sizes_of(q, k, v, beta, tokens)
    checks.shape(v=(v, f"{tokens} H V"), g=(g, f"{tokens} H"))
    checks.dtypes(_erase.wide(q), q.dtype, g=g)
    checks.same_device(q=q, g=g)
    key, write = _erase.keys(k, beta)
    log_decay = g.to(key.dtype)[..., None]
    return log_decay, log_decay.exp() * key, write
