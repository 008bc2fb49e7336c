"""The operator of recurrences whose channels never meet: checks, dispatch, gradients. The kernels are those of `channel_scan`."""

import torch

from twofold.fast import backend, checks
from twofold.fast.kernels import channel_scan, channel_scan_torch

__all__ = ["run"]

FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64  # float64 in PyTorch only, to check gradients


def run(
    x: torch.Tensor, g: torch.Tensor, S0: torch.Tensor | None, chunk: int | None = None, cu_seqlens: torch.Tensor | None = None,
    check: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Outputs `(B, T, D)` in the dtype of x and final states `(N, D)` in float32, N the number of sequences.

    x, g `(B, T, D)`; S0 `(N, D)`; `chunk` None: chosen from the shape.
    """
    sizes = checks.shape(x=(x, "B T D"), g=(g, "B T D"))
    checks.dtypes(*FLOATS, x=x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    checks.dtypes(wide, x.dtype, g=g)
    sequences = sizes["B"]
    if cu_seqlens is not None:
        sequences = checks.shape(cu_seqlens=(cu_seqlens, "N"))["N"] - 1
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
        if sizes["B"] != 1 or sequences < 0:
            raise ValueError(f"cu_seqlens must come with B = 1, not {sizes['B']}, and hold at least one edge, not {sequences + 1}")
    if S0 is None:
        S0 = torch.zeros((sequences, sizes["D"]), dtype=wide, device=x.device)
    checks.shape(S0=(S0, f"{sequences} {sizes['D']}"))
    checks.dtypes(wide, S0=S0)
    checks.same_device(x=x, g=g, S0=S0, cu_seqlens=cu_seqlens)
    checks.at_least(1, chunk=chunk)
    return torch.ops.twofold.channel_scan_forward(x, g, S0, cu_seqlens, chunk, check)


def _check_values(g, cu_seqlens, length: int) -> None:
    if bool((g > 0).any()):
        raise ValueError(f"g must hold log-decays of at most 0, but its largest is {g.max().item()}")
    if cu_seqlens is not None:
        edges = cu_seqlens.tolist()
        if edges[0] != 0 or edges[-1] != length or edges != sorted(edges):
            raise ValueError(f"cu_seqlens must rise from 0 to T = {length}, not {edges}")


def _side(x: torch.Tensor):
    if not backend.triton(x):
        return channel_scan_torch
    checks.dtypes(*FLOATS[:3], x=x)
    return channel_scan


def _rows(*tensors):
    """Kernels take any strides, but for the innermost axis."""
    return (x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


@torch.library.custom_op("twofold::channel_scan_forward", mutates_args=())
def _forward(
    x: torch.Tensor, g: torch.Tensor, S0: torch.Tensor, cu_seqlens: torch.Tensor | None, chunk: int | None, check: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if check or not x.is_cuda:
        _check_values(g, cu_seqlens, x.shape[1])
    x, g = _rows(x, g)
    return _side(x).forward(x, g, S0.contiguous(), cu_seqlens, chunk)


@_forward.register_fake
def _(x, g, S0, cu_seqlens, chunk, check):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(S0.shape, dtype=S0.dtype, device=S0.device)


@torch.library.custom_op("twofold::channel_scan_backward", mutates_args=())
def _backward(
    x: torch.Tensor, g: torch.Tensor, S0: torch.Tensor, cu_seqlens: torch.Tensor | None, do: torch.Tensor, dS: torch.Tensor,
    chunk: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    x, g, do = _rows(x, g, do)
    return _side(x).backward(x, g, S0.contiguous(), cu_seqlens, do, dS.contiguous(), chunk)


@_backward.register_fake
def _(x, g, S0, cu_seqlens, do, dS, chunk):
    like = lambda y, dtype: torch.empty(y.shape, dtype=dtype, device=y.device)
    return like(x, x.dtype), like(g, S0.dtype), like(S0, S0.dtype)


def _keep(ctx, inputs, output):
    *tensors, chunk, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.chunk = chunk


def _differentiate(ctx, do, dS):
    x, g, S0, cu_seqlens = ctx.saved_tensors
    dx, dg, dS0 = torch.ops.twofold.channel_scan_backward(x, g, S0, cu_seqlens, do, dS, ctx.chunk)
    return dx, dg.to(g.dtype), dS0, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
