"""Codes of 1 to 8 bits as a little-endian stream in 32-bit words: pack, unpack, and the tile loader that matrix products share.

One program writes a block of words (or codes) of one row, and reads whatever codes (or words) overlap it, so no two programs share a word.
"""

import math

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["pack", "unpack", "stream_codes", "variants", "whole_words"]

BLOCK = 1024


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes `(R, n)` uint8 to words `(R, ceil(n * bits / 32))` int32."""
    return _pack(codes, bits)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Words `(R, ceil(count * bits / 32))` int32 to codes `(R, count)` uint8."""
    return _unpack(words, bits, count)


@torch.library.custom_op("twofold::bit_stream_pack", mutates_args=())
def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    if not backend.triton(codes):
        return _pack_torch(codes, bits)
    rows, count = codes.shape
    words = codes.new_empty((rows, -(-count * bits // 32)), dtype=torch.int32)
    if words.numel():
        grid = (rows, triton.cdiv(words.shape[1], BLOCK))
        _pack_kernel[grid](codes, words, count, words.shape[1], codes.stride(0), BITS=bits, BLOCK=BLOCK, num_warps=4)
    return words


@_pack.register_fake
def _(codes, bits):
    return codes.new_empty((codes.shape[0], (codes.shape[1] * bits + 31) // 32), dtype=torch.int32)


@torch.library.custom_op("twofold::bit_stream_unpack", mutates_args=())
def _unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    if not backend.triton(words):
        return _unpack_torch(words, bits, count)
    codes = words.new_empty((words.shape[0], count), dtype=torch.uint8)
    if codes.numel():
        grid = (words.shape[0], triton.cdiv(count, BLOCK))
        _unpack_kernel[grid](words, codes, count, words.stride(0), BITS=bits, BLOCK=BLOCK, num_warps=4)
    return codes


@_unpack.register_fake
def _(words, bits, count):
    return words.new_empty((words.shape[0], count), dtype=torch.uint8)


@triton.jit
def stream_codes(row, index, inside, BITS: tl.constexpr):
    """Codes number `index` of the streams that begin at the pointers `row`, as int32; 0 where not `inside`."""
    bit = index * BITS
    shift = (bit & 31).to(tl.uint32)
    low = tl.load(row + (bit >> 5), mask=inside, other=0).to(tl.uint32, bitcast=True) >> shift
    if 32 % BITS == 0:
        return (low & ((1 << BITS) - 1)).to(tl.int32)
    straddles = inside & (shift + BITS > 32)
    high = tl.load(row + (bit >> 5) + 1, mask=straddles, other=0).to(tl.uint32, bitcast=True) << ((32 - shift) & 31)
    return ((low | high) & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
def whole_words(rows, start, count, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Codes `start` to `start + COLUMNS` of streams of `count` codes, `(ROWS, COLUMNS)`, each word loaded once; 0 beyond the end.

    For widths that divide 32; `start` and COLUMNS must be multiples of 32 / BITS, and `rows` is `(ROWS, 1)`.
    """
    EACH: tl.constexpr = 32 // BITS
    index = start // EACH + tl.arange(0, COLUMNS // EACH)
    words = tl.load(rows + index[None, :], mask=(index * EACH < count)[None, :], other=0)                          # (ROWS, COLUMNS / EACH)
    shifts = (tl.arange(0, EACH) * BITS)[None, None, :]
    return tl.reshape((words[:, :, None] >> shifts) & ((1 << BITS) - 1), (ROWS, COLUMNS))


@triton.jit
def _unpack_kernel(words, codes, count, stride_words, BITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)                      # (BLOCK,)
    inside = index < count
    value = stream_codes(words + row * stride_words, index, inside, BITS)
    tl.store(codes + row * count + index, value.to(tl.uint8), mask=inside)


@triton.jit
def _pack_kernel(codes, words, count, width, stride_codes, BITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)                      # words of this program   (BLOCK,)
    first = index * 32 // BITS                                                               # the first code that reaches into each
    word = tl.zeros((BLOCK,), tl.int64)
    for step in tl.static_range((32 + BITS - 2) // BITS + 1):                                # and those after it
        code = first + step
        inside = (code < count) & (code * BITS < index * 32 + 32)
        value = tl.load(codes + row * stride_codes + code, mask=inside, other=0).to(tl.int64)
        offset = code * BITS - index * 32                                                    # negative: its low bits are the last word's
        word |= tl.where(offset < 0, value >> (-offset & 31), value << (offset & 31))
    tl.store(words + row * width + index, word.to(tl.int32), mask=index < width)             # the low 32 bits


def _pack_torch(codes, bits):
    (rows, count), period = codes.shape, math.lcm(bits, 8)                                   # bits until a code begins a byte again
    runs, each = -(-count // 32), period // bits                                             # 32 codes fill `bits` words exactly
    codes = torch.nn.functional.pad(codes, (0, 32 * runs - count)).unflatten(1, (32 * runs // each, each))
    stream = codes.new_zeros((*codes.shape[:2], period // 8))                                # the words as bytes, lowest first
    for i in range(each):
        byte, shift = divmod(i * bits, 8)
        stream[..., byte] |= codes[..., i] << shift
        if shift + bits > 8:
            stream[..., byte + 1] |= codes[..., i] >> 8 - shift
    return stream.flatten().view(torch.int32).view(rows, bits * runs)[:, : -(-count * bits // 32)].contiguous()


def _unpack_torch(words, bits, count):
    rows, period = len(words), math.lcm(bits, 8)
    runs, each = -(-count // 32), period // bits
    whole = words.new_zeros((rows, bits * runs))
    whole[:, : words.shape[1]] = words
    stream = whole.view(torch.uint8).view(rows, 32 * runs // each, period // 8)
    codes = []
    for i in range(each):
        byte, shift = divmod(i * bits, 8)
        code = stream[..., byte] >> shift                                                    # (rows, 32 runs / each)
        if shift + bits > 8:
            code |= stream[..., byte + 1] << 8 - shift
        codes.append(code & (1 << bits) - 1)
    return torch.stack(codes, 2).flatten(1)[:, :count].contiguous()


def variants():
    """Every configuration that the launchers can pick, for the ahead-of-time compile report."""
    for bits in range(1, 9):
        constants = {"BITS": bits, "BLOCK": BLOCK}
        constexprs = dict.fromkeys(constants, "constexpr")
        pack_types = {"codes": "*u8", "words": "*i32", "count": "i32", "width": "i32", "stride_codes": "i32"} | constexprs
        unpack_types = {"words": "*i32", "codes": "*u8", "count": "i32", "stride_words": "i32"} | constexprs
        options, divisible = {"num_warps": 4}, ("codes", "words")
        yield Variant(f"bit_stream_pack-{bits}", _pack_kernel, pack_types, constants, options, divisible)
        yield Variant(f"bit_stream_unpack-{bits}", _unpack_kernel, unpack_types, constants, options, divisible)
