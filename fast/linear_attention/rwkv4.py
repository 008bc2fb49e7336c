"""RWKV-4: every channel takes a mean of its past, by weights that fade and that keys decide (arXiv:2305.13048).

Layout: log-weights k and values v `(B, T, D)`, decays w and bonuses u `(D,)`; a state is a triple of `(B, D)` in float32: the
sums of values and of weights, and the log of their unit, -inf at the start. There are no heads.

`scan` is the one to use. Units are a scan done ahead in PyTorch (`fast/kernels/running_maximum.py`); both sums are then one call of
`linear_attention.hgrn` with twice the channels, in float32: on a GPU its Triton kernels. What is read of them is PyTorch again, a few
operations per element. `recurrent` is plain PyTorch, for reference; `step` is one token.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from twofold.fast import checks
from twofold.fast.kernels import channel_recurrence, running_maximum

__all__ = ["recurrent", "scan", "step", "gates", "token_shift"]

State = tuple[Tensor, Tensor, Tensor]


def scan(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, S0: State | None = None, chunk: int | None = None, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, State]:
    """Outputs `(B, T, D)` and final state, with gradients for everything.

    `cu_seqlens` and `chunk` as in `hgrn.scan`: packed sequences have states of their own, and an empty one returns its S0.
    """
    k, values, w, u, (p, q, o) = _checked(k, v, w, u, S0, cu_seqlens)
    write, g, units = gates(k, w, o, cu_seqlens=cu_seqlens)
    first = torch.cat([p, q], -1)
    rows, decays = torch.cat([write * values, write], -1), torch.cat([g, g], -1)
    sums, state = channel_recurrence.run(rows, decays, first, chunk, cu_seqlens)
    found = running_maximum.preceding(sums, first, cu_seqlens)
    before = running_maximum.preceding(units.detach(), o, cu_seqlens)
    p, q = found.chunk(2, -1)
    y = _read(p, q, before, k, values, u)
    p, q = state.chunk(2, -1)
    unit, one = running_maximum.last(units, o, cu_seqlens)
    return y.to(v.dtype), (one * p, one * q, unit)


def recurrent(k: Tensor, v: Tensor, w: Tensor, u: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """The definition, one token after the other."""
    *_, state = _checked(k, v, w, u, S0)
    outputs = [v[:, :0]]
    for t in range(v.shape[1]):
        output, state = step(state, k[:, t], v[:, t], w, u)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def step(state: State, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, State]:
    """Read, then fade and add one token, `(B, D)` each: the output in the format of v, and the new state, float32."""
    wide, values, w, u, (p, q, o) = _checked(k[:, None], v[:, None], w, u, state)
    k, values = wide[:, 0], values[:, 0]
    y = _read(p, q, o, k, values, u)
    unit = torch.maximum(o - w, k)
    kept, added = (o - w - unit).exp(), (k - unit).exp()
    return y.to(v.dtype), (kept * p + added * values, kept * q + added, unit)


def gates(k: Tensor, w: Tensor, o: Tensor, *, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Writes and log-decays of both sums, and the units after each token, `(B, T, D)` in float32, from the units `(N, D)` before them."""
    checks.shape(k=(k, "B T D"), w=(w, "D"), o=(o, "N D"))
    k, w = k.to(o.dtype), w.to(o.dtype)
    before, units = running_maximum.run(-w.expand_as(k), k, o, cu_seqlens)
    constant = units.detach()
    g = before - w - constant
    return (k - constant).exp(), g - g.detach().clamp(min=0), units  # by pairs a maximum may come out one rounding lower than by steps


def token_shift(x: Tensor, mu: Tensor, last: Tensor | None = None) -> Tensor:
    """Rows `(B, T, D)` mixed with the rows before them, `last` `(B, D)` (None: zeros) before the first: mu x_t + (1 - mu) x_{t-1}."""
    checks.shape(x=(x, "B T D"), mu=(mu, "D"))
    before = pad(x, (0, 0, 1, 0))[:, :-1]
    if last is not None and x.shape[1]:
        checks.shape(x=(x, "B T D"), last=(last, "B D"))
        before = torch.cat([last[:, None], x[:, :-1]], 1)
    return mu * x + (1 - mu) * before


def _read(p, q, o, k, v, u):
    """The mean of what was kept and the token itself, in the larger of both units, which cancels."""
    own = u + k
    unit = torch.maximum(o, own).detach()
    kept, added = (o - unit).exp(), (own - unit).exp()
    return (kept * p + added * v) / (kept * q + added)


def _checked(k, v, w, u, S0, cu_seqlens=None):
    """Everything in the computing format, and a state."""
    sizes = checks.shape(v=(v, "B T D"), k=(k, "B T D"), w=(w, "D"), u=(u, "D"))
    checks.dtypes(*channel_recurrence.FLOATS, k=k, v=v, w=w, u=u)
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    sequences = sizes["B"]
    if cu_seqlens is not None:
        sequences = checks.shape(cu_seqlens=(cu_seqlens, "edges"))["edges"] - 1
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
    if S0 is None:
        nothing = torch.zeros((2, sequences, sizes["D"]), dtype=wide, device=v.device)
        S0 = *nothing, torch.full_like(nothing[0], -torch.inf)
    if len(S0) != 3:
        raise ValueError(f"S0 must be a triple, sums of values and of weights and log of their unit, not {len(S0)} tensors")
    for name, part in zip(("p", "q", "o"), S0, strict=True):
        checks.shape(**{name: (part, f"{sequences} {sizes['D']}")})
        checks.dtypes(wide, **{name: part})
    checks.same_device(v=v, k=k, w=w, u=u, p=S0[0], q=S0[1], o=S0[2], cu_seqlens=cu_seqlens)
    return *(x.to(wide) for x in (k, v, w, u)), S0
