r"""The GPTQ layout: codes packed down each column of a matrix, zeros packed along each row, in one of two versions.

Paper: none; the layout of checkpoints by GPTQ-for-LLaMa, AutoGPTQ (version 1, `checkpoint_format: gptq`) and GPTQModel (also version 2,
`gptq_v2`). The algorithm is Frantar et al., "GPTQ", 2022, arXiv:2210.17323; it does not speak of bytes.

The matrix stands as it multiplies, $y = xW$ with $W$ `(K, N)`, and $\hat W_{kn} = (q_{kn} - z_{g(k) n})\, s_{g(k) n}$. Then

- `qweight`: column $n$ is the stream of `bit_packing` of its $K$ codes, from the top;
- `qzeros`: row $g$ is the stream of its $N$ stored zeros, which are

$$(z - 1) \bmod 2^b \;\text{ in version 1}, \qquad z \;\text{ in version 2}.$$

| name | symbol | shape | meaning |
|---|---|---|---|
| `codes` | $q$ | `(K, N)` | integers from 0 to $2^b - 1$ |
| `zeros` | $z$ | `(groups, N)` | integers from 0 to $2^b - 1$ |
| `qweight` | | `(K b / 32, N)` | words |
| `qzeros` | | `(groups, N b / 32)` | words |
| `bits` | $b$ | | 2, 3, 4 or 8 in released checkpoints |

Beside them a checkpoint has `scales`, `(groups, N)` in float16, and `g_idx`, the group of each row, `(K,)`. Sizes that do not fill
their words are an error: 3 bits need multiples of 32.

Deviations: version 1 is read modulo $2^b$, so that $z = 0$, stored as $2^b - 1$, comes back as 0. Some readers add 1 and do not reduce,
and see $2^b$; a writer that does not reduce puts the bits of -1 into its neighbors.
"""

import numpy as np

from twofold.spec.number_formats import bit_packing

__all__ = ["pack", "unpack"]


def pack(codes, zeros, bits, version):
    """The words of the codes and of the zeros.

    >>> codes, zeros = np.arange(8).reshape(8, 1).repeat(8, axis=1), np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    >>> qweight, qzeros = pack(codes, zeros, 4, 1)
    >>> hex(qweight[0, 0]), qweight.shape, hex(qzeros[0, 0])           # the zero of column 0 is stored as 15
    ('0x76543210', (1, 8), '0x6543210f')
    """
    codes, zeros = np.asarray(codes), np.asarray(zeros)
    _check(version, codes.shape[0] * bits, codes.shape[1] * bits)
    if zeros.shape[1] != codes.shape[1] or np.any((zeros < 0) | (zeros >= 2**bits)):
        raise ValueError(f"zeros must have {codes.shape[1]} columns of integers from 0 to {2**bits - 1}")
    return bit_packing.pack(codes.T, bits).T, bit_packing.pack((zeros - (version == 1)) % 2**bits, bits)


def unpack(qweight, qzeros, bits, version):
    """The codes and the zeros."""
    rows, columns = np.shape(qweight)
    _check(version, columns * bits)
    codes = bit_packing.unpack(np.transpose(qweight), bits, rows * 32 // bits).T
    return codes, (bit_packing.unpack(qzeros, bits, columns) + (version == 1)) % 2**bits


def _check(version, *lengths):
    if version not in (1, 2):
        raise ValueError(f"version must be 1 or 2, not {version}")
    if any(length % 32 for length in lengths):
        raise ValueError("rows and columns must fill their words: multiples of 32 / bits, of 32 for 3 bits")
