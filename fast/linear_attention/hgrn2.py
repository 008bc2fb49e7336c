"""HGRN2: gated linear attention in which what a channel forgets is what it writes (arXiv:2404.07904).

Layout: q `(B, T, Hq, K)`, forget gates f before the sigmoid `(B, T, H, K)`, inputs i `(B, T, H, V)`, lower bounds lb `(H, K)` in [0, 1), or
None for none; states `(B, H, K, V)` in float32. Gates are computed in float32 whatever the format; the key, one minus the gate, is
rounded to it. Everything else is `linear_attention.gla`. Gradients reach everything, lower bounds included where they are not 0.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence
from twofold.fast.linear_attention import gla
from twofold.fast.linear_attention.hgrn import log_forget

__all__ = ["recurrent", "chunked", "step"]


def chunked(
    q: Tensor, f: Tensor, i: Tensor, lb: Tensor | None = None, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`; packing as in `gla.chunked`."""
    q, k, g = _gates(q, f, i, lb)
    return diagonal_recurrence.run(q, k, i, g, S0, chunk, cu_seqlens)


def recurrent(q: Tensor, f: Tensor, i: Tensor, lb: Tensor | None = None, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    q, k, g = _gates(q, f, i, lb)
    return gla.recurrent(q, k, i, g, S0)


def step(state: Tensor, q: Tensor, f: Tensor, i: Tensor, lb: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, K)`, `(B, H, V)`, then read: the output `(B, H, V)` and the new state, float32."""
    q, k, g = (x[:, 0] for x in _gates(q[:, None], f[:, None], i[:, None], lb))
    return gla.step(state, q, k, i, g)


def _gates(q, f, i, lb):
    """Queries and keys for every head of i, and log-decays."""
    sizes = checks.shape(q=(q, "B T Hq K"), f=(f, "B T H K"), i=(i, "B T H V"))
    checks.same(q=q, f=f, i=i)
    if not sizes["Hq"] or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"f must have a multiple of the heads of q, {sizes['Hq']}, not {sizes['H']}")
    if lb is not None:
        checks.shape(f=(f, "B T H K"), lb=(lb, "H K"))
        checks.same_device(f=f, lb=lb)
    g = log_forget(f, lb)
    return q.repeat_interleave(sizes["H"] // sizes["Hq"], 2), (-torch.expm1(g)).to(q.dtype), g
