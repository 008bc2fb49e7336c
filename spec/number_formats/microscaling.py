r"""Microscaling (OCP MX): blocks of 32 small numbers that share one power of two.

Paper: Open Compute Project, "Microscaling Formats (MX) Specification 1.0", 2023, Sec. 5 (formats) and 6.3 (conversion); Rouhani et al.,
"Microscaling Data Formats for Deep Learning", 2023, arXiv:2310.10537, Alg. 1. Section numbers are from memory.

For each block of 32 neighbors along the last axis, the last one of which may be shorter,

$$X = \mathrm{scale}(\max|x|), \qquad \mathrm{code}_i = \mathrm{encode}(x_i / X), \qquad \hat x_i = \mathrm{decode}(\mathrm{code}_i)\, X$$

with the scales of `e8m0`, of which `floor` is the specification's, and the elements of `minifloat`, half to even, saturated; or `int8`,
whose codes count 64ths from -127 to 127. MXFP8 is `e4m3fn` or `e5m2`, MXFP6 `e3m2` or `e2m3`, MXFP4 `e2m1`, MXINT8 `int8`. A block that
holds NaN or infinity has the scale 255, which is NaN, and codes 0.

Codes of 4 bits go two to a byte, the first in the lower half; those of 6 and 8 bits take a byte each.

| name | symbol | shape | meaning |
|---|---|---|---|
| `x` | $x$ | `(..., n)` | numbers |
| `codes` | $\mathrm{code}$ | `(..., n)` | integers from 0, of minifloats; signed ones, for `int8` |
| `scales` | $X$ | `(..., ceil(n / 32))` | codes of `e8m0` |
| `packed` | | `(..., ceil(n / 2))` | bytes |

Deviations: the specification leaves open what a block with NaN or infinity becomes, which bytes the codes lie in, and blocks shorter than
32; halves of bytes are in the order that released checkpoints and kernels use. `int8` could store -128; encoding never does, so that
negated numbers have negated codes.
"""

import numpy as np

from twofold.spec.number_formats import e8m0, minifloat

__all__ = ["quantize", "dequantize", "pack", "unpack"]

BLOCK = 32


def quantize(x, fmt, mode="floor"):
    """The codes and the scales of every block.

    >>> codes, scales = quantize(np.array([0.0, 4.0, -8.0, 48.0]), "e2m1")
    >>> codes.tolist(), scales.tolist()                                # 48 = 6 · 2^3, and 4 / 2^3 is the smallest there is
    ([0, 1, 10, 7], [130])
    """
    x = np.asarray(x, np.float64)
    fill = np.zeros((*x.shape[:-1], -x.shape[-1] % BLOCK))
    blocks = np.concatenate([x, fill], -1).reshape(*x.shape[:-1], -(-x.shape[-1] // BLOCK), BLOCK)
    scales = e8m0.block_scale(np.max(np.abs(blocks), axis=-1), fmt, mode)
    ratio = np.where(scales[..., None] == 255, 0, blocks / e8m0.decode(scales)[..., None])
    codes = np.clip(np.rint(64 * ratio), -127, 127).astype(int) if fmt == "int8" else minifloat.encode(ratio, fmt)
    return codes.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]], scales


def dequantize(codes, scales, fmt):
    """The numbers that codes and scales stand for, exact in float64.

    >>> dequantize(np.array([0, 1, 10, 7]), np.array([130]), "e2m1").tolist()
    [0.0, 4.0, -8.0, 48.0]
    """
    codes, scales = np.asarray(codes), np.asarray(scales)
    if scales.shape != (*codes.shape[:-1], -(-codes.shape[-1] // BLOCK)):
        raise ValueError(f"codes of shape {codes.shape} have one scale for {BLOCK} neighbors, not shape {scales.shape}")
    elements = codes / 64 if fmt == "int8" else minifloat.decode(codes, fmt)
    return elements * np.repeat(e8m0.decode(scales), BLOCK, axis=-1)[..., : codes.shape[-1]]


def pack(codes):
    """Two codes of 4 bits to a byte along the last axis, the first in the lower half; a missing last one is 0.

    >>> [hex(byte) for byte in pack(np.array([1, 2, 15]))]
    ['0x21', '0xf']
    """
    codes = np.asarray(codes)
    if np.any((codes < 0) | (codes > 15)):
        raise ValueError("codes must lie from 0 to 15")
    codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], codes.shape[-1] % 2), int)], -1)
    return (codes[..., ::2] + 16 * codes[..., 1::2]).astype(np.uint8)


def unpack(packed, count):
    """The first `count` codes along the last axis, which must hold exactly as many bytes as these need."""
    packed = np.asarray(packed, np.uint8)
    if packed.shape[-1] != -(-count // 2):
        raise ValueError(f"{count} codes take {-(-count // 2)} bytes, not {packed.shape[-1]}")
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)[..., :count]
