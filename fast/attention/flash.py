"""FlashAttention-2 on tensors (B, T, H, D): tiled, nothing of the score matrix is ever stored. See `twofold.spec.attention.flash`.

Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at position i + Tk - Tq. A row that sees
no key has output 0, log-sum-exp -inf and gradients 0. Both results of `forward` are differentiable, and so is the sink.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import scale_or_default, sink_per_head, three, widths, window_bounds
from twofold.fast.kernels import tiled_attention_operator as operator

__all__ = ["forward", "backward"]


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
    left, right = window_bounds(causal, window)
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
    left, right = window_bounds(causal, window)
    scale = _options(q, k, v, scale, softcap, sink)
    checks.shape(q=(q, "B Tq H D"), v=(v, "B Tk Hkv Dv"), o=(o, "B Tq H Dv"), do=(do, "B Tq H Dv"), lse=(lse, "B H Tq"))
    checks.same(q=q, o=o, do=do)
    checks.same(lse=lse, dlse=dlse)
    checks.dtypes(torch.float32, lse=lse)
    if dlse is not None:
        checks.shape(lse=(lse, "B H Tq"), dlse=(dlse, "B H Tq"))
    dq, dk, dv, dsink = operator.backward(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap)
    return dq, dk, dv, None, dsink


def _options(q: Tensor, k: Tensor, v: Tensor, scale: float | None, softcap: float | None, sink: Tensor | None) -> float:
    """Check everything that does not depend on a kernel, and return the scale."""
    sizes = three(q, k, v)
    widths(sizes, q="D", v="Dv")
    checks.contiguous(q=q, k=k, v=v)
    sink_per_head(q, sink)
    checks.positive(softcap=softcap)
    return scale_or_default(scale, sizes["D"])
