r"""The AWQ layout: 4-bit codes packed along each row of a matrix, eight to a word, in an order of its own.

Paper: none; the layout of checkpoints by AutoAWQ (`version: gemm`) and of the kernels of llm-awq. The algorithm is Lin et al., "AWQ",
2023, arXiv:2306.00978; it does not speak of bytes.

The matrix stands as it multiplies, $y = xW$ with $W$ `(K, N)`. Of each eight neighbors of a row, the one in the four bits from $4p$ on is

$$q_{k,\, 8j + o(p)}, \qquad o = (0, 2, 4, 6, 1, 3, 5, 7),$$

so that the codes 0, 1, 2, … lie in the nibbles 0, 4, 1, 5, 2, 6, 3, 7. Masked with 0x000F000F, a word leaves two neighbors, one in each
half, and so does each of its shifts by 4 bits. Zeros are packed likewise, and are stored as they are.

| name | symbol | shape | meaning |
|---|---|---|---|
| `codes` | $q$ | `(K, N)` | integers from 0 to 15 |
| `zeros` | $z$ | `(groups, N)` | integers from 0 to 15 |
| `qweight` | | `(K, N / 8)` | words |
| `qzeros` | | `(groups, N / 8)` | words |

Beside them a checkpoint has `scales`, `(groups, N)` in float16; there is no `g_idx`. $N$ must be a multiple of 8.

Deviations: none known. AutoAWQ's other layouts (`gemv`, `gemv_fast`, `marlin`) are not this one.
"""

import numpy as np

from twofold.spec.number_formats import bit_packing

__all__ = ["pack", "unpack"]

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(codes, zeros):
    """The words of the codes and of the zeros.

    >>> qweight, qzeros = pack(np.arange(8).reshape(1, 8), np.full((1, 8), 8))
    >>> hex(qweight[0, 0]), hex(qzeros[0, 0])
    ('0x75316420', '0x88888888')
    """
    codes, zeros = np.asarray(codes), np.asarray(zeros)
    if codes.shape[1] != zeros.shape[1]:
        raise ValueError(f"codes and zeros must have as many columns, not {codes.shape[1]} and {zeros.shape[1]}")
    return tuple(bit_packing.pack(_eights(each)[..., list(ORDER)].reshape(each.shape), 4) for each in (codes, zeros))


def unpack(qweight, qzeros):
    """The codes and the zeros."""
    where = np.argsort(ORDER)
    columns = 8 * np.shape(qweight)[1]
    return tuple(_eights(bit_packing.unpack(each, 4, columns))[..., where].reshape(len(each), columns) for each in (qweight, qzeros))


def _eights(codes):
    if codes.shape[1] % 8:
        raise ValueError(f"rows must hold a multiple of 8 codes, not {codes.shape[1]}")
    return codes.reshape(codes.shape[0], codes.shape[1] // 8, 8)
