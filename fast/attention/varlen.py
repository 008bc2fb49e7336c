"""Variable-length attention on packed tensors (total, H, D): the tiled kernel finds each block's sequence in a table made on the device.

See `twofold.spec.attention.varlen`. Query head h reads key head h // (H / Hkv). Rows are aligned to the end of their sequence's keys. Rows
that see no key, or belong to no sequence, have output 0, log-sum-exp -inf and gradients 0. Keys that no sequence uses are never read.
Both results of `attention` are differentiable, and so is the sink.

Boundaries are int32 or int64 tensors on the device of q. They are checked on the CPU; on a GPU nothing waits for them.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import window_bounds
from twofold.fast.attention.flash import _options
from twofold.fast.kernels import tiled_attention_operator as operator
from twofold.fast.kernels.packed_sequences import Packing

__all__ = ["attention", "backward"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *, causal: bool = False,
    window: tuple[int | None, int | None] | None = None, used_k: Tensor | None = None,
    scale: float | None = None, softcap: float | None = None, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (Nq, H, D), k (Nk, Hkv, D), v (Nk, Hkv, Dv) -> the output (Nq, H, Dv) in the dtype of q, the log-sum-exp (H, Nq) in float32.

    Sequence r has rows cu_q[r] … cu_q[r + 1] - 1 and keys likewise, of which the first used_k[r] are valid; `causal`, `window` and `sink`
    as in `flash.forward`, positions within the sequence.
    """
    scale = _checked(q, k, v, scale, softcap, sink)
    packing = _packing(q, k, cu_q, cu_k, used_k)
    o, lse = operator.forward(q[None], k[None], v[None], sink, *window_bounds(causal, window), scale, softcap, packing)
    return o[0], lse[0]


def backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, cu_q: Tensor, cu_k: Tensor, *, dlse: Tensor | None = None,
    causal: bool = False, window: tuple[int | None, int | None] | None = None, used_k: Tensor | None = None,
    scale: float | None = None, softcap: float | None = None, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients (dq, dk, dv) from what `attention` returned and the gradients of its results; two runs agree bit for bit."""
    scale = _checked(q, k, v, scale, softcap, sink)
    packing = _packing(q, k, cu_q, cu_k, used_k)
    checks.shape(q=(q, "Nq H D"), v=(v, "Nk Hkv Dv"), o=(o, "Nq H Dv"), do=(do, "Nq H Dv"), lse=(lse, "H Nq"))
    checks.same(q=q, o=o, do=do)
    checks.same(lse=lse, dlse=dlse)
    checks.dtypes(torch.float32, lse=lse)
    if dlse is not None:
        checks.shape(lse=(lse, "H Nq"), dlse=(dlse, "H Nq"))
        dlse = dlse[None]
    options = *window_bounds(causal, window), scale, softcap, packing
    dq, dk, dv, _ = operator.backward(q[None], k[None], v[None], sink, o[None], lse[None], do[None], dlse, *options)
    return dq[0], dk[0], dv[0]


def _checked(q, k, v, scale, softcap, sink):
    checks.shape(q=(q, "Nq H D"), k=(k, "Nk Hkv D"), v=(v, "Nk Hkv Dv"))
    return _options(q[None], k[None], v[None], scale, softcap, sink)


def _packing(q, k, cu_q, cu_k, used_k):
    checks.shape(cu_q=(cu_q, "boundaries"), cu_k=(cu_k, "boundaries"))
    checks.dtypes(torch.int32, torch.int64, cu_q=cu_q, cu_k=cu_k, used_k=used_k)
    checks.same_device(q=q, cu_q=cu_q, cu_k=cu_k, used_k=used_k)
    if not len(cu_q):
        raise ValueError("cu_q must hold at least one boundary, the 0 before the first sequence")
    if used_k is not None:
        checks.shape(used_k=(used_k, str(len(cu_q) - 1)))
    if not q.is_cuda:
        for name, ends, total in (("cu_q", cu_q, len(q)), ("cu_k", cu_k, len(k))):
            if ends[0] != 0 or bool((ends.diff() < 0).any()) or ends[-1] > total:
                raise ValueError(f"{name} must rise from 0 to at most {total}, not be {ends.tolist()}")
        if used_k is not None and bool(((used_k < 0) | (used_k > cu_k.diff())).any()):
            raise ValueError(f"used_k must lie between 0 and the sequences' {cu_k.diff().tolist()} keys, not be {used_k.tolist()}")
    return Packing(cu_q, cu_k, used_k)
