"""Bit packing is exact: the words are the digits of one long integer, and nothing but the definition may come out."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import bit_packing

widths = st.integers(1, 8)
counts = inputs.sizes(8, 32)

GOLDEN = {  # worked out by hand: digits in base 2, 8 and 16, and the letters ABCDE
    1: ([1, 0, 0, 1, 1, 0, 1, 1] * 4, [0xD9D9D9D9]),
    3: ([0, 1, 2, 3, 4, 5, 6, 7] * 4, [0x88FAC688, 0xC688FAC6, 0xFAC688FA]),
    4: ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0x76543210, 0x00000098]),
    8: ([0x41, 0x42, 0x43, 0x44, 0x45], [0x44434241, 0x00000045]),
}


def codes(rows, count, bits, seed):
    return np.random.default_rng(seed).integers(0, 2**bits, (rows, count))


def stream(row, bits):
    """The words of one row as the digits, base 2^32, of the integer that its codes are the digits of, base 2^bits."""
    number = sum(int(code) << bits * i for i, code in enumerate(row))
    return np.frombuffer(number.to_bytes(4 * -(-len(row) * bits // 32), "little"), "<u4")


def pack(fast, values, bits, layout="contiguous"):
    return inputs.array(fast.pack(inputs.tensor(values, "uint8", layout), bits)).view(np.uint32)


@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_words(fast, bits):
    digits, words = (np.array(x) for x in GOLDEN[bits])
    exactly(bit_packing.pack(digits, bits), words, "spec words")
    exactly(pack(fast, digits, bits), words, "words")


@given(widths, counts, inputs.seeds, inputs.layouts)
@example(3, 12000, 0, "contiguous")  # several programs per row
@example(8, 4500, 0, "contiguous")
def test_words_are_the_digits_of_one_integer(fast, bits, count, seed, layout):
    values = codes(3, count, bits, seed)
    expected = np.stack([stream(row, bits) for row in values])
    exactly(bit_packing.pack(values, bits), expected, "spec words")
    exactly(pack(fast, values, bits, layout), expected, "words")


@given(widths, counts, inputs.seeds, inputs.layouts)
@example(5, 12000, 0, "contiguous")
def test_unpack_undoes_pack(fast, bits, count, seed, layout):
    values = codes(3, count, bits, seed)
    words = np.stack([stream(row, bits) for row in values])
    exactly(bit_packing.unpack(words, bits, count), values, "spec codes")
    exactly(fast.unpack(inputs.tensor(words.view(np.int32), layout=layout), bits, count), values, "codes")


@given(widths, st.integers(1, 70))
def test_all_ones_fill_the_stream_and_nothing_after_it(fast, bits, count):
    used = np.unpackbits(pack(fast, np.full(count, 2**bits - 1), bits).view(np.uint8), bitorder="little")
    exactly(used, np.arange(len(used)) < count * bits, "bits")


@given(widths, counts)
def test_number_of_words_is_rounded_up(fast, bits, count):
    assert pack(fast, np.zeros((2, count), int), bits).shape == (2, -(-count * bits // 32))


def test_leading_axes_are_kept(fast):
    values = codes(6, 40, 3, 0).reshape(2, 3, 40)
    words = fast.pack(inputs.tensor(values, "uint8").transpose(0, 1), 3)  # rows in another order than memory
    assert words.shape == (3, 2, 4)
    exactly(fast.unpack(words, 3, 40), values.transpose(1, 0, 2), "codes")


@pytest.mark.parametrize(
    "message, call",
    [
        ("bits", lambda f: f.pack(torch.zeros(4, dtype=torch.uint8), 0)),
        ("bits", lambda f: f.unpack(torch.zeros(4, dtype=torch.int32), 9, 3)),
        ("codes must have dtype", lambda f: f.pack(torch.zeros(4), 4)),
        ("codes must have at least one axis", lambda f: f.pack(torch.zeros((), dtype=torch.uint8), 4)),
        ("codes must be a torch.Tensor", lambda f: f.pack([1, 2], 4)),
        ("codes must be at most 7", lambda f: f.pack(torch.full((4,), 8, dtype=torch.uint8), 3)),
        ("words must have dtype", lambda f: f.unpack(torch.zeros(1), 4, 8)),
        ("2 words", lambda f: f.unpack(torch.zeros(1, dtype=torch.int32), 3, 11)),
        ("2 words", lambda f: f.unpack(torch.zeros(3, dtype=torch.int32), 3, 11)),
        ("count", lambda f: f.unpack(torch.zeros(0, dtype=torch.int32), 3, -1)),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


@pytest.mark.parametrize("values, bits", [([8], 3), ([-1], 3), ([0], 0), ([0], 9)])
def test_the_spec_refuses_codes_and_widths_that_do_not_fit(values, bits):
    with pytest.raises(ValueError):
        bit_packing.pack(np.array(values), bits)


def test_operators_are_registered_and_compile(fast):
    values = inputs.tensor(codes(2, 40, 3, 0), "uint8")
    words = fast.pack(values, 3)
    torch.library.opcheck(torch.ops.twofold.bit_stream_pack, (values, 3))
    torch.library.opcheck(torch.ops.twofold.bit_stream_unpack, (words, 3, 40))
    there_and_back = torch.compile(lambda x: fast.unpack(fast.pack(x, 3), 3, 40), fullgraph=True, backend="aot_eager")
    exactly(there_and_back(values), values, "codes")
