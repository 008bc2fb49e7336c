"""The operator of linear recurrences with a diagonal decay: checks, dispatch, gradients. The kernels are those of `chunk_recurrence`.

With rows that read before the update it is that of `erasing_recurrence` too; their kernels are those of `chunk_erasure`.
"""

import torch

from twofold.fast import backend, checks
from twofold.fast.kernels import chunk_erasure, chunk_recurrence, chunk_recurrence_backward, chunk_recurrence_torch

__all__ = ["run"]

FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64  # float64 in PyTorch only, to check gradients


def run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor | None, S0: torch.Tensor | None, chunk: int,
    cu_seqlens: torch.Tensor | None = None, check: bool = False, *, a: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` in the dtype of v and final states `(N, H, K, V)` in float32.

    q, k `(B, T, Hq, K)`, v `(B, T, H, V)`; g `(B, T, H, K)`, `(B, T, H, 1)` or None; S0 `(N, H, K, V)`, N the number of sequences.
    Rows a `(B, T, Hq, K)`: v + (what a reads of the state before the update) is written in place of v.
    """
    checks.dtypes(*FLOATS, q=q)
    checks.same(q=q, k=k, v=v, a=a)
    sizes = checks.shape(q=(q, "B T Hq K"), k=(k, "B T Hq K"), v=(v, "B T H V"))
    if a is not None:
        checks.shape(q=(q, "B T Hq K"), a=(a, "B T Hq K"))
    if sizes["Hq"] == 0 or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"v must have a multiple of the heads of q, {sizes['Hq']}, not {sizes['H']}")
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    if g is not None:
        channels = "1" if g.ndim == 4 and g.shape[3] == 1 else "K"
        checks.shape(q=(q, "B T Hq K"), v=(v, "B T H V"), g=(g, f"B T H {channels}"))
        checks.dtypes(wide, q.dtype, g=g)
    sequences = sizes["B"]
    if cu_seqlens is not None:
        sequences = checks.shape(cu_seqlens=(cu_seqlens, "N"))["N"] - 1
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
        if sizes["B"] != 1 or sequences < 0:
            raise ValueError(f"cu_seqlens must come with B = 1, not {sizes['B']}, and hold at least one edge, not {sequences + 1}")
    if S0 is None:
        S0 = torch.zeros((sequences, sizes["H"], sizes["K"], sizes["V"]), dtype=wide, device=q.device)
    checks.shape(S0=(S0, f"{sequences} {sizes['H']} {sizes['K']} {sizes['V']}"))
    checks.dtypes(wide, S0=S0)
    for name, tensor in (("g", g), ("S0", S0), ("cu_seqlens", cu_seqlens)):
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}, not on {tensor.device}")
    if chunk not in chunk_recurrence.CHUNKS:
        raise ValueError(f"chunk must be one of {chunk_recurrence.CHUNKS}, not {chunk}")
    return torch.ops.twofold.chunk_recurrence_forward(q, k, v, g, S0, cu_seqlens, chunk, check, a)


def _check_values(g, cu_seqlens, length: int) -> None:
    if g is not None and bool((g > 0).any()):
        raise ValueError(f"g must hold log-decays of at most 0, but its largest is {g.max().item()}")
    if cu_seqlens is not None:
        edges = cu_seqlens.tolist()
        if edges[0] != 0 or edges[-1] != length or edges != sorted(edges):
            raise ValueError(f"cu_seqlens must rise from 0 to T = {length}, not {edges}")


def _triton(q: torch.Tensor) -> bool:
    if backend.triton(q):
        checks.dtypes(*FLOATS[:3], q=q)
        return True
    return False


def _rows(*tensors):
    """Kernels take any strides, but for the innermost axis."""
    return (x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors)


@torch.library.custom_op("twofold::chunk_recurrence_forward", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor | None, S0: torch.Tensor, cu_seqlens: torch.Tensor | None,
    chunk: int, check: bool, a: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    if check or not q.is_cuda:
        _check_values(g, cu_seqlens, q.shape[1])
    q, k, v, g, a = _rows(q, k, v, g, a)
    arguments = q, k, v, g, S0.contiguous(), cu_seqlens, chunk
    if not _triton(q):
        return chunk_recurrence_torch.forward(*arguments, a)
    return chunk_recurrence.forward(*arguments) if a is None else chunk_erasure.forward(*arguments, a)


@_forward.register_fake
def _(q, k, v, g, S0, cu_seqlens, chunk, check, a):
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), torch.empty(S0.shape, dtype=S0.dtype, device=S0.device)


@torch.library.custom_op("twofold::chunk_recurrence_backward", mutates_args=())
def _backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor | None, S0: torch.Tensor, cu_seqlens: torch.Tensor | None,
    do: torch.Tensor, dS: torch.Tensor, chunk: int, a: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    q, k, v, g, do, a = _rows(q, k, v, g, do, a)
    arguments = q, k, v, g, S0.contiguous(), cu_seqlens, do, dS.contiguous(), chunk
    if not _triton(q):
        gradients = chunk_recurrence_torch.backward(*arguments, a)
    else:
        gradients = chunk_recurrence_backward.backward(*arguments) if a is None else chunk_erasure.backward(*arguments, a)
    return (*gradients, q.new_empty(0)) if a is None else gradients


@_backward.register_fake
def _(q, k, v, g, S0, cu_seqlens, do, dS, chunk, a):
    like = lambda x: torch.empty(x.shape, dtype=x.dtype, device=x.device)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    dg = torch.empty((*v.shape[:3], 0 if g is None else g.shape[3]), dtype=wide, device=q.device)
    return like(q), like(k), like(v), dg, like(S0), q.new_empty(0) if a is None else like(a)


def _keep(ctx, inputs, output):
    q, k, v, g, S0, cu_seqlens, ctx.chunk, _, a = inputs
    ctx.save_for_backward(q, k, v, g, S0, cu_seqlens, a)


def _differentiate(ctx, do, dS):
    q, k, v, g, S0, cu_seqlens, a = ctx.saved_tensors
    dq, dk, dv, dg, dS0, da = torch.ops.twofold.chunk_recurrence_backward(q, k, v, g, S0, cu_seqlens, do, dS, ctx.chunk, a)
    return dq, dk, dv, None if g is None else dg.to(g.dtype), dS0, None, None, None, None if a is None else da


_forward.register_autograd(_differentiate, setup_context=_keep)
