"""Simple gated linear attention: a memory that fades by one data-dependent factor per token (arXiv:2405.05254).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-decays g `(B, T, H)`, at most 0; states `(B, H, K, V)` in
float32. q arrives scaled. Everything is `linear_attention.gla` with one decay for all channels: there the kernels make scores by one
product of matrices and skip the second level of chunks.
"""

from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence
from twofold.fast.linear_attention import gla

__all__ = ["recurrent", "parallel", "chunked", "step"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, S0: Tensor | None = None, chunk: int = 64, *, cu_seqlens: Tensor | None = None,
    check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    return diagonal_recurrence.run(q, k, v, _one(v, g), S0, chunk, cu_seqlens, check)


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    return gla.recurrent(q, k, v, _one(v, g), S0)


def parallel(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All pairs of tokens at once: memory O(T² K)."""
    return gla.parallel(q, k, v, _one(v, g), S0)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H)`, then read: the output `(B, H, V)` and the new state, float32."""
    checks.shape(v=(v, "B H V"), g=(g, "B H"))
    return gla.step(state, q, k, v, g[..., None])


def _one(v, g):
    checks.shape(v=(v, "B T H V"), g=(g, "B T H"))
    return g[..., None]
