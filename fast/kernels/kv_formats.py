"""How a cache stores keys and values, and how a tile of them is read: as numbers, or as codes with a scale, in Triton and in PyTorch.

A format is a tuple `(kind, bits, tokens, channels)`:

- `("plain", 0, 0, 0)`: numbers, in the dtype of the queries;
- `("e4m3", 8, tokens, 0)`: bytes of 8-bit floats, times a scale;
- `("int8", 8, tokens, 0)`: signed integers, times a scale;
- `("grid", bits, tokens, channels)`: integers from 0 to 2^bits - 1, each token and head a stream of 32-bit words, times a scale, plus a
  zero.

Codes lie in rows (B, T, H, ·), or in blocks (n_blocks, page, H, ·) that a table names; so do their parameters (·, groups, H, ·), which is
why they follow a block wherever it goes. `tokens` neighbors in a row or block share parameters, 0: all of them; `channels` neighbors do
within a head, 0: all of them.

A value is computed in float32 and rounded to the dtype of the queries, in which it enters a product. The bytes of e4m3 are read by hand,
by way of float16, whose exponents reach further: so they can be read where the hardware has no such type.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from twofold.fast.kernels.bit_stream import _pack_torch, _unpack_torch, stream_codes

__all__ = ["NUMBERS", "PLAIN", "Format", "Stored", "configuration", "numbers", "pack", "read", "stored_tile", "unpack"]

Format = tuple[str, int, int, int]
PLAIN: Format = ("plain", 0, 0, 0)


class Stored(NamedTuple):
    """The format of keys or values, and the parameters of their groups: None where it has none."""

    format: Format = PLAIN
    scale: Tensor | None = None
    zero: Tensor | None = None


NUMBERS = (Stored(), Stored())  # of keys and of values


def configuration(architecture: int | str, rows: int, width: int, size: int, format: Format) -> tuple[dict[str, int], dict[str, int]]:
    """Tile, warps and stages of `split_attention` where it decodes, which takes registers: narrower tiles than for plain numbers."""
    if architecture == "interpreter":
        return {"BLOCK_M": 16, "BLOCK_N": 16}, {}
    if size == 4:  # float32 products run on the ordinary cores
        warps = 4 if width <= 64 or architecture == "gfx942" else 8 if width != 256 else 16
        return {"BLOCK_M": 16, "BLOCK_N": 16}, {"num_warps": warps, "num_stages": 1}
    straddles = format[0] == "grid" and 32 % format[1] != 0  # two loads for each code
    stages = 1 if straddles or architecture == "gfx942" or (architecture == 80 and format[0] == "grid") else 2
    options = {"num_warps": 4 if architecture == "gfx942" else 8, "num_stages": stages}
    return {"BLOCK_M": 16 if rows <= 16 or architecture == "gfx942" else 32, "BLOCK_N": 32}, options


@triton.jit
def stored_tile(
    codes, scale, zero, stride_b, stride_t, stride_pb, stride_pt, block, slot, valid,
    TYPE: tl.constexpr, FORMAT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The numbers (rows, PADDED) at these slots of these blocks; zeros where not valid and beyond the head's width."""
    dim = tl.arange(0, PADDED)
    inside = valid[:, None] & (dim < WIDTH)[None, :]
    rows = codes + (block * stride_b + slot * stride_t)[:, None]
    if FORMAT[0] == "grid":
        code = _grid_codes(rows, valid, dim, inside, FORMAT[1], WIDTH, PADDED).to(tl.float32)
    elif FORMAT[0] == "e4m3":
        code = e4m3(tl.load(rows + dim[None, :], mask=inside, other=0))
    else:
        code = tl.load(rows + dim[None, :], mask=inside, other=0).to(tl.float32)
    group = slot // FORMAT[2] if FORMAT[2] > 0 else slot * 0
    at = (block * stride_pb + group * stride_pt)[:, None]
    if FORMAT[3] > 0:
        at += (dim // FORMAT[3])[None, :]
        there = inside
    else:
        there = valid[:, None]
    value = code * tl.load(scale + at, mask=there, other=0.0).to(tl.float32)
    if FORMAT[0] == "grid":
        value += tl.load(zero + at, mask=there, other=0.0).to(tl.float32)
    return value.to(TYPE)


@triton.jit
def _grid_codes(rows, valid, dim, inside, BITS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The codes of streams that begin at the pointers `rows` (ROWS, 1); each word is loaded once where none holds parts of codes."""
    EACH: tl.constexpr = 32 // BITS
    if 32 % BITS == 0 and PADDED >= EACH:
        index = tl.arange(0, PADDED // EACH)
        words = tl.load(rows + index[None, :], mask=valid[:, None] & (index * EACH < WIDTH)[None, :], other=0)  # (ROWS, PADDED / EACH)
        shifts = (tl.arange(0, EACH) * BITS)[None, None, :]
        return tl.reshape((words[:, :, None] >> shifts) & ((1 << BITS) - 1), (rows.shape[0], PADDED))
    else:
        return stream_codes(rows, dim[None, :], inside, BITS)


@triton.jit
def e4m3(byte):
    """What a byte stands for, in float32: sign, exponent and mantissa are moved to where float16 has them, 2^8 too small."""
    bits = byte.to(tl.int32)
    half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.uint16).to(tl.float16, bitcast=True)
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


def read(codes: Tensor, stored: Stored, width: int, dtype: torch.dtype) -> Tensor:
    """All numbers of a store (·, T, H, width), in `dtype`."""
    (kind, bits, tokens, channels), scale, zero = stored
    codes = unpack(codes, bits, width) if kind == "grid" else codes
    assert scale is not None, "plain numbers are not read, they are there"
    return numbers(codes, scale, zero, tokens or codes.shape[1], channels or width).to(dtype)


def numbers(codes: Tensor, scale: Tensor, zero: Tensor | None, tokens: int, channels: int) -> Tensor:
    """What codes (·, T, H, width) stand for, in float32."""
    spread = lambda x: _repeated(_repeated(x.float(), 1, tokens, codes.shape[1]), 3, channels, codes.shape[3])
    values = codes.float() * spread(scale)
    return values if zero is None else values.add_(spread(zero))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (…, width) to words (…, ceil(width bits / 32)). In PyTorch on any device: a head's stream is too short for a program."""
    rows, width = codes.shape[:-1], codes.shape[-1]
    return _pack_torch(codes.reshape(rows.numel(), width), bits).view(*rows, -(-width * bits // 32))


def unpack(words: Tensor, bits: int, width: int) -> Tensor:
    """Words to codes (…, width)."""
    rows = words.shape[:-1]
    return _unpack_torch(words.reshape(rows.numel(), words.shape[-1]), bits, width).view(*rows, width)


def _repeated(x, axis, times, size):
    """Every element of an axis as often as its group is large, up to the size of the whole; an axis of one group is left to broadcast."""
    return x if x.shape[axis] == 1 else x.repeat_interleave(times, axis).narrow(axis, 0, size)
