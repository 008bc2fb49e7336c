"""SageAttention2 on tensors (B, T, H, D): 4-bit products of smoothed queries and keys, 8-bit floats for the rest.

See `twofold.spec.attention.sage2`. Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at
position i + Tk - Tq. A row that sees no key has output 0 and log-sum-exp -inf. Not differentiable. The kernel needs hardware with e4m3
(compute capability 8.9 and above).

Codes of 4 bits lie in int8, one to a byte: Triton has no 4-bit product. They have the accuracy of SageAttention2, not its speed. Sums are
float32 for either `pv`.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention.sage import options, smooth_k, unshift
from twofold.fast.kernels.quantized_attention import forward as attend
from twofold.fast.kernels.quantized_attention_torch import encode

__all__ = ["forward", "smooth_q", "quantize_per_thread", "quantize_per_channel"]

BITS = {"int4": 4, "int8": 8}
LARGEST = {"fp8": 448.0, "fp8_fp16acc": 2.25}
TILES = {"q": ((4, 8), (0,)), "k": ((8, 4, 2), (0, 2))}  # rows of a tile by axis, and the axes along which they share a scale


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    qk: str = "int4",
    pv: str = "fp8",
    block_q: int = 128,
    block_k: int = 64,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32.

    Logits are those of `q` and `k` themselves, not of what is left of them.

    `block_q` queries have one mean, a multiple of 64; weights are rounded against the largest logit up to the end of their tile of
    `block_k` keys, 32, 64 or 128. `causal` and `window` are those of `flash.forward`.
    """
    left, right, scale = options(q, k, v, block_k, causal, window, scale)
    bits = _one_of("qk", qk, BITS)
    if block_q < 64 or block_q % 64:
        raise ValueError(f"block_q must be a positive multiple of 64, not {block_q}")
    centered, mean = smooth_k(k)
    deviations, means = smooth_q(q, block_q)
    q_codes, _, q_scale = _per_thread(deviations, "q", bits)
    k_codes, _, k_scale = _per_thread(centered, "k", bits)
    v_codes, v_scale = quantize_per_channel(v, pv)
    by_key_head = means.unflatten(1, (k.shape[2], -1)).flatten(2, 3)  # (B, Hkv, group blocks, D)
    shared = (by_key_head @ centered.permute(0, 2, 3, 1)).view(*means.shape[:3], k.shape[1])  # (B, H, blocks, Tk)
    codes = q_codes, k_codes, v_codes, q_scale, k_scale, v_scale, shared
    o, lse = attend(
        *codes, shared_rows=block_q, left=left, right=right, scale=scale, block_k=block_k, top=LARGEST["fp8"], dtype=q.dtype
    )
    return o, lse + unshift(q, mean, scale)


def smooth_q(q: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The queries without the mean of their block (B, T, H, D), and the means (B, H, blocks, D), both in float32."""
    checks.shape(q=(q, "B T H D"))
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    t = q.shape[1]
    blocks = -(-t // block)
    rows = torch.nn.functional.pad(q.float(), (0, 0, 0, 0, 0, blocks * block - t)).unflatten(1, (blocks, block))
    present = (t - block * torch.arange(blocks, device=q.device)).clamp(max=block)  # of the last block's rows, some are padding
    means = rows.sum(2) / present[:, None, None]  # (B, blocks, H, D)
    return (rows - means[:, :, None]).flatten(1, 2)[:, :t], means.transpose(1, 2).contiguous()


def quantize_per_thread(x: Tensor, side: str, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (B, T, H, D) in int8, float32 scales (B, H, groups), and the group of each row (T,), for the rows of "q" or "k".

    Every eighth of 32 queries, or two neighbors of every 8 in 64 keys, are a group. `bits` is 4 or 8.
    """
    checks.shape(x=(x, "B T H D"))
    tile, together = _one_of("side", side, TILES)
    if bits not in BITS.values():
        raise ValueError(f"bits must be 4 or 8, not {bits}")
    codes, scales, _ = _per_thread(x, side, bits)
    kept = [1 if axis in together else size for axis, size in enumerate(tile)]
    within = torch.arange(torch.Size(kept).numel(), device=x.device).view(kept).expand(tile).flatten()  # the group of each row of a tile
    row = torch.arange(x.shape[1], device=x.device)
    return codes, scales, row // len(within) * within.unique().numel() + within[row % len(within)]


def quantize_per_channel(v: Tensor, pv: str) -> tuple[Tensor, Tensor]:
    """Codes (B, T, H, Dv) in e4m3 and one float32 scale per channel, (B, H, Dv); the largest code is 448, or 2.25 for "fp8_fp16acc"."""
    checks.shape(v=(v, "B T H Dv"))
    codes, scale, _ = encode(v.transpose(1, 3), (1,), (0,), _one_of("pv", pv, LARGEST), torch.float8_e4m3fn)
    return codes.transpose(1, 3).contiguous(), scale


def _per_thread(x, side, bits):
    """Codes, scales by group, and scales by row (B, H, T)."""
    return encode(x, *TILES[side], 2 ** (bits - 1) - 1, torch.int8)


def _one_of(name, given, choices):
    if given not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, not {given!r}")
    return choices[given]
