"""mLSTM: a matrix for a cell and an exponential input gate, kept in range by a running maximum (arXiv:2405.04517, arXiv:2503.14376).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, gates i and f, before exponential and sigmoid, `(B, T, H)`; a state
is a triple, cell `(B, H, K, V)`, normalizer `(B, H, K)` and the log of their unit `(B, H)`, in float32. q arrives scaled.

The maxima m are a scan done ahead (`fast/kernels/running_maximum.py`). With them everything is `linear_attention.simple_gla`: log-decays
and log-writes are at most 0, and the normalizer is one more column, of ones, beside v. Where m is the unit of both parts of a quotient it
is a constant to autograd; its gradients are those of eps and of the states, which are all that depends on it.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence, running_maximum
from twofold.fast.linear_attention import gla

__all__ = ["recurrent", "parallel", "chunked", "step", "gates", "recurrent_sigmoid"]

State = tuple[Tensor, Tensor, Tensor]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float = 1e-6, S0: State | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final state, with gradients for everything; packing as in `gla.chunked`, states per sequence.

    Numerator and denominator are rounded to the format of v, and the quotient once more.
    """
    run = lambda q, k, v, g, S0: diagonal_recurrence.run(q, k, v, g, S0, chunk, cu_seqlens)
    return _stabilized(run, q, k, v, i, f, eps, S0, cu_seqlens)


def recurrent(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float = 1e-6, S0: State | None = None) -> tuple[Tensor, State]:
    """The definition, one token after the other, once the maxima are known."""
    return _stabilized(gla.recurrent, q, k, v, i, f, eps, S0)


def parallel(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float = 1e-6, S0: State | None = None) -> tuple[Tensor, State]:
    """All pairs of tokens at once: memory O(T² K)."""
    return _stabilized(gla.parallel, q, k, v, i, f, eps, S0)


def step(state: State, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, eps: float = 1e-6) -> tuple[Tensor, State]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H)`, then read: the output `(B, H, V)` and the new state, float32."""
    o, state = recurrent(q[:, None], k[:, None], v[:, None], i[:, None], f[:, None], eps, state)
    return o[:, 0], state


def gates(i: Tensor, f: Tensor, m: Tensor | None, *, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Writes, log-decays and all m, `(B, T, H)` each in float32, from the m `(N, H)` before them, None for nothing written."""
    i, keep, m = _checked(i, f, m, cu_seqlens)
    return _gates(i, keep, m, cu_seqlens)


def recurrent_sigmoid(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, normalize: bool = True, S0: tuple[Tensor, Tensor] | None = None, *,
    chunk: int = 64, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """The variant whose input gate is a sigmoid too, by chunks; its state is a pair, and unless it is asked to it does not divide."""
    i, keep, _ = _checked(i, f, None, cu_seqlens)
    pairs = _written(v, logsigmoid(i).exp())
    o, state = diagonal_recurrence.run(q, k, pairs, keep[..., None], S0 and _joined(*S0), chunk, cu_seqlens)
    both = o if o.dtype == torch.float64 else o.float()
    h = both[..., :-1] / both[..., -1:].abs().clamp(min=1) if normalize else both[..., :-1]
    return h.to(v.dtype), (state[..., :-1], state[..., -1])


def _stabilized(run, q, k, v, i, f, eps, S0, cu_seqlens=None):
    """A form of gated linear attention as one of mLSTM."""
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, not {eps}")
    if S0 is not None and len(S0) != 3:
        raise ValueError(f"S0 must be a triple, cell, normalizer and log of their unit, not {len(S0)} tensors")
    checks.shape(v=(v, "B T H V"), i=(i, "B T H"))
    i, keep, m = _checked(i, f, S0 and S0[2], cu_seqlens)
    write, g, units = _gates(i, keep, m, cu_seqlens)
    o, state = run(q, k, _written(v, write), g[..., None], S0 and _joined(*S0[:2]))
    unit, one = running_maximum.last(units, m, cu_seqlens)
    state = state * one[..., None, None]
    return _read(o, running_maximum.known(units), eps).to(v.dtype), (state[..., :-1], state[..., -1], unit)


def _gates(i, keep, m, cu_seqlens):
    before, units = running_maximum.run(keep, i, m, cu_seqlens)
    constant = running_maximum.known(units).detach()
    g = torch.where(before > -torch.inf, keep + before - constant, -torch.inf)
    return (i - constant).exp(), g - g.detach().clamp(min=0), units  # by pairs a maximum may come out one rounding lower than by steps


def _read(o, m, eps):
    """The quotient, above and below times e^min(m, 0), so that no exponent is above 0."""
    o, m = o if o.dtype == torch.float64 else o.float(), m[..., None]
    scale, least = m.detach().clamp(max=0).exp(), (-m.detach().clamp(min=0)).exp()
    small = eps * scale * (m - m.detach()).exp()  # m has a gradient here only: the rest of a quotient does not know its unit
    return scale * o[..., :-1] / (torch.maximum(scale * o[..., -1:].abs(), least) + small)


def _written(v, write):
    """Values and a column of ones, each token's times its weight."""
    return (write[..., None] * pad(v, (0, 1), value=1.0)).to(v.dtype)


def _joined(C, n):
    """Cell and normalizer as one state (N, H, K, V + 1)."""
    checks.shape(C=(C, "N H K V"), n=(n, "N H K"))
    return torch.cat([C, n[..., None]], -1)


def _checked(i, f, m, cu_seqlens):
    """Log-weights, log-decays and first units in the computing format."""
    sizes = checks.shape(i=(i, "B T H"), f=(f, "B T H"))
    checks.dtypes(*diagonal_recurrence.FLOATS, i=i, f=f)
    if cu_seqlens is not None:
        checks.shape(cu_seqlens=(cu_seqlens, "edges"))
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
    checks.same_device(i=i, f=f, m=m, cu_seqlens=cu_seqlens)
    i, f = (x if x.dtype == torch.float64 else x.float() for x in (i, f))
    start = (sizes["B"] if cu_seqlens is None else len(cu_seqlens) - 1, sizes["H"])
    if m is None:
        m = torch.full(start, -torch.inf, dtype=i.dtype, device=i.device)
    checks.shape(m=(m, f"{start[0]} {start[1]}"))
    checks.dtypes(i.dtype, m=m)
    return i, logsigmoid(f), m
