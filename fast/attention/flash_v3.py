"""FlashAttention-3 in 8-bit floats, on tensors (B, T, H, D). See `twofold.spec.attention.flash_v3`.

Query head h reads key head h // (H / Hkv). Rows are aligned to the end of the keys: row i stands at position i + Tk - Tq. A row that sees
no key has output 0 and log-sum-exp -inf. Not differentiable. The kernel needs hardware with e4m3 (compute capability 8.9 and above).

The pipelined form has no twin: it is an order of instructions, which Triton's compiler chooses. `flash.forward` is that attention.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import share_heads
from twofold.fast.attention.sage import _rows, options
from twofold.fast.kernels.quantized_attention import forward as attend
from twofold.fast.kernels.quantized_attention_torch import encode

__all__ = ["forward_fp8", "incoherent"]

E4M3 = torch.float8_e4m3fn


def forward_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_q: int = 64,
    block_k: int = 64,
    offset: int = 8,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32.

    Queries, keys and values are given in 16 or 32 bits and rounded here, blocks of `block_q` and `block_k` rows with one scale each;
    block_k is 32, 64 or 128. Weights are rounded as 2^offset times their exponential, offset 0 … 8. `causal` and `window` are those of
    `flash.forward`.
    """
    left, right, scale = options(q, k, v, block_k, causal, window, scale)
    if not 0 <= offset <= 8:
        raise ValueError(f"offset must be from 0 to 8, not {offset}")
    q_codes, _, q_scale = encode(q, (_rows(block_q, "block_q"),), (0,), 448, E4M3)
    k_codes, _, k_scale = encode(k, (block_k,), (0,), 448, E4M3)
    v_codes, v_scale, _ = encode(v, (block_k,), (0,), 448, E4M3)
    codes = q_codes, k_codes, v_codes, q_scale, k_scale, v_scale
    return attend(
        *codes, left=left, right=right, scale=scale, block_k=block_k, top=2.0**offset, by_tile=True, reverse=True, dtype=q.dtype
    )


def incoherent(q: Tensor, k: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys in another orthonormal basis, in their own dtype; `signs` (Hkv, D), ±1, a diagonal for each key head."""
    sizes = checks.shape(q=(q, "B Tq H D"), k=(k, "B Tk Hkv D"), signs=(signs, "Hkv D"))
    checks.same(q=q, k=k)
    checks.same_device(q=q, signs=signs)
    share_heads(sizes)
    signs = signs.float()
    turn = lambda x: _hadamard(x.float() * signs.repeat_interleave(x.shape[2] // signs.shape[0], 0)).to(x.dtype)
    return turn(q), turn(k)


def _hadamard(x: Tensor) -> Tensor:
    """The last axis times H / √size, block by block for the powers of two that its width is the sum of: log2(size) passes of additions."""
    width = x.shape[-1]
    sizes = [2**e for e in reversed(range(width.bit_length())) if width & 2**e]
    return torch.cat([_butterflies(part) * part.shape[-1] ** -0.5 for part in x.split(sizes, -1)], -1)


def _butterflies(x: Tensor) -> Tensor:
    half = 1
    while half < x.shape[-1]:
        a, b = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack([a + b, a - b], -2).flatten(-3)
        half *= 2
    return x
