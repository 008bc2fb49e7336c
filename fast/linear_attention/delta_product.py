"""DeltaProduct: several steps of the delta rule per token, so that a transition is a product of reflections (arXiv:2502.10297).

Layout: q `(B, T, Hq, K)`, k `(B, T, Hq, n, K)`, v `(B, T, H, n, V)` with H a multiple of Hq, log-decays g `(B, T, H)`, at most 0, write
strengths beta `(B, T, H, n)` in [0, 2]; states `(B, H, K, V)` in float32. q arrives scaled, k of length 1.

Every form is that of `linear_attention.gated_delta` on n T tokens, the gate on the first of each token's n and the query on the last.
`chunk` counts steps, and its edges may cut a token's group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.fast import checks
from twofold.fast.linear_attention import gated_delta

__all__ = ["recurrent", "chunked", "step"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`, in tokens."""
    n, query, keys, values, log_decay, strengths = _expanded(q, k, v, g, beta)
    edges = None if cu_seqlens is None else cu_seqlens * n
    output, state = gated_delta.chunked(query, keys, values, log_decay, strengths, S0, chunk, cu_seqlens=edges, check=check)
    return output[:, n - 1 :: n], state


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one step after the other."""
    n, query, keys, values, log_decay, strengths = _expanded(q, k, v, g, beta)
    output, state = gated_delta.recurrent(query, keys, values, log_decay, strengths, S0)
    return output[:, n - 1 :: n], state


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Fade, take n steps, then read: q `(B, Hq, K)`, k `(B, Hq, n, K)`, v `(B, H, n, V)`, g `(B, H)`, beta `(B, H, n)`."""
    n = _steps(q, k, v, g, beta, "B")
    for j in range(n):
        log_decay = g if j == 0 else torch.zeros_like(g)
        output, state = gated_delta.step(state, q, k[:, :, j], v[:, :, j], log_decay, beta[:, :, j])
    return output, state


def _steps(q, k, v, g, beta, tokens):
    """The number of steps per token."""
    shapes = {"q": "Hq K", "k": "Hq n K", "v": "H n V", "g": "H", "beta": "H n"}
    given = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
    sizes = checks.shape(**{name: (x, f"{tokens} {shapes[name]}") for name, x in given.items()})
    checks.at_least(1, n=sizes["n"])
    return sizes["n"]


def _expanded(q, k, v, g, beta):
    """The number of steps, and one token per step."""
    n = _steps(q, k, v, g, beta, "B T")
    last, first = F.pad(q[:, :, None], (0, 0, 0, 0, n - 1, 0)), F.pad(g[:, :, None], (0, 0, 0, n - 1))
    return n, *(x.flatten(1, 2) for x in (last, k.transpose(2, 3), v.transpose(2, 3), first, beta.transpose(2, 3)))
