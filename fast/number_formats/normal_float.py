"""NormalFloat (NF4) on tensors of any shape. The definition is `twofold.spec.number_formats.normal_float`.

Codes and bytes are uint8; maxima are float32, one for `block` neighbors in row-major order. Arithmetic is float32, one reciprocal and one
product per number, as the released kernels do it. A block that holds NaN or infinity has the maximum NaN and so reads as NaN; no other
block notices. Nothing here has a gradient.
"""

import torch
from torch.nn.functional import pad

from twofold.fast import checks

__all__ = ["encode", "decode", "block_maximum", "table", "pack", "unpack"]

TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def encode(x: torch.Tensor, absmax: torch.Tensor, block: int = 64) -> torch.Tensor:
    """The codes of numbers, in their shape, given the maxima of their blocks."""
    checks.dtypes(*FLOATS, x=x)
    reciprocal = _per_element(1 / absmax.clamp(min=1e-38), x, block, absmax)
    v = (x.float() * reciprocal).clamp(-1, 1)
    entries = table(device=x.device)
    codes = torch.bucketize(v, (entries[1:] + entries[:-1]) / 2)
    return torch.where(v.isnan(), 0, codes).to(torch.uint8)


def decode(codes: torch.Tensor, absmax: torch.Tensor, block: int = 64, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The numbers that codes stand for: one product in float32, rounded once to `dtype`."""
    checks.dtypes(torch.uint8, codes=codes)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {str(dtype).removeprefix('torch.')}")
    return (table(device=codes.device)[codes.int() & 15] * _per_element(absmax, codes, block, absmax)).to(dtype)


def block_maximum(x: torch.Tensor, block: int = 64) -> torch.Tensor:
    """The largest absolute value of every block, `(ceil(n / block),)`, NaN where one is not finite."""
    checks.dtypes(*FLOATS, x=x)
    checks.at_least(1, block=block)
    largest = pad(x.reshape(-1).abs(), (0, -x.numel() % block)).view(-(-x.numel() // block), block).amax(1).float()
    return torch.where(largest.isinf(), torch.nan, largest)


def table(*, device: torch.device | str | None = None) -> torch.Tensor:
    """What each code stands for, times the block's maximum."""
    return torch.tensor(TABLE, device=device)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Two codes to a byte, over the flattened tensor. Codes must be at most 15: more is an error on the CPU, undefined on a GPU."""
    checks.dtypes(torch.uint8, codes=codes)
    if codes.device.type == "cpu" and not torch.compiler.is_compiling() and codes.numel() and int(codes.max()) > 15:
        raise ValueError(f"codes must be at most 15, not {int(codes.max())}")
    pairs = pad(codes.reshape(-1), (0, codes.numel() % 2), value=7).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` codes of the bytes, of which there must be exactly as many as these need."""
    checks.dtypes(torch.uint8, packed=packed)
    if packed.shape != ((count + 1) // 2,):
        raise ValueError(f"packed must have shape ({(count + 1) // 2},) for {count} codes, not {tuple(packed.shape)}")
    return torch.stack([packed >> 4, packed & 15], 1).view(-1)[:count]


def _per_element(values, like, block, absmax):
    """A value per block, repeated in the shape of `like`, whose blocks they belong to."""
    checks.dtypes(torch.float32, absmax=absmax)
    checks.same_device(x=like, absmax=absmax)
    checks.at_least(1, block=block)
    blocks = -(-like.numel() // block)
    if absmax.shape != (blocks,):
        raise ValueError(f"absmax must have shape ({blocks},) for {like.numel()} numbers in blocks of {block}, not {tuple(absmax.shape)}")
    return values[:, None].expand(blocks, block).reshape(-1)[: like.numel()].view(like.shape)
