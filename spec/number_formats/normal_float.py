r"""NormalFloat (NF4): sixteen numbers that a normal law uses equally often, times the largest absolute value of a block.

Paper: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, arXiv:2305.14314, Sec. 3 and
App. E; thresholds, ties and bytes are those of the released code (bitsandbytes).

With $\Phi^{-1}$ the normal quantile and $\delta = 0.9677083$, the table holds $\Phi^{-1}$ at 8 even steps from $\delta$ toward 1/2,
$-\Phi^{-1}$ at 7, and 0, all over the greatest: eight positive values and seven negative ones, because one code is 0. What was released
are these numbers in float32, and they are the definition.

$$v = \mathrm{clip}(x \cdot (1/a), -1, 1), \quad \mathrm{code} = \#\{i : \mu_i < v\}, \quad \hat x = \mathrm{table}_{\mathrm{code}}\, a$$

in float32, where $a$ is the largest absolute value of a block of 64 neighbors in row-major order, at least $10^{-38}$ when divided by, and
$\mu_i$ the middle of entries $i$ and $i+1$ in float32: the nearest entry, and the lower of two. Of a pair of codes the first lies in the
upper half of a byte; a missing last one is 7, the code of 0.

| name | symbol | shape | meaning |
|---|---|---|---|
| `x`, `codes` | $x$ | any | numbers; integers from 0 to 15 |
| `absmax` | $a$ | `(ceil(n / block),)` | of blocks of the flattened array; the last may be short |
| `packed` | | `(ceil(n / 2),)` | bytes |

Deviations: six of the fifteen $\mu_i$ are rounded up by half a unit, so the float32 number just above the true middle still takes the
lower entry; this is what the released code does. The construction reproduces the table to $1.1 \cdot 10^{-7}$. NaN and infinity are errors.
"""

import numpy as np

__all__ = ["encode", "decode", "block_maximum", "table", "pack", "unpack"]

TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def encode(x, absmax, block=64):
    """The codes of numbers, in their shape, given the maxima of their blocks.

    >>> encode(np.array([-2.0, 0.0, 0.3, 2.0]), np.array([2.0])).tolist()
    [0, 7, 9, 15]
    """
    x = np.asarray(x)
    if not np.all(np.isfinite(x)) or not np.all(np.isfinite(absmax)):
        raise ValueError("x and absmax must be finite")
    reciprocal = np.float32(1) / np.maximum(np.float32(absmax), np.float32(1e-38))
    v = np.clip(np.float32(x) * _per_element(reciprocal, x.shape, block), -1, 1)
    middle = (table()[1:] + table()[:-1]) / np.float32(2)
    return np.sum(v[..., None] > middle, axis=-1)


def decode(codes, absmax, block=64):
    """The numbers that codes stand for; exact if `absmax` is given in float64."""
    return table()[codes] * _per_element(np.asarray(absmax), np.shape(codes), block)


def block_maximum(x, block=64):
    """The largest absolute value of every block, `(ceil(n / block),)`.

    >>> block_maximum(np.array([[1.0, -3.0], [0.5, 0.0]]), 3).tolist()
    [3.0, 0.0]
    """
    flat = np.abs(np.ravel(x))
    if not np.all(np.isfinite(flat)):
        raise ValueError("x must be finite")
    return np.array([np.max(flat[start : start + block]) for start in range(0, flat.size, block)])


def table():
    """What each code stands for, times the block's maximum."""
    return np.array(TABLE, np.float32)


def pack(codes):
    """Two codes to a byte, over the flattened array.

    >>> pack(np.array([0, 15, 8])).tolist() == [0x0F, 0x87]
    True
    """
    codes = np.ravel(codes)
    if np.any((codes < 0) | (codes > 15)):
        raise ValueError("codes must lie from 0 to 15")
    pairs = np.append(codes, [7] * (codes.size % 2)).astype(int).reshape(-1, 2)
    return (pairs[:, 0] * 16 + pairs[:, 1]).astype(np.uint8)


def unpack(packed, count):
    """The first `count` codes of the bytes, of which there must be exactly as many as these need."""
    packed = np.asarray(packed, np.uint8)
    if packed.shape != (-(-count // 2),):
        raise ValueError(f"{count} codes take {-(-count // 2)} bytes, not shape {packed.shape}")
    return np.stack([packed >> 4, packed & 15], 1).ravel()[:count]


def _per_element(values, shape, block):
    count = int(np.prod(shape))
    if values.shape != (-(-count // block),):
        raise ValueError(f"{count} numbers in blocks of {block} have {-(-count // block)} maxima, not shape {values.shape}")
    return np.repeat(values, block)[:count].reshape(shape)
