"""Attention with bounded-memory control: few slots, each a weighted mean of all tokens so far, read by a softmax (arXiv:2110.02488).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-weights s `(B, T, H, M)`; states are triples `(B, H, K, M)`,
`(B, H, M, V)`, `(B, H, M)` in float32, the last the log of each slot's total weight, -inf for an empty slot. q arrives scaled.

Running totals are a scan in float32, `torch.logcumsumexp`; gates and writes follow from them, and everything else is
`linear_attention.gsa`. Writes are rounded to the format of q. Packed sequences have totals of their own, for which the host reads
`cu_seqlens` and a GPU has to be waited for.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence
from twofold.fast.linear_attention import gsa
from twofold.fast.test_time_training._tokens import by_sequence

__all__ = ["recurrent", "chunked", "step", "gates"]

State = tuple[Tensor, Tensor, Tensor]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, S0: State | None = None, chunk: int = 64, *, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states, with gradients for everything; packing as in `gla.chunked`."""
    slots, z = _parted(S0)
    write, g, z = gates(s, z, cu_seqlens=cu_seqlens)
    o, slots = gsa.chunked(q, k, v, write.to(q.dtype), g, slots, chunk, cu_seqlens=cu_seqlens)
    return o, (*slots, z)


def recurrent(q: Tensor, k: Tensor, v: Tensor, s: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """The definition, one token after the other."""
    slots, z = _parted(S0)
    write, g, z = gates(s, z)
    o, slots = gsa.recurrent(q, k, v, write.to(q.dtype), g, slots)
    return o, (*slots, z)


def step(state: State, q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, State]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H, M)`, then read: the output `(B, H, V)` and the new state, float32."""
    slots, z = _parted(state)
    write, g, z = gates(s[:, None], z)
    o, slots = gsa.step(slots, q, k, v, write[:, 0].to(q.dtype), g[:, 0])
    return o, (*slots, z)


def gates(s: Tensor, z: Tensor | None, *, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Writes and log-decays `(B, T, H, M)` of gated slot attention, and the last z `(N, H, M)`, in float32; z None: empty slots."""
    sizes = checks.shape(s=(s, "B T H M"))
    checks.dtypes(*diagonal_recurrence.FLOATS, s=s)
    s = s if s.dtype == torch.float64 else s.float()
    if z is not None:
        N = sizes["B"] if cu_seqlens is None else len(cu_seqlens) - 1
        checks.shape(s=(s, "B T H M"), z=(z, f"{N} H M"))
        checks.dtypes(s.dtype, z=z)
        checks.same_device(s=s, z=z)
    start = None if z is None else (z,)
    both, (z,) = _gates([s], start) if cu_seqlens is None else by_sequence(_gates, [s], start, cu_seqlens)
    return *both.unbind(-1), z


def _gates(tokens, start):
    """Writes and log-decays of one or more whole sequences, side by side on the last axis, and their last z, as a tuple."""
    (s,), empty = tokens, torch.finfo(tokens[0].dtype).min / 4  # so low that a token more or less does not move it, but not infinite
    z = s.new_full((s.shape[0], *s.shape[2:]), empty) if start is None else start[0].clamp(min=empty)
    totals = torch.cat([z[:, None], torch.logaddexp(z[:, None], torch.logcumsumexp(s.clamp(min=empty), 1))], 1)
    before, total = totals[:, :-1], totals[:, 1:]
    g = torch.where(before > empty, before - total, 0.0)
    g = g - g.detach().clamp(min=0)  # a scan in parallel may leave a total one rounding below the one before
    last = torch.where(totals[:, -1] > empty, totals[:, -1], -torch.inf)
    return torch.stack([(s - total).exp(), g], -1), (last,)


def _parted(S0):
    """The slots' keys and values, and z."""
    if S0 is None:
        return None, None
    if len(S0) != 3:
        raise ValueError(f"S0 must be a triple, keys, values and log-weights of the slots, not {len(S0)} tensors")
    return S0[:2], S0[2]
