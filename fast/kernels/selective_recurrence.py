"""The operator of Mamba's recurrence: checks, dispatch, gradients. The kernels are those of `selective_scan`."""

import torch

from twofold.fast import backend, checks
from twofold.fast.kernels import selective_scan, selective_scan_torch

__all__ = ["demand", "run"]

FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64  # float64 in PyTorch only, to check gradients


def run(
    x: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor, S0: torch.Tensor | None,
    chunk: int | None = None, cu_seqlens: torch.Tensor | None = None, check: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Outputs `(B, T, D)` in the dtype of x and final states `(N, D, states)` in float32, N the number of sequences.

    x, delta `(B, T, D)`; A `(D, states)`; B, C `(B, T, states)`; D `(D,)`; `chunk` None: chosen from the shape.
    """
    wide, sizes = demand(x, delta, A, B, C, D), checks.shape(x=(x, "B T D"), A=(A, "D states"))
    sequences = sizes["B"]
    if cu_seqlens is not None:
        sequences = checks.shape(cu_seqlens=(cu_seqlens, "N"))["N"] - 1
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
        if sizes["B"] != 1 or sequences < 0:
            raise ValueError(f"cu_seqlens must come with B = 1, not {sizes['B']}, and hold at least one edge, not {sequences + 1}")
    if S0 is None:
        S0 = torch.zeros((sequences, *A.shape), dtype=wide, device=x.device)
    checks.shape(S0=(S0, f"{sequences} {sizes['D']} {sizes['states']}"))
    checks.dtypes(wide, S0=S0)
    checks.same_device(x=x, S0=S0, cu_seqlens=cu_seqlens)
    checks.at_least(1, chunk=chunk)
    return torch.ops.twofold.selective_scan_forward(x, delta, A, B, C, D, S0, cu_seqlens, chunk, check)


def demand(x, delta, A, B, C, D, tokens: str = "B T") -> torch.dtype:
    """What a token or a sequence of them must look like; returns the format of states."""
    checks.shape(
        x=(x, f"{tokens} D"), delta=(delta, f"{tokens} D"), A=(A, "D N"), B=(B, f"{tokens} N"), C=(C, f"{tokens} N"), D=(D, "D")
    )  # fmt: skip
    checks.dtypes(*FLOATS, x=x)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    checks.same(x=x, B=B, C=C)
    checks.dtypes(wide, x.dtype, delta=delta, A=A, D=D)
    checks.same_device(x=x, delta=delta, A=A, D=D)
    return wide


def _check_values(delta, A, cu_seqlens, length: int) -> None:
    if bool((delta < 0).any()):
        raise ValueError(f"delta must hold lengths of at least 0, but its least is {delta.min().item()}")
    if bool((A > 0).any()):
        raise ValueError(f"A must hold rates of at most 0, but its largest is {A.max().item()}")
    if cu_seqlens is not None:
        edges = cu_seqlens.tolist()
        if edges[0] != 0 or edges[-1] != length or edges != sorted(edges):
            raise ValueError(f"cu_seqlens must rise from 0 to T = {length}, not {edges}")


def _side(x: torch.Tensor):
    if not backend.triton(x):
        return selective_scan_torch
    checks.dtypes(*FLOATS[:3], x=x)
    return selective_scan


def _rows(*tensors):
    """Kernels take any strides, but for the innermost axis."""
    return (x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


@torch.library.custom_op("twofold::selective_scan_forward", mutates_args=())
def _forward(
    x: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor, S0: torch.Tensor,
    cu_seqlens: torch.Tensor | None, chunk: int | None, check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    if check or not x.is_cuda:
        _check_values(delta, A, cu_seqlens, x.shape[1])
    x, delta, B, C = _rows(x, delta, B, C)
    return _side(x).forward(x, delta, A.contiguous(), B, C, D.contiguous(), S0.contiguous(), cu_seqlens, chunk)


@_forward.register_fake
def _(x, delta, A, B, C, D, S0, cu_seqlens, chunk, check):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(S0.shape, dtype=S0.dtype, device=S0.device)


@torch.library.custom_op("twofold::selective_scan_backward", mutates_args=())
def _backward(
    x: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor, S0: torch.Tensor,
    cu_seqlens: torch.Tensor | None, dy: torch.Tensor, dS: torch.Tensor, chunk: int | None,
) -> list[torch.Tensor]:  # fmt: skip
    x, delta, B, C, dy = _rows(x, delta, B, C, dy)
    states = S0.contiguous(), cu_seqlens, dy, dS.contiguous(), chunk
    return list(_side(x).backward(x, delta, A.contiguous(), B, C, D.contiguous(), *states))


@_backward.register_fake
def _(x, delta, A, B, C, D, S0, cu_seqlens, dy, dS, chunk):
    like = lambda y, dtype: torch.empty(y.shape, dtype=dtype, device=y.device)
    wide = S0.dtype
    return [like(x, x.dtype), like(delta, wide), like(A, wide), like(B, B.dtype), like(C, C.dtype), like(D, wide), like(S0, wide)]


def _keep(ctx, inputs, output):
    *tensors, chunk, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.chunk = chunk


def _differentiate(ctx, dy, dS):
    *tensors, cu_seqlens = ctx.saved_tensors
    gradients = torch.ops.twofold.selective_scan_backward(*tensors, cu_seqlens, dy, dS, ctx.chunk)
    return *(gradient.to(y.dtype) for gradient, y in zip(gradients, tensors, strict=True)), None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
