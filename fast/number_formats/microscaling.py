"""Microscaling (OCP MX) on tensors of any shape, blocks along the last axis. The definition is `twofold.spec.number_formats.microscaling`.

Codes are uint8, for `int8` int8; scales are uint8, codes of `e8m0`. Numbers come back in float32, where every one that `quantize` makes is
exact, except that rounding up next to the largest float32 may give infinity. A block that holds NaN or infinity reads as NaN; no other
block notices. Nothing here has a gradient.
"""

import torch
from torch.nn.functional import pad as filled

from twofold.fast import checks
from twofold.fast.number_formats import e8m0, minifloat

__all__ = ["quantize", "dequantize", "pack", "unpack"]

BLOCK = 32


def quantize(x: torch.Tensor, fmt: str, mode: str = "floor") -> tuple[torch.Tensor, torch.Tensor]:
    """The codes `(..., n)` and the scales `(..., ceil(n / 32))` of every block."""
    checks.dtypes(torch.float32, torch.float16, torch.bfloat16, x=x)
    _check_axis(x=x)
    blocks = _by_block(x.float())
    scales = e8m0.block_scale(blocks.abs().amax(-1), fmt, mode)
    ratio = torch.where(scales[..., None] == 255, 0, blocks / e8m0.decode(scales)[..., None])  # exact, or far below any element
    codes = (64 * ratio).round().clamp(-127, 127).to(torch.int8) if fmt == "int8" else minifloat.encode(ratio, fmt)
    return codes.flatten(-2)[..., : x.shape[-1]], scales


def dequantize(codes: torch.Tensor, scales: torch.Tensor, fmt: str) -> torch.Tensor:
    """The numbers `(..., n)` that codes and scales stand for, in float32."""
    _check_axis(codes=codes, scales=scales)
    e8m0.element(fmt)
    checks.dtypes(torch.int8 if fmt == "int8" else torch.uint8, codes=codes)
    checks.same_device(codes=codes, scales=scales)
    wanted = *codes.shape[:-1], -(-codes.shape[-1] // BLOCK)
    if scales.shape != wanted:
        raise ValueError(f"scales must have shape {wanted}, one for {BLOCK} codes, not {tuple(scales.shape)}")
    elements = codes / 64 if fmt == "int8" else minifloat.decode(codes, fmt)
    return (_by_block(elements) * e8m0.decode(scales)[..., None]).flatten(-2)[..., : codes.shape[-1]]


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Two codes of 4 bits to a byte along the last axis, the first in the lower half; a missing last one is 0.

    Codes must be at most 15: more is an error on the CPU, undefined on a GPU.
    """
    _check_axis(codes=codes)
    checks.dtypes(torch.uint8, codes=codes)
    if codes.device.type == "cpu" and not torch.compiler.is_compiling() and codes.numel() and int(codes.max()) > 15:
        raise ValueError(f"codes must be at most 15, not {int(codes.max())}")
    codes = filled(codes, (0, codes.shape[-1] % 2))
    return codes[..., ::2] | codes[..., 1::2] << 4


def unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` codes along the last axis, which must hold exactly as many bytes as these need."""
    _check_axis(packed=packed)
    checks.dtypes(torch.uint8, packed=packed)
    if packed.shape[-1] != (count + 1) // 2:
        raise ValueError(f"packed must have {(count + 1) // 2} bytes per row for {count} codes, not {packed.shape[-1]}")
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., :count]


def _by_block(x):
    """The last axis as `(blocks, 32)`, filled up with zeros."""
    return filled(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-(-x.shape[-1] // BLOCK), BLOCK))


def _check_axis(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.ndim:
            raise ValueError(f"{name} must have at least one axis, not shape ()")
