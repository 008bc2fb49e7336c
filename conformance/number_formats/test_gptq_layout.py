"""The GPTQ layout is exact: golden words by hand, both versions, and what happens to a zero of 0."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import gptq_layout

widths, versions = st.sampled_from([1, 2, 3, 4, 5, 8]), st.sampled_from([1, 2])
shapes = st.sampled_from([(32, 32, 1), (64, 32, 2), (32, 32, 0), (0, 32, 1)])  # rows, columns, groups

OCTAL = [0x88FAC688, 0xC688FAC6, 0xFAC688FA]  # the digits 0 to 7 four times over, three bits each
GOLDEN = [  # from the description of the format: bits, a column of codes, its words, a row of zeros, its words in versions 1 and 2
    (4, range(8), [0x76543210], range(8), [0x6543210F], [0x76543210]),
    (4, [15] + [0] * 7, [0x0000000F], [8] * 8, [0x77777777], [0x88888888]),
    (3, [*range(8)] * 4, OCTAL, [1, 2, 3, 4, 5, 6, 7, 0] * 4, OCTAL, [0xD11F58D1, 0x58D11F58, 0x1F58D11F]),
    (2, [0, 1, 2, 3] * 4, [0xE4E4E4E4], [0, 1, 2, 3] * 4, [0x93939393], [0xE4E4E4E4]),
    (8, [1, 2, 254, 255], [0xFFFE0201], [0, 1, 128, 255], [0xFE7F00FF], [0xFF800100]),
]


class Arrays:
    """The implementation under test, fed and read in arrays."""

    def __init__(self, fast, layout="contiguous"):
        self.fast, self.layout = fast, layout

    def pack(self, codes, zeros, *options):
        told = self.fast.pack(*(inputs.tensor(each, "uint8", self.layout) for each in (codes, zeros)), *options)
        return tuple(inputs.array(each).view(np.uint32) for each in told)

    def unpack(self, qweight, qzeros, *options):
        words = (inputs.tensor(np.ascontiguousarray(each).view(np.int32), layout=self.layout) for each in (qweight, qzeros))
        return tuple(map(inputs.array, self.fast.unpack(*words, *options)))


def sides(fast):
    return gptq_layout, Arrays(fast)


def drawn(shape, bits, seed):
    rows, columns, groups = shape
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bits, (rows, columns)), rng.integers(0, 2**bits, (groups, columns))


def same(told, expected):
    for name, x, y in zip(("first", "second"), told, expected):
        exactly(x, y, name)


@pytest.mark.parametrize("bits, codes, qweight, zeros, first, second", GOLDEN)
def test_golden_words(fast, bits, codes, qweight, zeros, first, second):
    columns = len(zeros)
    codes = np.repeat(np.array([*codes])[:, None], columns, axis=1)
    qweight = np.repeat(np.array(qweight, np.uint32)[:, None], columns, axis=1)
    for side in sides(fast):
        for version, qzeros in ((1, first), (2, second)):
            words = qweight, np.array([qzeros], np.uint32)
            same(side.pack(codes, np.array([[*zeros]]), bits, version), words)
            same(side.unpack(*words, bits, version), (codes, np.array([[*zeros]])))


@given(shapes, widths, versions, inputs.seeds, inputs.layouts)
@example((96, 96, 3), 3, 1, 0, "sliced")
def test_words_are_the_definitions_and_come_back(fast, shape, bits, version, seed, layout):
    codes, zeros = drawn(shape, bits, seed)
    words = gptq_layout.pack(codes, zeros, bits, version)
    assert words[0].shape == (shape[0] * bits // 32, shape[1]) and words[1].shape == (shape[2], shape[1] * bits // 32)
    same(gptq_layout.unpack(*words, bits, version), (codes, zeros))
    same(Arrays(fast, layout).pack(codes, zeros, bits, version), words)
    same(Arrays(fast, layout).unpack(*words, bits, version), (codes, zeros))


@given(shapes, widths, inputs.seeds)
def test_words_are_digits_down_each_column_and_along_each_row(shape, bits, seed):
    codes, zeros = drawn(shape, bits, seed)
    qweight, qzeros = gptq_layout.pack(codes, zeros, bits, 2)
    for digits, words in [*zip(codes.T, qweight.T), *zip(zeros, qzeros)]:
        assert sum(int(code) << bits * i for i, code in enumerate(digits)) == sum(int(word) << 32 * j for j, word in enumerate(words))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_zero_comes_back_and_no_version_reads_the_other(fast, bits):
    zeros = np.resize(np.arange(2**bits), (2**bits // 32 + 1) * 32).reshape(-1, 32)
    codes = np.zeros((32, 32), int)
    for side in sides(fast):
        for version in (1, 2):
            words = side.pack(codes, zeros, bits, version)
            exactly(side.unpack(*words, bits, version)[1], zeros, "zeros")
            assert np.all(side.unpack(*words, bits, 3 - version)[1] != zeros)


@pytest.mark.parametrize("bits, version", [(3, 1), (4, 1), (4, 2)])
def test_a_code_or_zero_touches_nothing_else(fast, bits, version):
    codes, zeros = drawn((32, 32, 2), bits, 0)
    other_codes, other_zeros = codes.copy(), zeros.copy()
    other_codes[21, 10] ^= 1
    other_zeros[1, 10] = 0
    for side in sides(fast):
        words, changed = side.pack(codes, zeros, bits, version), side.pack(other_codes, other_zeros, bits, version)
        same(side.unpack(*changed, bits, version), (other_codes, other_zeros))
        exactly(np.argwhere(words[0] != changed[0]), np.array([[21 * bits // 32, 10]]), "words of codes that changed")


def byte(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def word(*shape):
    return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    "message, call",
    [
        ("version must be 1 or 2", lambda f: f.pack(byte(32, 32), byte(1, 32), 4, 3)),
        ("bits must be from 1 to 8", lambda f: f.pack(byte(32, 32), byte(1, 32), 16, 1)),
        ("K must fill whole words of 3 bits", lambda f: f.pack(byte(40, 32), byte(1, 32), 3, 1)),
        ("N must fill whole words of 4 bits", lambda f: f.pack(byte(32, 12), byte(1, 12), 4, 1)),
        ("zeros must have shape", lambda f: f.pack(byte(32, 32), byte(1, 64), 4, 1)),
        ("zeros must be at most 15", lambda f: f.pack(byte(32, 32), byte(1, 32) + 16, 4, 1)),
        ("codes must be at most 15", lambda f: f.pack(byte(32, 32) + 16, byte(1, 32), 4, 1)),
        ("zeros must have dtype", lambda f: f.pack(byte(32, 32), word(1, 32), 4, 1)),
        ("qweight must have a multiple of 3 rows", lambda f: f.unpack(word(4, 32), word(1, 3), 3, 1)),
        ("qzeros must have 4 words", lambda f: f.unpack(word(4, 32), word(1, 3), 4, 1)),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_does_not_fit():
    good = np.zeros((32, 32), int)
    for codes, zeros, bits, version in [
        (good, good, 4, 0), (good[:30], good, 3, 1), (good[:, :20], good[:, :20], 3, 1), (good, good + 16, 4, 1), (good, good[:, :8], 4, 1),
    ]:  # fmt: skip
        with pytest.raises(ValueError):
            gptq_layout.pack(codes, zeros, bits, version)


def test_compiles_in_one_graph(fast):
    codes, zeros = (inputs.tensor(each, "uint8") for each in drawn((32, 32, 2), 3, 0))
    there_and_back = torch.compile(lambda q, z: fast.unpack(*fast.pack(q, z, 3, 1), 3, 1), fullgraph=True, backend="aot_eager")
    same(there_and_back(codes, zeros), (codes, zeros))
