"""The AWQ layout of 4-bit codes and zeros. The definition is `twofold.spec.number_formats.awq_layout`.

Codes and zeros are uint8, words int32 bit patterns, as released checkpoints hold them.
"""

import torch

from twofold.fast import checks
from twofold.fast.number_formats import bit_packing

__all__ = ["pack", "unpack"]


def pack(codes: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The words `(K, N / 8)` of codes `(K, N)` and `(groups, N / 8)` of zeros `(groups, N)`."""
    sizes = checks.shape(codes=(codes, "K N"), zeros=(zeros, "groups N"))
    checks.dtypes(torch.uint8, codes=codes, zeros=zeros)
    checks.same_device(codes=codes, zeros=zeros)
    if sizes["N"] % 8:
        raise ValueError(f"N must be a multiple of 8, not {sizes['N']}")
    return bit_packing.pack(_even_before_odd(codes), 4), bit_packing.pack(_even_before_odd(zeros), 4)


def unpack(qweight: torch.Tensor, qzeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes `(K, N)` and the zeros `(groups, N)`."""
    sizes = checks.shape(qweight=(qweight, "K words"), qzeros=(qzeros, "groups words"))
    checks.dtypes(torch.int32, qweight=qweight, qzeros=qzeros)
    checks.same_device(qweight=qweight, qzeros=qzeros)
    codes, zeros = (bit_packing.unpack(each, 4, 8 * sizes["words"]) for each in (qweight, qzeros))
    return _interleaved(codes), _interleaved(zeros)


def _even_before_odd(codes):
    """Of each eight neighbors the four with even numbers, then the odd ones."""
    return codes.unflatten(1, (codes.shape[1] // 8, 4, 2)).transpose(2, 3).reshape(codes.shape)


def _interleaved(codes):
    """Even and odd ones back in their places."""
    return codes.unflatten(1, (codes.shape[1] // 8, 2, 4)).transpose(2, 3).reshape(codes.shape)
