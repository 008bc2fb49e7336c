"""Ternary layouts of weights `(N, K)`. The definition is `twofold.spec.number_formats.ternary_layout`.

Weights are int8, bytes uint8, words int32 bit patterns. Weights must be -1, 0 or 1, and bytes those of such weights: on the CPU other
weights are an error; other bytes, and other weights on a GPU, where looking would stall the stream, are undefined.
"""

import torch
from torch.nn.functional import pad

from twofold.fast import checks
from twofold.fast.number_formats import bit_packing

__all__ = ["pack_i2s", "unpack_i2s", "pack_pairs", "unpack_pairs", "pack_triples", "unpack_triples", "pack_w2a8", "unpack_w2a8"]

Shape = tuple[int, int]
TAIL = 32  # bytes after the codes of i2s
BITS = tuple(8 * (e % 4) + 2 * (e // 4) for e in range(16))  # where the sixteen codes of a word of w2a8 begin


def pack_i2s(weight: torch.Tensor, scale: torch.Tensor | float, block: int = 128) -> torch.Tensor:
    """The bytes `(N K / 4 + 32,)`, with the scale in the tail; `block` is 128, 64, or 4 K."""
    _check(weight)
    _check_block(weight.numel(), block)
    quarters = (weight.reshape(-1, 4, block // 4) + 1).to(torch.uint8).unbind(1)
    codes = (quarters[0] << 6 | quarters[1] << 4 | quarters[2] << 2 | quarters[3]).flatten()
    told = torch.as_tensor(scale, dtype=torch.float32, device=weight.device).reshape(1)
    return torch.cat([codes, pad(told.view(torch.uint8), (0, TAIL - 4))])


def unpack_i2s(packed: torch.Tensor, shape: Shape, block: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight, and the scale as a tensor of no axes."""
    _check_block(shape[0] * shape[1], block)
    _check_packed(packed, "packed", torch.uint8, shape[0] * shape[1] // 4 + TAIL)
    bytes_of_block = packed[:-TAIL].view(-1, block // 4)
    codes = torch.stack([bytes_of_block >> shift & 3 for shift in (6, 4, 2, 0)], 1)
    return codes.to(torch.int8).sub_(1).view(shape), packed[-TAIL : 4 - TAIL].clone().view(torch.float32)[0]


def pack_pairs(weight: torch.Tensor) -> torch.Tensor:
    """The bytes `(ceil(N K / 4),)`."""
    _check(weight)
    _multiple("weights", weight.numel(), 2)
    pairs = weight.reshape(-1, 2)
    return _nibbles(3 * pairs[:, 0] + pairs[:, 1] + 4)


def unpack_pairs(packed: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The weight."""
    _multiple("weights", shape[0] * shape[1], 2)
    index = _halves(packed, "packed", shape[0] * shape[1] // 2)
    return torch.stack([index // 3, index % 3], 1).sub_(1).view(shape)


def pack_triples(weight: torch.Tensor, split: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bytes of magnitudes, the words of signs, and the bytes of the pairs of the columns from `split` on."""
    _check(weight)
    _check_split(weight.shape[1], split)
    triples = weight[:, :split].reshape(-1, 3)
    value = 9 * triples[:, 0] + 3 * triples[:, 1] + triples[:, 2]
    return _nibbles(value.abs()), bit_packing.pack((value < 0).to(torch.uint8), 1), pack_pairs(weight[:, split:])


def unpack_triples(packed: tuple[torch.Tensor, torch.Tensor, torch.Tensor], shape: Shape, split: int) -> torch.Tensor:
    """The weight."""
    _check_split(shape[1], split)
    (magnitudes, signs, pairs), count = packed, shape[0] * split // 3
    sign = 1 - 2 * bit_packing.unpack(signs, 1, count).to(torch.int8)
    value = _halves(magnitudes, "magnitudes", count) * sign + 13
    triples = torch.stack([value // 9, value // 3 % 3, value % 3], 1).sub_(1).view(shape[0], split)
    return torch.cat([triples, unpack_pairs(pairs, (shape[0], shape[1] - split))], 1)


def pack_w2a8(weight: torch.Tensor) -> torch.Tensor:
    """The words `(N K / 16,)`, by rows of tiles, tiles, and within these."""
    _check(weight)
    _check_tiles(weight.shape)
    codes = (weight + 2).reshape(weight.shape[0] // 16, 2, 8, weight.shape[1] // 32, 2, 16).permute(0, 3, 1, 4, 2, 5).reshape(-1, 16)
    return (codes.int() << torch.tensor(BITS, dtype=torch.int32, device=codes.device)).sum(1, dtype=torch.int32)  # bits do not meet


def unpack_w2a8(packed: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The weight."""
    _check_tiles(shape)
    _check_packed(packed, "packed", torch.int32, shape[0] * shape[1] // 16)
    codes = packed[:, None] >> torch.tensor(BITS, dtype=torch.int32, device=packed.device) & 3
    tiles = codes.to(torch.int8).sub_(2).view(shape[0] // 16, shape[1] // 32, 2, 2, 8, 16)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(shape)


def _nibbles(values):
    pairs = pad(values.to(torch.uint8), (0, values.numel() % 2)).view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1]


def _halves(packed, name, count):
    _check_packed(packed, name, torch.uint8, (count + 1) // 2)
    return torch.stack([packed >> 4, packed & 15], 1).view(-1)[:count].to(torch.int8)


def _check(weight: torch.Tensor) -> None:
    checks.shape(weight=(weight, "N K"))
    checks.dtypes(torch.int8, weight=weight)
    if weight.device.type == "cpu" and not torch.compiler.is_compiling() and weight.numel() and int(weight.abs().max()) > 1:
        raise ValueError("weight must hold -1, 0 and 1 only")


def _check_block(count: int, block: int) -> None:
    if block < 4 or block % 4:
        raise ValueError(f"block must be a positive multiple of 4, not {block}")
    _multiple("weights", count, block)


def _check_packed(packed: torch.Tensor, name: str, dtype: torch.dtype, size: int) -> None:
    checks.dtypes(dtype, **{name: packed})
    if packed.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), not {tuple(packed.shape)}")


def _check_split(columns: int, split: int) -> None:
    if not 0 <= split <= columns or split % 3 or (columns - split) % 2:
        raise ValueError(f"split must be a multiple of 3 that leaves an even number of {columns} columns, not {split}")


def _check_tiles(shape) -> None:
    if shape[0] % 16 or shape[1] % 32:
        raise ValueError(f"N and K must be multiples of 16 and 32, not {tuple(shape)}")


def _multiple(name: str, count: int, of: int) -> None:
    if count % of:
        raise ValueError(f"the number of {name} must be a multiple of {of}, not {count}")
