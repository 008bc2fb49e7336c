"""Bit packing: codes of 1 to 8 bits as a little-endian stream of 32-bit words along the last axis.

Codes are uint8, words are int32 bit patterns. Codes must fit their width: a code above 2^bits - 1 is an error on the CPU; on a GPU,
where looking would stall the stream, it is undefined.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import bit_stream

__all__ = ["pack", "unpack"]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The words `(..., ceil(n * bits / 32))` of codes `(..., n)`; unused bits of the last word are 0."""
    _check(codes, "codes", torch.uint8, bits)
    if codes.device.type == "cpu" and not torch.compiler.is_compiling() and codes.numel() and int(codes.max()) >= 2**bits:
        raise ValueError(f"codes must be at most {2**bits - 1} to fit {bits} bits, not {int(codes.max())}")
    words = bit_stream.pack(_rows(codes), bits)
    return words.reshape(*codes.shape[:-1], words.shape[-1])


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The codes `(..., count)`; `words` must hold exactly as many words as `count` codes need."""
    _check(words, "words", torch.int32, bits)
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    needed = (count * bits + 31) // 32
    if words.shape[-1] != needed:
        raise ValueError(f"words must have {needed} words per row for {count} codes of {bits} bits, not {words.shape[-1]}")
    return bit_stream.unpack(_rows(words), bits, count).reshape(*words.shape[:-1], count)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    rows = tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _check(tensor: torch.Tensor, name: str, dtype: torch.dtype, bits: int) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    checks.dtypes(dtype, **{name: tensor})
    if tensor.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, not shape ()")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
