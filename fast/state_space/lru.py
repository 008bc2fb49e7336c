"""LRU: a linear recurrent network of complex numbers that turn and shrink, each at a rate of its own (arXiv:2303.06349).

Layout: inputs u `(B, T, H)`, nu and theta `(N,)`, B `(2, N, H)`, C `(2, H, N)`, D `(H,)`, in float32 or the format of u; states
`(B, 2, N)` in float32. Complex numbers are pairs of real ones. Everything is computed in float32, outputs are rounded to the format of u.

`scan` runs on the kernels of `linear_attention.hgrn`, in a frame that turns along with the states; angles are products of a place and an
angle per token, taken in float64, so that long sequences lose none of their digits. `recurrent` is plain PyTorch; `step` is one token.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import channel_recurrence

__all__ = ["recurrent", "scan", "step"]


def scan(
    u: Tensor, nu: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None, chunk: int | None = None, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H)` and final states `(B, 2, N)`, with gradients for everything, S0 included.

    `cu_seqlens` `(M + 1,)`, from 0 to T, packs M sequences along T: B is 1, S0 and final states are `(M, 2, N)`, and an empty sequence
    returns its S0. `chunk`, chosen from the shape if it is None, changes speed and rounding only.
    """
    wide = _demand(u, nu, theta, B, C, D, "B T H")
    if S0 is not None:
        checks.shape(nu=(nu, "N"), S0=(S0, "sequences 2 N"))
    cos, sin = _frame(_places(u, cu_seqlens), theta, wide)
    row = u.to(wide)  # once: what flows back to it is then summed before it is rounded
    z = _turn(_written(row, nu, B), cos, -sin)
    g = -nu.to(wide).exp().repeat(2).expand(z.shape)
    z, last = channel_recurrence.run(z, g, None if S0 is None else S0.flatten(1), chunk, cu_seqlens)
    lengths = torch.full((len(u),), u.shape[1], device=u.device) if cu_seqlens is None else cu_seqlens.diff()
    state = _turn(last, *_frame(lengths, theta, wide)).unflatten(1, (2, -1))
    return _read(_turn(z, cos, sin), row, C, D).to(u.dtype), state


def recurrent(u: Tensor, nu: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    wide = _demand(u, nu, theta, B, C, D, "B T H")
    state = torch.zeros((len(u), 2, len(nu)), dtype=wide, device=u.device) if S0 is None else S0
    outputs = [u[:, :0]]
    for t in range(u.shape[1]):
        output, state = step(state, u[:, t], nu, theta, B, C, D)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def step(state: Tensor, u: Tensor, nu: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """Turn and shrink, write one token `(B, H)`, then read: the output `(B, H)` and the new state, float32."""
    wide = _demand(u, nu, theta, B, C, D, "B H")
    checks.shape(u=(u, "B H"), nu=(nu, "N"), state=(state, "B 2 N"))
    cos, sin = _frame(torch.ones(1, device=u.device), theta, wide)
    shrunk = state.flatten(1) * (-nu.to(wide).exp().repeat(2)).exp()
    state = _turn(shrunk, cos, sin) + _written(u.to(wide), nu, B)
    return _read(state, u.to(wide), C, D).to(u.dtype), state.unflatten(1, (2, -1))


def _demand(u, nu, theta, B, C, D, tokens):
    checks.shape(u=(u, tokens), nu=(nu, "N"), theta=(theta, "N"), B=(B, "2 N H"), C=(C, "2 H N"), D=(D, "H"))
    checks.dtypes(*channel_recurrence.FLOATS, u=u)
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    checks.dtypes(wide, u.dtype, nu=nu, theta=theta, B=B, C=C, D=D)
    checks.same_device(u=u, nu=nu, theta=theta, B=B, C=C, D=D)
    return wide


def _places(u, cu_seqlens):
    """The number of each token in its own sequence, from 1: `(T,)`."""
    places = torch.arange(1, u.shape[1] + 1, device=u.device)
    if cu_seqlens is None:
        return places
    edges = cu_seqlens.to(torch.int64)
    return places - edges[torch.searchsorted(edges, places) - 1]


def _frame(places, theta, wide):
    """Cosines and sines of the angles so far."""
    angle = places.double()[:, None] * theta.double()
    return angle.cos().to(wide), angle.sin().to(wide)


def _turn(z, cos, sin):
    """Complex numbers, real parts before imaginary ones, by an angle."""
    real, imaginary = z.chunk(2, -1)
    return torch.cat([cos * real - sin * imaginary, sin * real + cos * imaginary], -1)


def _written(u, nu, B):
    """gamma B u, `(…, 2 N)`."""
    return _gamma(nu.to(u.dtype)).repeat(2) * (u @ B.to(u.dtype).flatten(0, 1).T)


def _gamma(nu):
    """sqrt(1 - |lambda|²) as a constant, plus nothing with its slope: that of expm1 in PyTorch loses its digits where |lambda| is small."""
    rate = nu.clamp(max=60).exp()  # lambda is 0 from a rate of 104 on
    fixed = rate.detach()
    root = (-torch.expm1(-2 * fixed)).sqrt()
    return root + torch.exp(-2 * fixed) / root.clamp(min=2.0**-60) * (rate - fixed)


def _read(x, u, C, D):
    """Re(C x) + D u."""
    return x @ torch.cat([C[0], -C[1]], 1).to(u.dtype).T + D.to(u.dtype) * u
