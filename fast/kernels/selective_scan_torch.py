"""The PyTorch twin of `selective_scan`: the scan of `channel_scan_torch` over all channels and states, some channels at a time.

It does write the T D N states, but never more than `MOST` numbers at once, so that long sequences need no more memory than short ones.
"""

import torch

from twofold.fast.kernels import channel_scan_torch

__all__ = ["backward", "forward"]

MOST = 2**22


def forward(x, delta, A, B, C, D, S0, cu_seqlens, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, D)` and final states `(N, D, states)`."""
    y, final = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(S0)
    read = C.to(S0.dtype)
    for some in _pieces(x, A):
        write, g = _channels(x[..., some], delta[..., some], A[some], B, S0.dtype)
        h, state = channel_scan_torch.forward(write, g, S0[:, some].flatten(1), cu_seqlens, chunk)
        final[:, some] = state.unflatten(1, (-1, A.shape[1]))
        output = torch.einsum("btdn,btn->btd", h.unflatten(2, (-1, A.shape[1])), read)
        y[..., some] = (output + D[some].to(S0.dtype) * x[..., some].to(S0.dtype)).to(y.dtype)
    return y, final


def backward(x, delta, A, B, C, D, S0, cu_seqlens, dy, dS, chunk: int | None) -> tuple[torch.Tensor, ...]:
    """dx, ddelta, dA, dB, dC, dD and dS0; those of x, B and C in their format, the others in that of the states."""
    wide = S0.dtype
    dx, ddelta = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty(x.shape, dtype=wide, device=x.device)
    dA, dS0 = torch.empty(A.shape, dtype=wide, device=x.device), torch.empty_like(S0)
    dB, dC = (torch.zeros(B.shape, dtype=wide, device=x.device) for _ in range(2))
    write, read = B.to(wide), C.to(wide)
    for some in _pieces(x, A):
        length, row, drow = (z[..., some].to(wide) for z in (delta, x, dy))
        scaled = length * row
        written, g = _channels(row, length, A[some], B, wide)
        first, last = S0[:, some].flatten(1), dS[:, some].flatten(1)
        dh = (drow[..., None] * read[:, :, None]).flatten(2)
        split = lambda z: z.unflatten(-1, (-1, A.shape[1]))
        h = split(channel_scan_torch.forward(written, g, first, cu_seqlens, chunk)[0])
        dwrite, dg, dstate = map(split, channel_scan_torch.backward(written, g, first, cu_seqlens, dh, last, chunk))
        dscaled = torch.einsum("btdn,btn->btd", dwrite, write)
        dx[..., some] = (length * dscaled + D[some].to(wide) * drow).to(dx.dtype)
        ddelta[..., some] = row * dscaled + (dg * A[some].to(wide)).sum(-1)
        dA[some], dS0[:, some] = (dg * length[..., None]).sum((0, 1)), dstate
        dB += torch.einsum("btdn,btd->btn", dwrite, scaled)
        dC += torch.einsum("btdn,btd->btn", h, drow)
    return dx, ddelta, dA, dB.to(B.dtype), dC.to(C.dtype), (dy.to(wide) * x.to(wide)).sum((0, 1)), dS0


def _pieces(x, A):
    width = max(1, MOST // max(1, x.shape[0] * x.shape[1] * A.shape[1]))
    return [slice(start, start + width) for start in range(0, len(A), width)]


def _channels(x, delta, A, B, wide):
    """What is written, and log-decays: `(B, T, D N)`."""
    length = delta.to(wide)
    return ((length * x.to(wide))[..., None] * B.to(wide)[:, :, None]).flatten(2), (length[..., None] * A.to(wide)).flatten(2)
