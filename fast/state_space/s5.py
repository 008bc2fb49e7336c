"""S5: one bank of damped oscillators for all channels, which hears a mix of them and answers with as many (arXiv:2208.04933).

Layout: u `(B, T, H)`, Lam and dt `(N,)`, B `(N, H)`, C `(H, N)`, D `(H,)`; Lam, B and C complex, one of each conjugate pair; states
`(B, N)` complex. Parameters and states are complex64 and float32 (complex128 and float64 where u is float64); u may have 16 bits, and
outputs have its dtype.

`scan` is the one to use. In a frame that turns along with the oscillators nothing turns: real and imaginary parts are 2 N real numbers that
only fade, and they run on the kernels of `linear_attention.hgrn` (`fast/kernels/channel_scan.py`: Triton on a GPU, else PyTorch). What is
before and behind, two products of matrices and the turning, is PyTorch. The chunk kernel of gated linear attention would do the same with
queries and keys turned, but it reads one number of a state, and here H are read: it would carry the state H times.

Angles are products of a place and an angle, taken in float64 and rounded once, so that long sequences keep their digits. `recurrent` is
plain PyTorch; `step` is one sample. `check=True` has a GPU wait for a look at decays and edges.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import channel_recurrence
from twofold.fast.state_space._hold import held

__all__ = ["recurrent", "scan", "step"]


def scan(
    u: Tensor, Lam: Tensor, B: Tensor, C: Tensor, D: Tensor, dt: Tensor, S0: Tensor | None = None, *, chunk: int | None = None,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H)` and final states `(B, N)`, with gradients for everything, S0 included.

    `cu_seqlens` `(n + 1,)`, from 0 to T, packs n sequences along T: B is 1, S0 and final states are `(n, N)`, and an empty sequence returns
    its S0. `chunk`, chosen from the shape if it is None, changes speed and rounding only.
    """
    x = _demand(u, "B T H", Lam, B, C, D, dt)
    sequences = len(u) if cu_seqlens is None else checks.shape(cu_seqlens=(cu_seqlens, "n"))["n"] - 1
    if sequences < 0:
        raise ValueError("cu_seqlens must hold at least one edge")
    if S0 is not None:
        _demand_state("S0", S0, Lam, sequences)
    away = _turns(Lam, dt, -_places(u, cu_seqlens))  # (T, N)
    z = _parts(_written(x, Lam, B, dt) * away)  # (B, T, 2 N)
    g = (Lam.real.to(torch.float64) * dt.to(torch.float64)).to(x.dtype).repeat_interleave(2).expand(z.shape)
    z, last = channel_recurrence.run(z, g, None if S0 is None else _parts(S0), chunk, cu_seqlens, check)
    lengths = torch.full((sequences,), u.shape[1], device=u.device) if cu_seqlens is None else cu_seqlens.diff()
    return _read(_whole(z) * away.conj(), x, C, D).to(u.dtype), _whole(last) * _turns(Lam, dt, lengths)


def recurrent(u: Tensor, Lam: Tensor, B: Tensor, C: Tensor, D: Tensor, dt: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one sample after the other."""
    x = _demand(u, "B T H", Lam, B, C, D, dt)
    state = Lam.new_zeros((len(u), len(Lam))) if S0 is None else S0
    _demand_state("S0", state, Lam, len(u))
    move, outputs = _exponent(Lam, dt).exp().to(Lam.dtype), [x[:, :0]]
    for sample, written in zip(x.unbind(1), _written(x, Lam, B, dt).unbind(1), strict=True):
        state = move * state + written
        outputs.append(_read(state, sample, C, D)[:, None])
    return torch.cat(outputs, 1).to(u.dtype), state


def step(state: Tensor, u: Tensor, Lam: Tensor, B: Tensor, C: Tensor, D: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """One sample of all channels, `(B, H)`: the outputs `(B, H)` and the new state `(B, N)`."""
    x = _demand(u, "B H", Lam, B, C, D, dt)
    _demand_state("state", state, Lam, len(u))
    state = _exponent(Lam, dt).exp().to(Lam.dtype) * state + _written(x, Lam, B, dt)
    return _read(state, x, C, D).to(u.dtype), state


def _demand(u, axes, Lam, B, C, D, dt):
    """The input in the computing format."""
    checks.shape(u=(u, axes), Lam=(Lam, "N"), B=(B, "N H"), C=(C, "H N"), D=(D, "H"), dt=(dt, "N"))
    checks.dtypes(*channel_recurrence.FLOATS, u=u)
    wide, paired = (torch.float64, torch.complex128) if u.dtype == torch.float64 else (torch.float32, torch.complex64)
    checks.dtypes(paired, Lam=Lam, B=B, C=C)
    checks.dtypes(wide, D=D, dt=dt)
    checks.same_device(u=u, Lam=Lam, B=B, C=C, D=D, dt=dt)
    return u.to(wide)


def _demand_state(name, state, Lam, sequences):
    checks.shape(Lam=(Lam, "N"), **{name: (state, f"{sequences} N")})
    checks.dtypes(Lam.dtype, **{name: state})
    checks.same_device(Lam=Lam, **{name: state})


def _places(u, cu_seqlens):
    """The number of each sample in its own sequence, from 1: `(T,)`."""
    places = torch.arange(1, u.shape[1] + 1, device=u.device)
    if cu_seqlens is None:
        return places
    edges = cu_seqlens.to(torch.int64)
    return places - edges[(torch.searchsorted(edges, places) - 1).clamp(0, len(edges) - 1)]


def _exponent(Lam, dt):
    return Lam.to(torch.complex128) * dt.to(torch.float64)


def _turns(Lam, dt, counts):
    """e^{i Im(Lam) dt} to these powers, `(counts, N)`."""
    angle = counts.to(torch.float64)[:, None] * (Lam.imag.to(torch.float64) * dt.to(torch.float64))
    return torch.complex(angle.cos(), angle.sin()).to(Lam.dtype)


def _written(x, Lam, B, dt):
    """What samples write of an input held for the length of a step, `(…, N)`; B so held is rounded once."""
    rows = ((dt * held(_exponent(Lam, dt)))[:, None] * B).to(B.dtype)
    return torch.complex(x @ rows.real.T, x @ rows.imag.T)


def _read(states, x, C, D):
    return 2 * (states.real @ C.real.T - states.imag @ C.imag.T) + D * x


def _parts(z):
    """Complex numbers as pairs of real ones, side by side: `(…, 2 N)`."""
    return torch.view_as_real(z).flatten(-2)


def _whole(z):
    return torch.view_as_complex(z.unflatten(-1, (-1, 2)))
