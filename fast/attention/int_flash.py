"""INT-FlashAttention on tensors (B, T, H, D): both products are products of 8-bit integers. See `twofold.spec.attention.int_flash`.

Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at position i + Tk - Tq. A row that sees
no key has output 0 and log-sum-exp -inf. Each key head of each sequence has one scale for its values. Not differentiable.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention.sage import options
from twofold.fast.kernels.quantized_attention import forward as attend
from twofold.fast.kernels.quantized_attention_torch import encode

__all__ = ["forward", "quantize"]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_k: int = 64,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32.

    `causal` forbids keys behind a row's own position; `window` = (left, right) allows the positions p - left … p + right, None being no
    bound. Weights are rounded against the largest logit up to the end of their tile of `block_k` keys: 32, 64 or 128.
    """
    left, right, scale = options(q, k, v, block_k, causal, window, scale)
    (q_codes, q_scale), (k_codes, k_scale) = quantize(q), quantize(k)
    v_codes, v_scale, _ = encode(v, (max(v.shape[1], 1),), (0,), 127, torch.int8)
    v_scale = v_scale.expand(*v_scale.shape[:2], v.shape[3]) if v.shape[1] else v.new_ones(v.shape[0], *v.shape[2:], dtype=torch.float32)
    codes = q_codes, k_codes, v_codes, q_scale, k_scale, v_scale.contiguous()
    return attend(*codes, left=left, right=right, scale=scale, block_k=block_k, top=127.0, dtype=q.dtype)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, T, H, D) in int8, -127 … 127, and one float32 scale per token and head, (B, H, T)."""
    checks.shape(x=(x, "B T H D"))
    return encode(x, (1,), (0,), 127, torch.int8)[:2]
