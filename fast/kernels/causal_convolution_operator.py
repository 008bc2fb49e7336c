"""The operator of short causal convolutions: checks, dispatch, gradients. The kernels are those of `causal_convolution`."""

import torch
from torch import Tensor

from twofold.fast import backend, checks
from twofold.fast.kernels import causal_convolution, causal_convolution_torch

__all__ = ["run"]

FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64  # float64 in PyTorch only, to check gradients


def run(
    x: Tensor, w: Tensor, b: Tensor | None, tail: Tensor | None, cu_seqlens: Tensor | None = None, check: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs `(B, T, D)` and new tails `(N, W - 1, D)`, both in the dtype of x, N the number of sequences.

    x `(B, T, D)`, w `(W, D)`, b `(D,)`, tail `(N, W - 1, D)`; weights in the dtype of x or in float32.
    """
    sizes = checks.shape(x=(x, "B T D"), w=(w, "W D"))
    checks.dtypes(*FLOATS, x=x)
    checks.dtypes(x.dtype, torch.float64 if x.dtype == torch.float64 else torch.float32, w=w, b=b)
    checks.same_device(x=x, w=w, b=b, tail=tail, cu_seqlens=cu_seqlens)
    if not 1 <= sizes["W"] <= causal_convolution.WIDEST:
        raise ValueError(f"w must have 1 to {causal_convolution.WIDEST} rows, not {sizes['W']}")
    if b is not None:
        checks.shape(x=(x, "B T D"), b=(b, "D"))
    sequences = sizes["B"]
    if cu_seqlens is not None:
        sequences = checks.shape(cu_seqlens=(cu_seqlens, "N"))["N"] - 1
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
        if sizes["B"] != 1 or sequences < 0:
            raise ValueError(f"cu_seqlens must come with B = 1, not {sizes['B']}, and hold at least one edge, not {sequences + 1}")
    if tail is not None:
        checks.shape(tail=(tail, f"{sequences} {sizes['W'] - 1} {sizes['D']}"))
        checks.dtypes(x.dtype, tail=tail)
    return torch.ops.twofold.causal_convolution_forward(x, w, b, tail, cu_seqlens, sequences, check)


def _check_edges(cu_seqlens, length: int) -> None:
    edges = cu_seqlens.tolist()
    if edges[0] != 0 or edges[-1] != length or edges != sorted(edges):
        raise ValueError(f"cu_seqlens must rise from 0 to T = {length}, not {edges}")


def _side(x: Tensor):
    if not backend.triton(x):
        return causal_convolution_torch
    checks.dtypes(*FLOATS[:3], x=x)
    return causal_convolution


def _rows(*tensors):
    """Kernels take any strides, but for the innermost axis."""
    return (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _whole(*tensors):
    return (x if x is None else x.contiguous() for x in tensors)


@torch.library.custom_op("twofold::causal_convolution_forward", mutates_args=())
def _forward(
    x: Tensor, w: Tensor, b: Tensor | None, tail: Tensor | None, cu_seqlens: Tensor | None, sequences: int, check: bool
) -> tuple[Tensor, Tensor]:
    if cu_seqlens is not None and (check or not x.is_cuda):
        _check_edges(cu_seqlens, x.shape[1])
    return _side(x).forward(*_rows(x, w), *_whole(b, tail), cu_seqlens, sequences)


@_forward.register_fake
def _(x, w, b, tail, cu_seqlens, sequences, check):
    return x.new_empty(x.shape), x.new_empty((sequences, w.shape[0] - 1, x.shape[2]))


@torch.library.custom_op("twofold::causal_convolution_backward", mutates_args=())
def _backward(
    x: Tensor, w: Tensor, tail: Tensor | None, dy: Tensor, dnew_tail: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, w, dy = _rows(x, w, dy)
    return _side(x).backward(x, w, *_whole(tail), dy, dnew_tail.contiguous(), cu_seqlens)


@_backward.register_fake
def _(x, w, tail, dy, dnew_tail, cu_seqlens):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), w.new_empty(w.shape, dtype=wide), w.new_empty(w.shape[1:], dtype=wide), x.new_empty(dnew_tail.shape)


def _keep(ctx, inputs, output):
    x, w, b, tail, cu_seqlens, _, _ = inputs
    ctx.save_for_backward(x, w, tail, cu_seqlens)
    ctx.bias = None if b is None else b.dtype


def _differentiate(ctx, dy, dnew_tail):
    x, w, tail, cu_seqlens = ctx.saved_tensors
    dx, dw, db, dtail = torch.ops.twofold.causal_convolution_backward(x, w, tail, dy, dnew_tail, cu_seqlens)
    return dx, dw.to(w.dtype), None if ctx.bias is None else db.to(ctx.bias), None if tail is None else dtail, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
