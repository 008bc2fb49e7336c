"""SageAttention on tensors (B, T, H, D): products of 8-bit codes, keys without their mean. See `twofold.spec.attention.sage`.

Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at position i + Tk - Tq. A row that sees
no key has output 0 and log-sum-exp -inf. Each head of each sequence has a mean and scales of its own. Not differentiable.
"""


import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import scale_or_default, three, widths, window_bounds
from twofold.fast.kernels.quantized_attention import forward as attend
from twofold.fast.kernels.quantized_attention_torch import encode

__all__ = ["forward", "smooth_k", "quantize"]

WIDEST = 256  # head dimensions beyond do not fit a tile, nor the exact product of their codes float32


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    smooth: bool = True,
    block_q: int = 128,
    block_k: int = 64,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32, of logits with `k` itself.

    `causal` forbids keys behind a row's own position; `window` = (left, right) allows the positions p - left … p + right, None being no
    bound. Weights enter the product with the values in the dtype of `v`.
    """
    left, right, scale = options(q, k, v, block_k, causal, window, scale)
    centered, mean = smooth_k(k) if smooth else (k, None)
    q_codes, _, q_scale = encode(q, (_rows(block_q, "block_q"),), (0,), 127, torch.int8)
    k_codes, _, k_scale = encode(centered, (block_k,), (0,), 127, torch.int8)
    o, lse = attend(q_codes, k_codes, v, q_scale, k_scale, left=left, right=right, scale=scale, block_k=block_k, dtype=q.dtype)
    return o, lse if mean is None else lse + unshift(q, mean, scale)


def smooth_k(k: Tensor) -> tuple[Tensor, Tensor]:
    """The keys without their mean (B, T, H, D), and the mean (B, H, D), both in float32; 0 where there is no key."""
    checks.shape(k=(k, "B T H D"))
    mean = k.float().sum(1) / max(k.shape[1], 1)
    return k.float() - mean[:, None], mean


def quantize(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Codes (B, T, H, D) in int8, -127 … 127, and one float32 scale per block of `rows` rows, (B, H, blocks)."""
    checks.shape(x=(x, "B T H D"))
    return encode(x, (_rows(rows, "rows"),), (0,), 127, torch.int8)[:2]


def unshift(q: Tensor, mean: Tensor, scale: float) -> Tensor:
    """What smoothing took from every logit of a row: scale · q · mean, (B, H, Tq)."""
    by_key_head = q.float().unflatten(2, (mean.shape[1], -1))  # (B, Tq, Hkv, group, D)
    return scale * (by_key_head @ mean[:, None, :, :, None]).squeeze(-1).flatten(2).transpose(1, 2)


def options(
    q: Tensor, k: Tensor, v: Tensor, block_k: int, causal: bool, window: tuple[int | None, int | None] | None, scale: float | None
) -> tuple[int | None, int | None, float]:
    """Check what every form with quantized products takes, and return the bounds of the window and the scale."""
    sizes = three(q, k, v)
    widths(sizes, q="D", v="Dv")
    checks.contiguous(v=v)
    if block_k not in (32, 64, 128):
        raise ValueError(f"block_k must be 32, 64 or 128, not {block_k}")
    return *window_bounds(causal, window), scale_or_default(scale, sizes["D"])


def _rows(rows: int, name: str) -> int:
    if rows < 1:
        raise ValueError(f"{name} must be at least 1, not {rows}")
    return rows
