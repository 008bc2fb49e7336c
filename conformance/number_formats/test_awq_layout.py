"""The AWQ layout is exact: golden words by hand, every code in its place, and its difference from the GPTQ layout."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import awq_layout, gptq_layout

NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # where columns 0 to 7 lie, by the constant of the released readers
GOLDEN = [  # from the description of the format: a row of codes, its words
    ([0, 1, 2, 3, 4, 5, 6, 7], [0x75316420]),
    ([15, 0, 0, 0, 0, 0, 0, 0], [0x0000000F]),
    ([0, 15, 0, 0, 0, 0, 0, 0], [0x000F0000]),
    ([8] * 8 + [1, 9, 2, 10, 3, 11, 4, 12], [0x88888888, 0xCBA94321]),
]
shapes = st.sampled_from([(1, 8, 1), (3, 24, 2), (5, 136, 1), (0, 8, 1), (2, 16, 0)])  # rows, columns, groups


class Arrays:
    """The implementation under test, fed and read in arrays."""

    def __init__(self, fast, layout="contiguous"):
        self.fast, self.layout = fast, layout

    def pack(self, codes, zeros):
        told = self.fast.pack(*(inputs.tensor(each, "uint8", self.layout) for each in (codes, zeros)))
        return tuple(inputs.array(each).view(np.uint32) for each in told)

    def unpack(self, qweight, qzeros):
        words = (inputs.tensor(np.ascontiguousarray(each).view(np.int32), layout=self.layout) for each in (qweight, qzeros))
        return tuple(map(inputs.array, self.fast.unpack(*words)))


def sides(fast, layout="contiguous"):
    return awq_layout, Arrays(fast, layout)


def drawn(shape, seed):
    rows, columns, groups = shape
    rng = np.random.default_rng(seed)
    return rng.integers(0, 16, (rows, columns)), rng.integers(0, 16, (groups, columns))


def same(told, expected):
    for name, x, y in zip(("first", "second"), told, expected):
        exactly(x, y, name)


@pytest.mark.parametrize("codes, words", GOLDEN)
def test_golden_words(fast, codes, words):
    codes, words = np.array([codes]), np.array([words], np.uint32)
    for side in sides(fast):
        same(side.pack(codes, 15 - codes), (words, words ^ 0xFFFFFFFF))
        same(side.unpack(words, words ^ 0xFFFFFFFF), (codes, 15 - codes))


@pytest.mark.parametrize("column", range(16))
def test_every_column_has_its_nibble(fast, column):
    codes = np.zeros((2, 16), int)
    codes[1, column] = 11
    expected = np.zeros((2, 2), np.uint32)
    expected[1, column // 8] = 11 << 4 * NIBBLES[column % 8]
    for side in sides(fast):
        same(side.pack(codes, codes), (expected, expected))
        same(side.unpack(expected, expected), (codes, codes))


@given(shapes, inputs.seeds, inputs.layouts)
def test_unpack_undoes_pack(fast, shape, seed, layout):
    codes, zeros = drawn(shape, seed)
    for side in sides(fast, layout):
        words = side.pack(codes, zeros)
        assert words[0].shape == (shape[0], shape[1] // 8) and words[1].shape == (shape[2], shape[1] // 8)
        same(words, awq_layout.pack(codes, zeros))
        same(side.unpack(*words), (codes, zeros))


@given(inputs.seeds)
def test_every_word_is_some_codes(fast, seed):
    words = tuple(np.random.default_rng(seed).integers(0, 2**32, (3, 4), dtype=np.uint32) for _ in range(2))
    for side in sides(fast):
        same(side.pack(*side.unpack(*words)), words)


def test_zeros_are_packed_as_the_gptq_layout_packs_its_permuted_ones(fast):
    _, zeros = drawn((1, 64, 3), 0)
    permuted = zeros.reshape(3, 8, 8)[:, :, np.argsort(NIBBLES)].reshape(3, 64)
    expected = gptq_layout.pack(np.zeros((8, 64), int), permuted, 4, 2)[1]
    for side in sides(fast):
        told = side.pack(zeros, zeros)[1]
        exactly(told, expected, "words")
        assert np.all(told != gptq_layout.pack(np.zeros((8, 64), int), zeros, 4, 2)[1])


@pytest.mark.parametrize(
    "message, call",
    [
        ("N must be a multiple of 8", lambda f: f.pack(*(torch.zeros(n, 12, dtype=torch.uint8) for n in (4, 1)))),
        ("zeros must have shape", lambda f: f.pack(*(torch.zeros(4, n, dtype=torch.uint8) for n in (8, 16)))),
        ("codes must be at most 15", lambda f: f.pack(torch.full((4, 8), 16, dtype=torch.uint8), torch.zeros(1, 8, dtype=torch.uint8))),
        ("codes must have dtype uint8", lambda f: f.pack(torch.zeros(4, 8), torch.zeros(1, 8, dtype=torch.uint8))),
        ("qzeros must have shape", lambda f: f.unpack(*(torch.zeros(4, n, dtype=torch.int32) for n in (1, 2)))),
        ("qweight must have dtype int32", lambda f: f.unpack(torch.zeros(4, 1), torch.zeros(1, 1, dtype=torch.int32))),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_does_not_fit():
    for codes, zeros in [((4, 12), (1, 12)), ((4, 8), (1, 16))]:
        with pytest.raises(ValueError):
            awq_layout.pack(np.zeros(codes, int), np.zeros(zeros, int))


def test_compiles_in_one_graph(fast):
    codes, zeros = (inputs.tensor(each, "uint8") for each in drawn((3, 24, 2), 0))
    there_and_back = torch.compile(lambda q, z: fast.unpack(*fast.pack(q, z)), fullgraph=True, backend="aot_eager")
    same(there_and_back(codes, zeros), (codes, zeros))
