"""S4: a linear system per channel, run as a recurrence or as a convolution (arXiv:2111.00396).

Layout: u `(B, T, H)`, A `(H, N, N)`, B and C `(H, N)`, real or complex, Lam and p `(H, N)` complex, D and dt `(H,)`; kernels `(H, L)`,
states `(B, H, N)`. Parameters and states are float32 or complex64 (float64 or complex128 where u is float64); u may have 16 bits, and
outputs have its dtype.

`convolve` with one of the kernels is the one to train: Fourier transforms along time, for all sequences and channels together, in float32
or float64. `recurrent` and `step` are for generation. PyTorch on every device, with PyTorch's gradients. Systems are discretized, and
kernels computed, in float64 and complex128, and rounded once: powers of a system in float32 lose what makes it one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["recurrent", "kernel_powers", "kernel_cauchy", "convolve", "step", "bilinear", "zero_order_hold"]

DOUBLE = {torch.float32: torch.float64, torch.float64: torch.float64, torch.complex64: torch.complex128, torch.complex128: torch.complex128}
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def bilinear(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """The trapezoidal rule: the system in steps, `(H, N, N)` and `(H, N)`, solved for in float64."""
    A, B, dt, dtype = _doubled(A, B, dt)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    half = dt[:, None, None] / 2 * A
    solved = torch.linalg.solve(eye - half, torch.cat([eye + half, (dt[:, None] * B)[..., None]], -1)).to(dtype)
    return solved[..., :-1], solved[..., -1]


def zero_order_hold(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """The input held for a step: the system in steps, by one exponential in float64."""
    A, B, dt, dtype = _doubled(A, B, dt)
    both = torch.nn.functional.pad(torch.cat([A, B[..., None]], -1), (0, 0, 0, 1))
    turned = _exponential(dt[:, None, None] * both)[:, :-1].to(dtype)
    return turned[..., :-1], turned[..., -1]


def _exponential(M):
    """e^M in double, by Padé's fraction of order 6 and squares. Up to 1/2 it is right to 2e-17. The largest row is read on the host.

    `torch.linalg.matrix_exp` has a wrong coefficient (PyTorch #196592): a single matrix of small norm comes out with errors near 1e-10.
    """
    largest = float(M.detach().abs().sum(-1).max()) if M.numel() else 0.0
    halvings = math.ceil(math.log2(largest)) + 1 if 0.5 < largest < math.inf else 0
    M = M / 2**halvings
    eye, square = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device), M @ M
    even = eye + square @ (5 / 44 * eye + square @ (1 / 792 * eye + 1 / 665280 * square))
    odd = M @ (1 / 2 * eye + square @ (1 / 66 * eye + 1 / 15840 * square))
    turned = torch.linalg.solve(even - odd, even + odd)
    for _ in range(halvings):
        turned = turned @ turned
    return turned


def recurrent(
    u: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt: Tensor, S0: Tensor | None = None, rule: Rule = bilinear, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition, one sample after the other: outputs `(B, T, H)` and final states `(B, H, N)`.

    `cu_seqlens` `(n + 1,)`, from 0 to T, packs n sequences along T: B is 1, states are `(n, H, N)`, and an empty sequence returns its own.
    `rule` is `bilinear`, `zero_order_hold`, or any function of (A, B, dt) that returns a system in steps.
    """
    pieces = [slice(None)] if cu_seqlens is None else _pieces(u, cu_seqlens)
    sequences = u.shape[0] if cu_seqlens is None else len(pieces)
    state = A.new_zeros((sequences, *B.shape)) if S0 is None else S0
    _demand(u, "B T H", A, B, C, D, dt, S0=(state, f"{sequences} H N"))
    system = *rule(A, B, dt), C, D
    outputs, states = [u[:, :0]], [state[:0]]
    for n, piece in enumerate(pieces):
        last = state if cu_seqlens is None else state[n : n + 1]
        for sample in u[:, piece].unbind(1):
            y, last = _step(last, sample, *system)
            outputs.append(y[:, None])
        states.append(last)
    return torch.cat(outputs, 1), torch.cat(states)


def step(state: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt: Tensor, rule: Rule = bilinear) -> tuple[Tensor, Tensor]:
    """One sample per channel, `(B, H)`: the output `(B, H)` and the new state `(B, H, N)`.

    It discretizes the system: to generate, do that once and hand on a rule that returns A and B as they are.
    """
    _demand(u, "B H", A, B, C, D, dt, state=(state, "B H N"))
    return _step(state, u, *rule(A, B, dt), C, D)


def _step(state, u, move, write, C, D):
    x = u.to(D.dtype)
    state = (move @ state[..., None])[..., 0] + write * x[..., None]
    return (_real((C * state).sum(-1)) + D * x).to(u.dtype), state


def kernel_powers(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int, rule: Rule = bilinear) -> Tensor:
    """The first L samples of the response to an impulse, `(H, L)`: every product doubles their number."""
    checks.at_least(0, L=L)
    _system(A, B, C, dt)
    A, B, dt, dtype = _doubled(A, B, dt)
    move, write = rule(A, B, dt)
    rows = write[..., None]  # (H, N, 1, 2, 4 …)
    while rows.shape[-1] < L:
        rows, move = torch.cat([rows, move @ rows], -1), move @ move
    return _real((C.to(A.dtype)[:, None] @ rows[..., :L])[:, 0].to(dtype))


def kernel_cauchy(Lam: Tensor, p: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """The bilinear kernel of A = Diag(Lam) - p p*, `(H, L)`: four sums of fractions at every L-th root of 1, and a Fourier transform.

    Real parts of Lam are below 0. The fractions take H N L complex numbers.
    """
    checks.at_least(1, L=L)
    checks.shape(Lam=(Lam, "H N"), p=(p, "H N"), B=(B, "H N"), C=(C, "H N"), dt=(dt, "H"))
    checks.dtypes(torch.complex64, torch.complex128, Lam=Lam)
    checks.same(Lam=Lam, p=p, B=B, C=C)
    checks.dtypes(Lam.real.dtype, dt=dt)
    checks.same_device(Lam=Lam, dt=dt)
    real = Lam.real.dtype
    Lam, p, B, C = (x.to(torch.complex128) for x in (Lam, p, B, C))
    dt = dt.to(torch.float64)
    move, _ = bilinear(torch.diag_embed(Lam) - p[..., None] * p.conj()[:, None], B, dt)
    folded = C - (C[:, None] @ torch.linalg.matrix_power(move, L))[:, 0]
    turns = torch.arange(L, dtype=torch.float64, device=Lam.device) / L
    root = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)  # (L,)
    half = dt[:, None] / 2 * (1 + root)  # (H, L)
    fractions = 1 / (1 - root - half[:, None] * Lam[..., None])  # (H, N, L)
    weights = torch.stack([folded * B, folded * p, p.conj() * B, p.conj() * p], 1)  # (H, 4, N)
    direct, out, into, within = (weights @ fractions).unbind(1)  # (H, L)
    values = direct - out * half * into / (1 + half * within)
    return torch.fft.ifft(dt[:, None] * values).real.to(real)


def convolve(u: Tensor, K: Tensor, D: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Outputs from a zero state, `(B, T, H)`: K `(H, L)` of any length, no longer than T to any effect.

    `cu_seqlens` packs sequences along T; they run one after the other. A NaN in u is everywhere in its sequence and channel.
    """
    checks.shape(u=(u, "B T H"), K=(K, "H L"), D=(D, "H"))
    wide = _wide(u)
    checks.dtypes(wide, K=K, D=D)
    checks.same_device(u=u, K=K, D=D)
    if cu_seqlens is not None:
        return torch.cat([u[:, :0], *(convolve(u[:, piece], K, D) for piece in _pieces(u, cu_seqlens))], 1)
    T = u.shape[1]
    x, near = u.to(wide).transpose(1, 2), K[:, :T]  # (B, H, T), (H, L)
    n = 2 ** (T + near.shape[1]).bit_length()  # nothing comes round
    y = torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(near, n), n)[..., :T]
    return (y + D[:, None] * x).transpose(1, 2).to(u.dtype)


def _wide(u):
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, torch.float64, u=u)
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _real(x):
    return x.real if x.is_complex() else x


def _doubled(A, B, dt):
    """The system in double precision, and the dtype that it had."""
    checks.shape(A=(A, "H N N"), B=(B, "H N"), dt=(dt, "H"))
    checks.dtypes(*DOUBLE, A=A)
    checks.dtypes(A.dtype, B=B)
    double = DOUBLE[A.dtype]
    return A.to(double), B.to(double), dt.to(torch.float64), A.dtype


def _system(A, B, C, dt):
    checks.shape(A=(A, "H N N"), B=(B, "H N"), C=(C, "H N"), dt=(dt, "H"))
    checks.dtypes(*DOUBLE, A=A)
    checks.same(A=A, B=B, C=C)
    checks.dtypes(_real(A).dtype, dt=dt)
    checks.same_device(A=A, dt=dt)


def _demand(u, axes, A, B, C, D, dt, **state):
    ((name, (tensor, expected)),) = state.items()
    checks.shape(A=(A, "H N N"), B=(B, "H N"), u=(u, axes), D=(D, "H"), **{name: (tensor, expected)})
    _system(A, B, C, dt)
    wide = _wide(u)
    checks.dtypes(wide, torch.complex128 if wide == torch.float64 else torch.complex64, A=A)
    checks.dtypes(A.dtype, **{name: tensor})
    checks.dtypes(wide, D=D)
    checks.same_device(A=A, u=u, D=D, **{name: tensor})


def _pieces(u, cu_seqlens):
    """Where sequences lie along T; read on the host."""
    checks.shape(cu_seqlens=(cu_seqlens, "n"))
    checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
    edges = cu_seqlens.tolist()
    if u.ndim != 3 or u.shape[0] != 1 or edges != sorted(edges) or edges[:1] != [0] or edges[-1] != u.shape[1]:
        raise ValueError(f"cu_seqlens must rise from 0 to T, with B = 1, not be {edges} for u of shape {tuple(u.shape)}")
    return [slice(a, b) for a, b in zip(edges, edges[1:])]
