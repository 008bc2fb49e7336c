"""The GPTQ layout of codes and zeros. The definition, with both versions, is `twofold.spec.number_formats.gptq_layout`.

Codes and zeros are uint8, words int32 bit patterns, as released checkpoints hold them.
"""

import torch

from twofold.fast import checks
from twofold.fast.number_formats import bit_packing

__all__ = ["pack", "unpack"]


def pack(codes: torch.Tensor, zeros: torch.Tensor, bits: int, version: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The words `(K bits / 32, N)` of codes `(K, N)` and `(groups, N bits / 32)` of zeros `(groups, N)`."""
    sizes = checks.shape(codes=(codes, "K N"), zeros=(zeros, "groups N"))
    checks.dtypes(torch.uint8, codes=codes, zeros=zeros)
    checks.same_device(codes=codes, zeros=zeros)
    _check(bits, version, K=sizes["K"], N=sizes["N"])
    top = 2**bits - 1
    if zeros.device.type == "cpu" and not torch.compiler.is_compiling() and zeros.numel() and int(zeros.max()) > top:
        raise ValueError(f"zeros must be at most {top} to fit {bits} bits, not {int(zeros.max())}")
    stored = zeros - 1 & top if version == 1 else zeros
    return bit_packing.pack(codes.T, bits).T.contiguous(), bit_packing.pack(stored, bits)


def unpack(qweight: torch.Tensor, qzeros: torch.Tensor, bits: int, version: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes `(K, N)` and the zeros `(groups, N)`."""
    sizes = checks.shape(qweight=(qweight, "words N"), qzeros=(qzeros, "groups words_of_zeros"))
    checks.dtypes(torch.int32, qweight=qweight, qzeros=qzeros)
    checks.same_device(qweight=qweight, qzeros=qzeros)
    _check(bits, version, N=sizes["N"])
    if sizes["words"] * 32 % bits:
        raise ValueError(f"qweight must have a multiple of {bits} rows for {bits} bits, not {sizes['words']}")
    if sizes["words_of_zeros"] != sizes["N"] * bits // 32:
        raise ValueError(f"qzeros must have {sizes['N'] * bits // 32} words per row, not {sizes['words_of_zeros']}")
    codes = bit_packing.unpack(qweight.T, bits, sizes["words"] * 32 // bits).T.contiguous()
    zeros = bit_packing.unpack(qzeros, bits, sizes["N"])
    return codes, zeros + 1 & 2**bits - 1 if version == 1 else zeros


def _check(bits: int, version: int, **sizes: int) -> None:
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, not {version}")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
    for name, size in sizes.items():
        if size * bits % 32:
            raise ValueError(f"{name} must fill whole words of {bits} bits, not {size}")
