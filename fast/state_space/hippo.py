"""HiPPO: a state that is, at every moment, the best polynomial through everything seen so far (arXiv:2008.07669).

`legs` and `legs_low_rank` are computed in float64, whatever they are cast to: what is built on them, S4 and its kin, needs the digits.
`legs_project` takes signals `(B, T, D)` of float32, bfloat16, float16 or float64 and keeps coefficients `(B, T, D, N)` in float32 (or
float64). The transitions do not depend on the signals: they are solved for in float64, 64 samples at once, and what is left per sample is
one product of matrices for all signals together. PyTorch on every device; gradients are PyTorch's own.
"""

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["legs", "legs_project", "legs_low_rank"]

BLOCK = 64  # samples whose transitions are solved for together


def legs(N: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The system: A `(N, N)`, lower triangular, and B `(N,)`."""
    checks.at_least(1, N=N)
    odd = 2 * torch.arange(N, dtype=torch.float64, device=device) + 1
    A = -torch.outer(odd, odd).sqrt().tril(-1) - torch.diag((odd + 1) / 2)
    return A.to(dtype), odd.sqrt().to(dtype)


def legs_project(f: Tensor, N: int) -> Tensor:
    """Coefficients after each sample, `(B, T, D, N)`, by the trapezoidal rule."""
    sizes = checks.shape(f=(f, "B T D"))
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, torch.float64, f=f)
    wide = torch.float64 if f.dtype == torch.float64 else torch.float32
    (A, B), eye = legs(N, device=f.device), torch.eye(N, dtype=torch.float64, device=f.device)
    c = torch.zeros((sizes["B"], sizes["D"], N), dtype=wide, device=f.device)
    rows = [c[:, None][:, :0]]
    for samples in f.to(wide).split(BLOCK, 1) if sizes["T"] else ():
        first = len(rows)
        k = torch.arange(first, first + samples.shape[1], dtype=torch.float64, device=f.device)[:, None, None]
        sides = torch.cat([eye + A / (2 * k), B[:, None] / k], 2)
        solved = torch.linalg.solve_triangular(eye - A / (2 * k), sides, upper=False).to(wide)  # (BLOCK, N, N + 1)
        for move, write, sample in zip(solved[..., :-1].mT, solved[..., -1], samples.unbind(1)):
            c = c @ move + sample[..., None] * write
            rows.append(c[:, None])
    return torch.cat(rows, 1)


def legs_low_rank(
    N: int, *, dtype: torch.dtype = torch.complex128, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lam, P and B `(N,)` in the basis V `(N, N)`: A = V (Diag(Lam) - P P*) V*, and B of the system is V B. Lowest frequency first."""
    (A, B), P = legs(N, device=device), (torch.arange(N, dtype=torch.float64, device=device) + 0.5).sqrt()
    skew = A + torch.outer(P, P) + torch.eye(N, dtype=torch.float64, device=device) / 2
    frequencies, V = torch.linalg.eigh(-1j * skew)
    Lam = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    return Lam.to(dtype), (V.mH @ P.to(V.dtype)).to(dtype), (V.mH @ B.to(V.dtype)).to(dtype), V.to(dtype)
