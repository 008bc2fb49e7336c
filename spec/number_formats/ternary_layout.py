r"""Ternary layouts: weights of -1, 0 and 1 in 2 bits, in pairs, in triples, and in the order of a tensor core.

Paper: Wang et al., "Bitnet.cpp: Efficient Edge Inference for Ternary LLMs", 2025, arXiv:2502.11880, Sec. 3 (I2_S, TL1, TL2), and the
released code of BitNet, also its GPU kernel (W2A8). Section numbers are from memory.

A weight matrix is `(N, K)`, read row by row.

- `i2s`: 2-bit codes $c = w + 1$. Of each `block` neighbors the four quarters share bytes, the first one in the highest bits. With
  $h$ = block/4, $\mathrm{byte}_p = 2^6 c_p + 2^4 c_{p+h} + 2^2 c_{p+2h} + c_{p+3h}$. After the last, 32 bytes: the scale in float32, then
  zeros. `block` is 128 on x86, 64 in builds for ARM, and $4K$ where four rows share bytes.
- `pairs` (TL1): $3w_0 + w_1 + 4$, from 0 to 8, in four bits; the first of two in the upper half of a byte.
- `triples` (TL2): of the first `split` columns, $v = 9w_0 + 3w_1 + w_2$, $|v|$ in four bits as for pairs, and a stream of bits, 1 where
  $v < 0$; pairs of the other columns.
- `w2a8`: 2-bit codes $w + 2$. Of a tile of 16 rows and 32 columns, word $t$ holds 16 neighbors, those of row
  $8\lfloor t/16\rfloor + t \bmod 8$ from column $16\lfloor (t \bmod 16)/8\rfloor$ on. Element $e$ lies at bit
  $8(e \bmod 4) + 2\lfloor e/4\rfloor$: a mask leaves four of them in bytes of their own.

| name | symbol | shape | meaning |
|---|---|---|---|
| `weight` | $w$ | `(N, K)` | -1, 0 or 1 |
| `packed` | | | bytes; for triples: magnitudes, words of signs, pairs; for `w2a8` words |

Deviations: the released files of TL1 and TL2 are cut into tiles whose sizes were tuned for each matrix; here they are in order. A last
half byte is 0.
"""

import numpy as np

from twofold.spec.number_formats import bit_packing

__all__ = ["pack_i2s", "unpack_i2s", "pack_pairs", "unpack_pairs", "pack_triples", "unpack_triples", "pack_w2a8", "unpack_w2a8"]


def pack_i2s(weight, scale, block=128):
    """The bytes, and the tail with the scale.

    >>> [hex(byte) for byte in pack_i2s(np.array([[1, -1, 0, 1]]), 1.0, 4)[:5]]
    ['0x86', '0x0', '0x0', '0x80', '0x3f']
    """
    codes = _checked(weight, block)
    tail = np.concatenate([np.array([scale], "<f4").view(np.uint8), np.zeros(28, np.uint8)])
    return np.concatenate([(codes.reshape(-1, 4, block // 4) + 1).transpose(0, 2, 1) @ (64, 16, 4, 1), tail], None).astype(np.uint8)


def unpack_i2s(packed, shape, block=128):
    """The weight and the scale."""
    codes = packed[:-32].reshape(-1, 1, block // 4) >> np.array([[6], [4], [2], [0]]) & 3
    return _checked(codes.astype(int) - 1).reshape(shape), packed[-32:-28].view("<f4")[0]


def pack_pairs(weight):
    """The bytes of pairs.

    >>> [hex(byte) for byte in pack_pairs(np.array([[1, 1, -1, -1, 0, 0]]))]
    ['0x80', '0x40']
    """
    return _nibbles(_checked(weight, 2).reshape(-1, 2) @ (3, 1) + 4)


def unpack_pairs(packed, shape):
    """The weight."""
    index = _halves(packed, shape[0] * shape[1] // 2)
    return _checked(np.stack([index // 3, index % 3], 1) - 1).reshape(shape)


def pack_triples(weight, split):
    """The bytes of magnitudes, the words of signs, and the bytes of the other columns' pairs.

    >>> magnitudes, signs, pairs = pack_triples(np.array([[1, 1, 1, 0, 0, -1, 1, 0]]), 6)
    >>> hex(magnitudes[0]), signs.tolist(), hex(pairs[0])
    ('0xd1', [2], '0x70')
    """
    value = _checked(weight[:, :split], 3).reshape(-1, 3) @ (9, 3, 1)
    return _nibbles(np.abs(value)), bit_packing.pack(value < 0, 1), pack_pairs(weight[:, split:])


def unpack_triples(packed, shape, split):
    """The weight."""
    (magnitudes, signs, pairs), count = packed, shape[0] * split // 3
    value = _halves(magnitudes, count) * (1 - 2 * bit_packing.unpack(signs, 1, count)) + 13
    triples = _checked(np.stack([value // 9, value // 3 % 3, value % 3], 1) - 1)
    return np.concatenate([triples.reshape(shape[0], split), unpack_pairs(pairs, (shape[0], shape[1] - split))], 1)


def pack_w2a8(weight):
    """The words, by rows of tiles, tiles, and within these.

    >>> [hex(word) for word in pack_w2a8(np.eye(16, 32, dtype=int))[[0, 1, 8, 16]]]
    ['0xaaaaaaab', '0xaaaaabaa', '0xaaaaaaaa', '0xaaaaaaba']
    """
    tiles = (_checked(weight, 512).reshape(-1, 2, 8, weight.shape[1] // 32, 2, 16) + 2).transpose(0, 3, 1, 4, 2, 5)
    return (tiles.reshape(-1, 16) @ (1 << _bits())).astype(np.uint32)


def unpack_w2a8(packed, shape):
    """The weight."""
    codes = packed.astype(np.int64)[:, None] >> _bits() & 3
    tiles = codes.reshape(shape[0] // 16, shape[1] // 32, 2, 2, 8, 16).transpose(0, 2, 4, 1, 3, 5)
    return _checked(tiles.reshape(shape) - 2)


def _bits():
    return np.array([8 * (e % 4) + 2 * (e // 4) for e in range(16)])


def _nibbles(values):
    values = np.append(values, [0] * (len(values) % 2)).astype(np.uint8)
    return values[::2] * 16 + values[1::2]


def _halves(packed, count):
    return np.stack([packed >> 4, packed & 15], 1).ravel()[:count].astype(int)


def _checked(weight, multiple=1):
    if np.any(np.abs(weight) > 1) or np.size(weight) % multiple:
        raise ValueError(f"weights must be -1, 0 or 1, and their number a multiple of {multiple}")
    return weight
