r"""Bit packing: small integer codes as one little-endian stream of bits, cut into 32-bit words.

Paper: none; the layout along one axis that released 2-, 3-, 4- and 8-bit checkpoints use (Frantar et al., "GPTQ", 2022,
arXiv:2210.17323, released code; SqueezeLLM, arXiv:2306.07629, released code).

Code $i$ occupies the bits $[bi, b(i+1))$ of the stream, least significant bit first, and word $j$ is the bits $[32j, 32(j+1))$:

$$\sum_j \mathrm{word}_j\, 2^{32j} = \sum_i \mathrm{code}_i\, 2^{bi}.$$

A width that does not divide 32 lets codes straddle two words: 32 codes of 3 bits fill three words, and $n$ codes need
$\lceil nb/32 \rceil$ words, never $n \cdot (32/b)^{-1}$ rounded down. The unused bits of the last word are 0.

| name | symbol | shape | meaning |
|---|---|---|---|
| `codes` | $\mathrm{code}_i$ | `(..., n)` | integers from 0 to $2^b - 1$ |
| `words` | $\mathrm{word}_j$ | `(..., ceil(n b / 32))` | unsigned 32-bit integers |
| `bits` | $b$ | | width of a code, 1 to 8 |

Deviations: none known. That the 3-bit words equal the released ones rests on the golden vector of the tests.
"""

import numpy as np

__all__ = ["pack", "unpack"]


def pack(codes, bits):
    """The words of the stream along the last axis. No codes give no words.

    >>> [hex(word) for word in pack(np.arange(8), 4)]                  # the first code is the lowest nibble
    ['0x76543210']
    >>> [hex(word) for word in pack(np.array([7] * 11), 3)]            # the eleventh code straddles two words
    ['0xffffffff', '0x1']
    """
    codes = np.asarray(codes)
    _check_width(bits)
    if np.any((codes < 0) | (codes >= 2**bits)):
        raise ValueError(f"codes must lie from 0 to {2**bits - 1} to fit {bits} bits")
    stream = codes[..., None] >> np.arange(bits) & 1                                     # (..., n, bits)
    stream = stream.reshape(*codes.shape[:-1], codes.shape[-1] * bits)                   # (..., n * bits)
    unused = -stream.shape[-1] % 32
    stream = np.concatenate([stream, np.zeros((*codes.shape[:-1], unused), int)], -1)
    stream = stream.reshape(*codes.shape[:-1], stream.shape[-1] // 32, 32)               # one row of bits per word
    return (stream @ (1 << np.arange(32))).astype(np.uint32)


def unpack(words, bits, count):
    """The first `count` codes of the stream; `words` must hold exactly as many words as `count` codes need.

    >>> unpack(np.array([0xFFFFFFFF, 0x1], dtype=np.uint32), 3, 11).tolist()
    [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]
    >>> unpack(np.array([0xFFFFFFFF], dtype=np.uint32), 3, 11)         # 33 bits do not fit one word
    Traceback (most recent call last):
    ...
    ValueError: 11 codes of 3 bits take 2 words, not 1
    """
    words = np.asarray(words)
    _check_width(bits)
    if words.shape[-1] != -(-count * bits // 32):
        raise ValueError(f"{count} codes of {bits} bits take {-(-count * bits // 32)} words, not {words.shape[-1]}")
    stream = words[..., None].astype(np.int64) >> np.arange(32) & 1                      # (..., words, 32)
    stream = stream.reshape(*words.shape[:-1], words.shape[-1] * 32)[..., : count * bits]
    return stream.reshape(*words.shape[:-1], count, bits) @ (1 << np.arange(bits))       # (..., n)


def _check_width(bits):
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
