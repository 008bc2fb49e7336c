"""The operator that reads a diagonal recurrence along its values: S_t = Diag(e^{g_t}) S_{t-1} + k_t v_t^T as ever, but o_t = S_t q_t.

q is as wide as v, and o as k. Where q is the gradient of a plain read's output, this is the gradient of its query. So no kernel is new:
forward is a piece of the plain backward pass. And the loss sees o_t through do_t · S_t q_t, a plain read by do_t whose output has the
gradient q_t: the gradients of that read are those of k, v, g and S0 here, and what it reads is dq_t.
"""

import torch
import triton

from twofold.fast import checks
from twofold.fast.kernels import chunk_recurrence_torch
from twofold.fast.kernels.chunk_recurrence import CHUNKS, SUB, Run
from twofold.fast.kernels.chunk_recurrence_backward import blocks, gradients_kernel
from twofold.fast.kernels.diagonal_recurrence import _check_values, _rows, _triton

__all__ = ["run"]


def run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, S0: torch.Tensor, chunk: int,
    cu_seqlens: torch.Tensor | None = None, check: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Outputs `(B, T, H, K)` and final states `(N, H, K, V)`, both in float32.

    q, v `(B, T, H, V)`, k `(B, T, H, K)`, g `(B, T, H, K)`, S0 `(N, H, K, V)`, N the number of sequences.
    """
    if chunk not in CHUNKS:
        raise ValueError(f"chunk must be one of {CHUNKS}, not {chunk}")
    if cu_seqlens is not None:
        checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
        if q.shape[0] != 1 or len(cu_seqlens) < 1:
            raise ValueError(f"cu_seqlens must come with B = 1, not {q.shape[0]}, and hold at least one edge, not {len(cu_seqlens)}")
    return torch.ops.twofold.transposed_recurrence(q, k, v, g, S0, cu_seqlens, chunk, check)


@torch.library.custom_op("twofold::transposed_recurrence", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, S0: torch.Tensor, cu_seqlens: torch.Tensor | None, chunk: int,
    check: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    if check or not q.is_cuda:
        _check_values(g, cu_seqlens, q.shape[1])
    q, k, v, g = _rows(q, k, v, g)
    return (_by_kernels if _triton(q) else _by_torch)(q, k, v, g, S0.contiguous(), cu_seqlens, chunk)


@_forward.register_fake
def _(q, k, v, g, S0, cu_seqlens, chunk, check):
    return torch.empty(k.shape, dtype=S0.dtype, device=k.device), torch.empty(S0.shape, dtype=S0.dtype, device=S0.device)


def _by_kernels(q, k, v, g, S0, cu_seqlens, chunk):
    """The states at the boundaries, then the gradients' kernel as for dq, which keeps its share of dg in a place that nobody reads."""
    with torch.cuda.device_of(q):
        run = Run(k, v, g, cu_seqlens, chunk)
        states = run.boundaries(k, v, S0)
        o, unread = (torch.empty(k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
        BK, BV, warps = blocks(run.itemsize, early=False, reverse=False)
        run.launch(
            gradients_kernel, run.chunks, triton.cdiv(run.K, BK), (q, v, k, k, run.g, o, unread), (states, states),
            REVERSE=False, EARLY=False, V=run.V, SUB=SUB, BK=BK, BV=BV, num_warps=warps,
        )  # fmt: skip
        return o, states[run.final]


def _by_torch(q, k, v, g, S0, cu_seqlens, chunk):
    """All gradients, of which one is kept: nobody waits for this side."""
    q, k, v, g = (x.to(S0.dtype) for x in (q, k, v, g))
    final = chunk_recurrence_torch.forward(k, k, v, g, S0, cu_seqlens, chunk)[1]
    return chunk_recurrence_torch.backward(k, k, v, g, S0, cu_seqlens, q, torch.zeros_like(S0), chunk)[0], final


def _keep(ctx, inputs, output):
    *tensors, chunk, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.chunk = chunk


def _differentiate(ctx, do, dS):
    q, k, v, g, S0, cu_seqlens = ctx.saved_tensors
    do = do.to(k.dtype)
    dq, _ = torch.ops.twofold.chunk_recurrence_forward(do, k, v, g, S0, cu_seqlens, ctx.chunk, False, None)
    _, dk, dv, dg, dS0, _ = torch.ops.twofold.chunk_recurrence_backward(do, k, v, g, S0, cu_seqlens, q, dS, ctx.chunk, None)
    return dq, dk, dv, dg.to(g.dtype), dS0, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
