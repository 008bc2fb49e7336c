"""Ternary layouts are exact: golden bytes by hand, every weight in its place, and all layouts decode to one matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import ternary_layout

SCALES = {0.0: [0, 0, 0, 0], 1.0: [0, 0, 0x80, 0x3F], -2.5: [0, 0, 0x20, 0xC0]}  # IEEE 754, little end first
shapes = st.sampled_from([(16, 96), (32, 32), (16, 32), (48, 64)])


class Arrays:
    """The implementation under test, fed and read in arrays."""

    def __init__(self, fast, layout="contiguous"):
        self.fast, self.layout = fast, layout

    def weight(self, values):
        return inputs.tensor(values, "int8", self.layout)

    def pack_i2s(self, weight, scale, *block):
        return inputs.array(self.fast.pack_i2s(self.weight(weight), scale, *block))

    def unpack_i2s(self, packed, *options):
        weight, scale = self.fast.unpack_i2s(inputs.tensor(packed), *options)
        return inputs.array(weight), float(scale)

    def pack_pairs(self, weight):
        return inputs.array(self.fast.pack_pairs(self.weight(weight)))

    def unpack_pairs(self, packed, shape):
        return inputs.array(self.fast.unpack_pairs(inputs.tensor(packed), shape))

    def pack_triples(self, weight, split):
        magnitudes, signs, pairs = map(inputs.array, self.fast.pack_triples(self.weight(weight), split))
        return magnitudes, signs.view(np.uint32), pairs

    def unpack_triples(self, packed, *options):
        magnitudes, signs, pairs = packed
        packed = inputs.tensor(magnitudes), inputs.tensor(signs.view(np.int32)), inputs.tensor(pairs)
        return inputs.array(self.fast.unpack_triples(packed, *options))

    def pack_w2a8(self, weight):
        return inputs.array(self.fast.pack_w2a8(self.weight(weight))).view(np.uint32)

    def unpack_w2a8(self, packed, shape):
        return inputs.array(self.fast.unpack_w2a8(inputs.tensor(packed.view(np.int32)), shape))


def sides(fast, layout="contiguous"):
    return ternary_layout, Arrays(fast, layout)


def drawn(shape, seed):
    return np.random.default_rng(seed).integers(-1, 2, shape)


def there_and_back(side, weight):
    """Of every layout, what is packed, as a list of arrays, and the weight that comes back."""
    shape = weight.shape
    for block in (128, 64, 4 * shape[1]):
        packed = side.pack_i2s(weight, 1.5, block)
        yield f"i2s {block}", [packed], side.unpack_i2s(packed, shape, block)[0]
    packed = side.pack_pairs(weight)
    yield "pairs", [packed], side.unpack_pairs(packed, shape)
    for split in (0, 6, shape[1] // 6 * 6):
        triples = side.pack_triples(weight, split)
        yield f"triples {split}", [*triples], side.unpack_triples(triples, shape, split)
    packed = side.pack_w2a8(weight)
    yield "w2a8", [packed], side.unpack_w2a8(packed, shape)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("block, places", [(128, (0, 32, 64, 96)), (64, (0, 16, 32, 48)), (256, (0, 64, 128, 192))])
def test_golden_bytes_of_i2s(fast, block, places, scale):
    weight = np.zeros((4, 64), int)  # with blocks of 256, four rows
    weight.ravel()[list(places)] = 1, -1, 0, 1  # codes 2, 0, 1, 2
    expected = np.array([0x86] + [0x55] * 63 + SCALES[scale] + [0] * 28)
    for side in sides(fast):
        exactly(side.pack_i2s(weight, scale, block), expected, "bytes")
        told = side.unpack_i2s(expected.astype(np.uint8), (4, 64), block)
        exactly(told[0], weight, "weight")
        assert told[1] == scale


def test_golden_bytes_of_pairs_and_triples(fast):
    for side in sides(fast):
        exactly(side.pack_pairs(np.array([[1, 1, -1, -1], [0, 0, -1, 1], [1, -1, 0, 1]])), np.array([0x80, 0x42, 0x65]), "pairs")
        exactly(side.pack_pairs(np.array([[0, 1]])), np.array([0x50]), "half a byte")
        weight = np.array([[1, 1, 1, -1, -1, -1, 0, 0], [0, 0, 1, 1, -1, 0, 1, 1]])
        magnitudes, signs, pairs = side.pack_triples(weight, 6)
        exactly(magnitudes, np.array([0xDD, 0x16]), "magnitudes")
        exactly(signs, np.array([0b0010]), "signs")
        exactly(pairs, np.array([0x48]), "pairs")


def test_golden_words_of_w2a8(fast):
    expected = np.full(64, 0xAAAAAAAA, np.uint32)  # two tiles of zeros
    places = {(0, 0): (0, 0), (0, 1): (0, 8), (0, 4): (0, 2), (1, 15): (1, 30), (0, 16): (8, 0), (8, 2): (16, 16), (15, 31): (31, 30)}
    weight = np.zeros((16, 64), int)
    for (row, column), (word, bit) in places.items():  # by hand from the map of threads to rows and columns
        weight[row, column], weight[row, 32 + column] = 1, -1
        expected[word] ^= np.uint32(1 << bit)  # 2 becomes 3
        expected[32 + word] ^= np.uint32(3 << bit)  # 2 becomes 1
    for side in sides(fast):
        exactly(side.pack_w2a8(weight), expected, "words")
        exactly(side.unpack_w2a8(expected, (16, 64)), weight, "weight")


@given(shapes, inputs.seeds, inputs.layouts)
def test_all_layouts_hold_one_matrix(fast, shape, seed, layout):
    weight = drawn(shape, seed)
    expected = [packed for _, packed, _ in there_and_back(ternary_layout, weight)]
    for side in sides(fast, layout):
        for (name, packed, back), right in zip(there_and_back(side, weight), expected):
            exactly(back, weight, name)
            for told, wanted in zip(packed, right, strict=True):
                exactly(told, wanted, f"{name}: bytes")


def test_every_byte_of_ternary_codes_comes_back(fast):
    """All 81 bytes of i2s, all 81 of pairs, and all 27 triples."""
    digits = np.array(np.meshgrid(*[[-1, 0, 1]] * 4, indexing="ij")).reshape(4, 81).T  # every row once
    triples = digits[:27, 1:]
    for side in sides(fast):
        packed = side.pack_i2s(digits, 1.0, 4)[:-32]
        assert len(np.unique(packed)) == 81
        exactly(side.unpack_i2s(side.pack_i2s(digits, 1.0, 4), (81, 4), 4)[0], digits, "i2s")
        assert len(np.unique(side.pack_pairs(digits))) == 81
        exactly(side.unpack_pairs(side.pack_pairs(digits), (81, 4)), digits, "pairs")
        exactly(side.unpack_triples(side.pack_triples(triples, 3), (27, 3), 3), triples, "triples")


@given(inputs.seeds)
def test_a_layout_read_with_another_block_is_another_matrix(fast, seed):
    weight = drawn((16, 96), seed)
    for side in sides(fast):
        packed = side.pack_i2s(weight, 1.0, 128)
        assert np.any(side.unpack_i2s(packed, weight.shape, 64)[0] != weight)
        assert np.any(side.unpack_i2s(packed, weight.shape, 384)[0] != weight)


def ones(*shape, dtype=torch.int8):
    return torch.ones(shape, dtype=dtype)


def byte(count):
    return ones(count, dtype=torch.uint8)


@pytest.mark.parametrize(
    "message, call",
    [
        ("multiple of 128, not 96", lambda f: f.pack_i2s(ones(3, 32), 1.0)),
        ("block must be a positive multiple of 4", lambda f: f.pack_i2s(ones(3, 32), 1.0, 6)),
        ("packed must have shape", lambda f: f.unpack_i2s(byte(32), (4, 32))),
        ("multiple of 2, not 9", lambda f: f.pack_pairs(ones(3, 3))),
        ("split must be a multiple of 3", lambda f: f.pack_triples(ones(3, 8), 3)),
        ("magnitudes must have shape", lambda f: f.unpack_triples((byte(3), ones(1, dtype=torch.int32), byte(0)), (2, 6), 6)),
        ("multiples of 16 and 32", lambda f: f.pack_w2a8(ones(16, 16))),
        ("weight must hold", lambda f: f.pack_pairs(2 * ones(2, 2))),
        ("weight must have dtype int8", lambda f: f.pack_pairs(torch.ones(2, 2))),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_is_not_ternary():
    for call in (
        lambda: ternary_layout.pack_pairs(np.full((2, 2), 2)),
        lambda: ternary_layout.pack_i2s(np.ones((3, 32), int), 1.0),
        lambda: ternary_layout.unpack_i2s(np.full(33, 255, np.uint8), (1, 4), 4),
        lambda: ternary_layout.unpack_w2a8(np.zeros(32, np.uint32), (16, 32)),
    ):
        with pytest.raises(ValueError):
            call()


def test_compiles_in_one_graph(fast):
    weight = inputs.tensor(drawn((16, 96), 0), "int8")
    both = torch.compile(lambda w: fast.unpack_triples(fast.pack_triples(w, 48), (16, 96), 48), fullgraph=True, backend="aot_eager")
    exactly(both(weight), weight, "triples")
    both = torch.compile(lambda w: fast.unpack_w2a8(fast.pack_w2a8(w), (16, 96)), fullgraph=True, backend="aot_eager")
    exactly(both(weight), weight, "w2a8")
