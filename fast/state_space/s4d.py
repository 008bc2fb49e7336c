"""S4D: a diagonal state-space model, a bank of damped oscillators per channel (arXiv:2206.11893).

Layout: u `(B, T, H)`, Lam and C `(H, N)` complex, one of each conjugate pair, D and dt `(H,)`; states `(B, H, N)` complex. Parameters and
states are complex64 and float32 (complex128 and float64 where u is float64); u may have 16 bits, and outputs have its dtype.

`chunked` is the one to use: inside a chunk a convolution, as one product with a Toeplitz matrix per channel; between chunks only states
pass. It is PyTorch on every device, with PyTorch's gradients. Powers of e^{Lam dt} are computed in complex128 and rounded once: in float32
the phase after j steps would have lost log2(j) bits. `kernel` is the response to an impulse, for whoever convolves by other means;
`recurrent` goes sample by sample.
"""

import math

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.state_space import hippo
from twofold.fast.state_space._hold import held

__all__ = ["recurrent", "kernel", "chunked", "step", "lambdas"]

BLOCK = 64  # of the kernel: powers up to L are products of powers below BLOCK and of multiples of it


def chunked(
    u: Tensor, Lam: Tensor, C: Tensor, D: Tensor, dt: Tensor, S0: Tensor | None = None, chunk: int = 64, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs `(B, T, H)` and final states `(B, H, N)`, with gradients for everything.

    `cu_seqlens` `(n + 1,)`, from 0 to T, packs n sequences along T: B is 1, states are `(n, H, N)`, and an empty sequence returns its own.
    They run one after the other, and their edges are read on the host. `chunk` changes speed and rounding only.
    """
    checks.at_least(1, chunk=chunk)
    if cu_seqlens is not None:
        return _packed(u, Lam, C, D, dt, S0, chunk, cu_seqlens)
    x, state = _demand(u, Lam, C, D, dt, S0)
    turns = _powers(Lam, dt, torch.arange(chunk + 1, device=u.device))  # (H, N, chunk + 1)
    K = 2 * ((C * _held(Lam, dt)).to(turns.dtype)[:, None] @ turns[..., :-1])[:, 0].real  # (H, chunk)
    lag = torch.arange(chunk, device=u.device)[:, None] - torch.arange(chunk, device=u.device)
    toeplitz = torch.where(lag >= 0, K[:, lag.clamp(min=0)], 0.0)  # (H, chunk, chunk)
    whole = x.shape[1] // chunk * chunk
    first, state = _equal_chunks(x[:, :whole], chunk, state, turns, toeplitz, Lam, C, dt)
    last, state = _equal_chunks(x[:, whole:], x.shape[1] - whole, state, turns, toeplitz, Lam, C, dt)
    return (torch.cat([first, last], 1) + D * x).to(u.dtype), state


def _equal_chunks(x, size, state, turns, toeplitz, Lam, C, dt):
    """Outputs without the D, and the state behind them, of a whole number of chunks."""
    if x.shape[1] == 0:
        return x, state
    rows = x.unflatten(1, (-1, size)).permute(3, 0, 1, 2)  # (H, B, chunks, size)
    left = rows.to(turns.dtype) @ turns[:, None, :, :size].flip(-1).mT  # (H, B, chunks, N)
    states = [state]
    for new in (left * _held(Lam, dt).to(turns.dtype)[:, None, None]).permute(2, 1, 0, 3):  # (B, H, N)
        states.append(turns[:, :, size] * states[-1] + new)
    found = torch.stack(states[:-1], 2).transpose(0, 1) * C[:, None, None]  # (H, B, chunks, N)
    y = rows @ toeplitz[:, None, :size, :size].mT + 2 * (found @ turns[:, None, :, 1 : size + 1]).real
    return y.permute(1, 2, 3, 0).flatten(1, 2), states[-1]


def _packed(u, Lam, C, D, dt, S0, chunk, cu_seqlens):
    sequences = checks.shape(cu_seqlens=(cu_seqlens, "n"))["n"] - 1
    checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
    edges = cu_seqlens.tolist()
    if u.ndim != 3 or u.shape[0] != 1 or edges != sorted(edges) or edges[:1] != [0] or edges[-1] != u.shape[1]:
        raise ValueError(f"cu_seqlens must rise from 0 to T, with B = 1, not be {edges} for u of shape {tuple(u.shape)}")
    if S0 is not None:
        checks.shape(Lam=(Lam, "H N"), S0=(S0, f"{sequences} H N"))
    pieces = list(zip(edges, edges[1:]))
    results = [chunked(u[:, a:b], Lam, C, D, dt, None if S0 is None else S0[n : n + 1], chunk) for n, (a, b) in enumerate(pieces)]
    state = torch.cat([state for _, state in results]) if results else Lam.new_zeros((0, *Lam.shape))
    return torch.cat([u[:, :0], *(y for y, _ in results)], 1), state


def recurrent(u: Tensor, Lam: Tensor, C: Tensor, D: Tensor, dt: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one sample after the other."""
    _, state = _demand(u, Lam, C, D, dt, S0)
    outputs = [u[:, :0]]
    for sample in u.unbind(1):
        y, state = step(state, sample, Lam, C, D, dt)
        outputs.append(y[:, None])
    return torch.cat(outputs, 1), state


def step(state: Tensor, u: Tensor, Lam: Tensor, C: Tensor, D: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """One sample per channel, `(B, H)`: the output `(B, H)` and the new state `(B, H, N)`."""
    checks.shape(u=(u, "B H"), Lam=(Lam, "H N"), C=(C, "H N"), D=(D, "H"), dt=(dt, "H"), state=(state, "B H N"))
    x, turn = u.to(state.real.dtype), _powers(Lam, dt, torch.ones(1, device=u.device))[..., 0]
    state = turn * state + _held(Lam, dt).to(turn.dtype) * x[..., None]
    return (2 * (C * state).real.sum(-1) + D * x).to(u.dtype), state


def kernel(Lam: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """The response to an impulse without the D, `(H, L)`, in O(H N (BLOCK + L / BLOCK)) exponentials and one product of matrices."""
    checks.shape(Lam=(Lam, "H N"), C=(C, "H N"), dt=(dt, "H"))
    near = _powers(Lam, dt, torch.arange(BLOCK, device=Lam.device))  # (H, N, BLOCK)
    far = _powers(Lam, dt, BLOCK * torch.arange(-(-L // BLOCK), device=Lam.device))  # (H, N, L / BLOCK)
    mixed = (C * _held(Lam, dt)).to(near.dtype)
    return 2 * ((mixed[..., None] * far).mT @ near).real.flatten(1)[:, :L]


def lambdas(N: int, kind: str, *, dtype: torch.dtype = torch.complex64, device: torch.device | str | None = None) -> Tensor:
    """N / 2 starting points, a half of each pair: "legs", "inv" or "lin"."""
    if N < 2 or N % 2:
        raise ValueError(f"N must be even and at least 2, not {N}")
    n = torch.arange(N // 2, dtype=torch.float64, device=device)
    if kind == "legs":
        return hippo.legs_low_rank(N, device=device)[0][N - N // 2 :].to(dtype)
    if kind not in ("inv", "lin"):
        raise ValueError(f'kind must be "legs", "inv" or "lin", not {kind!r}')
    frequencies = math.pi * n if kind == "lin" else N / math.pi * (N / (2 * n + 1) - 1)
    return torch.complex(torch.full_like(n, -0.5), frequencies).to(dtype)


def _demand(u, Lam, C, D, dt, S0):
    """The input in the computing format and the state at the start."""
    sizes = checks.shape(u=(u, "B T H"), Lam=(Lam, "H N"), C=(C, "H N"), D=(D, "H"), dt=(dt, "H"))
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, torch.float64, u=u)
    double = u.dtype == torch.float64
    wide, paired = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    checks.dtypes(paired, Lam=Lam, C=C, S0=S0)
    checks.dtypes(wide, D=D, dt=dt)
    checks.same_device(u=u, Lam=Lam, C=C, D=D, dt=dt, S0=S0)
    state = Lam.new_zeros((sizes["B"], *Lam.shape)) if S0 is None else S0
    checks.shape(u=(u, "B T H"), Lam=(Lam, "H N"), S0=(state, "B H N"))
    return u.to(wide), state


def _exponent(Lam, dt):
    return Lam.to(torch.complex128) * dt.to(torch.float64)[:, None]


def _powers(Lam, dt, counts):
    """e^{Lam dt} to these powers, `(H, N, counts)`, each rounded once to the dtype of Lam."""
    return (_exponent(Lam, dt)[..., None] * counts.to(torch.float64)).exp().to(Lam.dtype)


def _held(Lam, dt):
    """What a step writes of an input held for its length, in complex128."""
    return dt[:, None] * held(_exponent(Lam, dt))
