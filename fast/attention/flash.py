"""FlashAttention-2 on tensors (B, T, H, D): tiled, nothing of the score matrix is ever stored. See `twofold.spec.attention.flash`.

Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at position i + Tk - Tq. A row that sees
no key has output 0, log-sum-exp -inf and gradients 0. Both results of `forward` are differentiable, and so is the sink.
"""

import math

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import tiled_attention_operator as operator

__all__ = ["forward", "backward"]

WIDEST = 256  # head dimensions beyond do not fit a tile


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32.

    `causal` forbids keys behind a row's own position; `window` = (left, right) allows the positions p - left … p + right, None being no
    bound; `sink` (H,) is one logit per head that takes attention and gives nothing.
    """
    left, right = _window(causal, window)
    scale = _options(q, k, v, scale, softcap, sink)
    return operator.forward(q, k, v, sink, left, right, scale, softcap)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    do: Tensor,
    *,
    dlse: Tensor | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, None, Tensor | None]:
    """Gradients (dq, dk, dv, dbias, dsink) from what `forward` returned and the gradients of its results; two runs agree bit for bit.

    dbias is None, as there is no bias; dsink (H,) is float32, and None without a sink.
    """
    left, right = _window(causal, window)
    scale = _options(q, k, v, scale, softcap, sink)
    checks.shape(q=(q, "B Tq H D"), v=(v, "B Tk Hkv Dv"), o=(o, "B Tq H Dv"), do=(do, "B Tq H Dv"), lse=(lse, "B H Tq"))
    checks.same(q=q, o=o, do=do)
    checks.same(lse=lse, dlse=dlse)
    checks.dtypes(torch.float32, lse=lse)
    if dlse is not None:
        checks.shape(lse=(lse, "B H Tq"), dlse=(dlse, "B H Tq"))
    dq, dk, dv, dsink = operator.backward(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap)
    return dq, dk, dv, None, dsink


def _window(causal: bool, window: tuple[int | None, int | None] | None) -> tuple[int | None, int | None]:
    """One pair of bounds: causal is a right bound of 0."""
    left, right = (None, None) if window is None else window
    for name, bound in (("left", left), ("right", right)):
        if bound is not None and bound < 0:
            raise ValueError(f"window's {name} bound must be at least 0, or None for no bound, not {bound}")
    return left, 0 if causal else right


def _options(q: Tensor, k: Tensor, v: Tensor, scale: float | None, softcap: float | None, sink: Tensor | None) -> float:
    """Check everything that does not depend on a kernel, and return the scale."""
    sizes = checks.shape(q=(q, "B Tq H D"), k=(k, "B Tk Hkv D"), v=(v, "B Tk Hkv Dv"))
    checks.same(q=q, k=k, v=v)
    checks.dtypes(torch.float32, torch.float16, torch.bfloat16, q=q)
    for name, axis in (("q", "D"), ("v", "Dv")):
        if not 1 <= sizes[axis] <= WIDEST:
            raise ValueError(f"{name} must have between 1 and {WIDEST} elements per head, not {sizes[axis]}")
    if not sizes["Hkv"] or sizes["H"] % sizes["Hkv"]:
        raise ValueError(f"q must have a multiple of k's {sizes['Hkv']} heads, not {sizes['H']}")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.numel() and tensor.shape[3] > 1 and tensor.stride(3) != 1:
            raise ValueError(f"{name} must be contiguous along its last axis, not of stride {tensor.stride(3)}")
    if sink is not None:
        checks.shape(q=(q, "B Tq H D"), sink=(sink, "H"))
        checks.dtypes(torch.float32, q.dtype, sink=sink)
        if sink.device != q.device:
            raise ValueError(f"sink must be on the device of q, {q.device}, not on {sink.device}")
    for name, number in (("scale", scale), ("softcap", softcap)):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {number}")
    return sizes["D"] ** -0.5 if scale is None else float(scale)
