"""Linear attention: two sums instead of a past (arXiv:2006.16236).

Layout: q, k `(B, T, Hq, K)` after the feature map, v `(B, T, H, V)` with H a multiple of Hq; a state is a pair, `(B, H, K, V)` and
`(B, H, K)`, in float32. The denominator is one more column of the numerator: a column of ones beside v, through the kernels of
`linear_attention.gla` without a decay. Both are summed in float32 and rounded to the format of v before they are divided.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence
from twofold.fast.linear_attention import gla

__all__ = ["recurrent", "parallel", "chunked", "step"]

State = tuple[Tensor, Tensor]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, S0: State | None = None, chunk: int = 64, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, State]:
    """Outputs `(B, T, H, V)` and final state, with gradients for everything; packing as in `gla.chunked`, states per sequence."""
    return _divided(diagonal_recurrence.run(q, k, _with_ones(v), None, _joined(v, S0), chunk, cu_seqlens), eps)


def recurrent(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, S0: State | None = None) -> tuple[Tensor, State]:
    """The definition, one token after the other."""
    return _divided(gla.recurrent(q, k, _with_ones(v), None, _joined(v, S0)), eps)


def parallel(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, S0: State | None = None) -> tuple[Tensor, State]:
    """All pairs of tokens at once: memory O(T² K)."""
    return _divided(gla.parallel(q, k, _with_ones(v), None, _joined(v, S0)), eps)


def step(state: State, q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6) -> tuple[Tensor, State]:
    """Add one token, `(B, Hq, K)`, `(B, H, V)`, then read: the output `(B, H, V)` and the new state, float32."""
    checks.shape(v=(v, "B H V"))
    return _divided(gla.step(_joined(v, state), q, k, _with_ones(v), None), eps)


def _with_ones(v):
    return pad(v, (0, 1), value=1.0)


def _joined(v, state):
    """Both sums as one state (·, H, K, V + 1)."""
    if state is None:
        return None
    checks.shape(S=(state[0], "N H K V"), z=(state[1], "N H K"))
    return torch.cat([state[0], state[1][..., None]], -1)


def _divided(joined: tuple[Tensor, Tensor], eps: float) -> tuple[Tensor, State]:
    """The last column divides the others."""
    o, state = joined
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, not {eps}")
    wide = o if o.dtype == torch.float64 else o.float()
    return (wide[..., :-1] / (wide[..., -1:] + eps)).to(o.dtype), (state[..., :-1], state[..., -1])
