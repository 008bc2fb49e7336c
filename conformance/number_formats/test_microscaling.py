"""Microscaling is exact: scales and elements have chapters of their own; here it is blocks, special values, laws and bytes."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import e8m0, microscaling, minifloat

FORMATS = ("e5m2", "e4m3fn", "e3m2", "e2m3", "e2m1", "int8")
MODES = ("floor", "even", "rceil", "ceil")
formats, modes = st.sampled_from(FORMATS), st.sampled_from(MODES)
columns = inputs.sizes(32, low=1)

GOLDEN = [  # by hand from the OCP specification: element, numbers, codes, scale
    ("e2m1", [0, 4, 8, 12, 16, 24, 32, 48, -0.0, -4, -8, -12, -16, -24, -32, -48], list(range(16)), 127 + 3),  # 48 = 1.5 · 2^5, emax 2
    ("e2m1", [7, 5, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25], [7, 6, 6, 4, 4, 2, 2, 0], 127),  # 7 saturates, then ties
    ("e4m3fn", [56, 1, -(2.0**-12), 2.0**-6], [0x7E, 0x50, 0x81, 0x20], 127 - 3),  # 56 = 448/8
    ("e4m3fn", [500, -465, 464, 449], [0x7E, 0xFE, 0x7E, 0x7E], 127),  # all saturate
    ("e5m2", [65535, -61440], [0x7B, 0xFB], 127),  # all saturate
    ("e5m2", [2.0**16, 1, -(2.0**-15)], [0x78, 0x38, 0x81], 127 + 1),
    ("e3m2", [28, 0.0625, -1], [0x1F, 0x01, 0x2C], 127),
    ("e2m3", [30, 0.5, -4], [0x1F, 0x01, 0x28], 127 + 2),
    ("int8", [127 / 16, -127 / 16, 1, 1 / 32], [127, -127, 16, 0], 127 + 2),  # 1/32 is half a 64th of 4, a tie
    ("int8", [1.996, -1.996, 1.5], [127, -127, 96], 127),  # saturates on both sides
]


class Arrays:
    """The implementation under test, fed and read in arrays."""

    def __init__(self, fast):
        self.fast = fast

    def quantize(self, x, *options):
        return tuple(inputs.array(each).astype(int) for each in self.fast.quantize(inputs.tensor(x, "float32"), *options))

    def dequantize(self, codes, scales, fmt):
        return inputs.array(
            self.fast.dequantize(inputs.tensor(codes, "int8" if fmt == "int8" else "uint8"), inputs.tensor(scales, "uint8"), fmt)
        )

    def pack(self, codes):
        return inputs.array(self.fast.pack(inputs.tensor(codes, "uint8")))

    def unpack(self, packed, count):
        return inputs.array(self.fast.unpack(inputs.tensor(packed, "uint8"), count))


def sides(fast):
    return microscaling, Arrays(fast)


def numbers(shape, seed, dtype="float32", spread=20):
    """Blocks of very different size; a row's second block is all zeros."""
    rng = np.random.default_rng(seed)
    block = np.arange(shape[-1]) // 32
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread, (*shape[:-1], shape[-1] // 32 + 1))[..., block]
    return inputs.rounded(np.where(block == 1, 0, x), dtype)


def each_scale(scales, count):
    return np.repeat(2.0 ** (scales - 127.0), 32, axis=-1)[..., :count]


@pytest.mark.parametrize("fmt, x, codes, scale", GOLDEN)
def test_golden_blocks(fast, fmt, x, codes, scale):
    for side in sides(fast):
        told = side.quantize(np.array(x), fmt)
        exactly(told[0], np.array(codes), "codes")
        exactly(told[1], np.array([scale]), "scale")


def test_golden_bytes(fast):
    codes, packed = np.arange(16).reshape(1, 16), np.array([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]])
    for side in sides(fast):
        exactly(side.pack(codes), packed, "bytes")
        exactly(side.unpack(packed, 16), codes, "codes")
        exactly(side.pack(np.array([1, 2, 15])), np.array([0x21, 0x0F]), "odd bytes")


def test_bytes_of_4_bits_are_what_torch_and_ml_dtypes_read(fast):
    codes = np.arange(16)
    packed = fast.pack(inputs.tensor(codes, "uint8"))
    assert packed.view(torch.float4_e2m1fn_x2).shape == (8,)  # torch has the dtype, and no cast from it yet
    wide = inputs.array(fast.unpack(packed, 16)).astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(float)
    exactly(fast.dequantize(fast.unpack(packed, 16), torch.tensor([127], dtype=torch.uint8, device=packed.device), "e2m1"), wide)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_code_at_every_scale_is_element_times_scale(fast, fmt):
    elements = np.arange(-128, 128) / 64 if fmt == "int8" else minifloat.table(fmt)
    scales = np.arange(256)
    codes = np.tile(np.arange(-128, 128) if fmt == "int8" else np.arange(elements.size), (256, 1))
    each = np.repeat(scales[:, None], -(-elements.size // 32), axis=1)
    expected = elements * e8m0.decode(scales)[:, None]
    exactly(microscaling.dequantize(codes, each, fmt), expected, "spec")
    with np.errstate(over="ignore"):
        expected = expected.astype(np.float32)
    exactly(Arrays(fast).dequantize(codes, each, fmt), expected, "numbers")


@given(formats, modes, columns, inputs.dtypes(), inputs.seeds, inputs.layouts)
@example("e2m1", "rceil", 65, "bfloat16", 0, "sliced")
def test_numbers_of_every_dtype_and_layout_have_the_definitions_codes(fast, fmt, mode, count, dtype, seed, layout):
    x = numbers((2, 3, count), seed, dtype, 12)
    x = x if np.all(np.isfinite(x)) else numbers((2, 3, count), seed, dtype, 3)
    codes, scales = fast.quantize(inputs.tensor(x, dtype, layout), fmt, mode)
    expected = microscaling.quantize(x, fmt, mode)
    exactly(codes, expected[0], "codes")
    exactly(scales, expected[1], "scales")
    exactly(fast.dequantize(codes, scales, fmt), microscaling.dequantize(*expected, fmt), "numbers")


@given(formats, modes, inputs.seeds)
def test_numbers_of_the_whole_range_have_the_definitions_codes(fast, fmt, mode, seed):
    rng = np.random.default_rng(seed)
    x = inputs.rounded(rng.uniform(-2, 2, (40, 32)) * 2.0 ** rng.integers(-149, 126, (40, 1)), "float32")
    codes, scales = Arrays(fast).quantize(x, fmt, mode)
    exactly(codes, microscaling.quantize(x, fmt, mode)[0], "codes")
    exactly(scales, microscaling.quantize(x, fmt, mode)[1], "scales")


@given(formats, modes, columns, inputs.seeds)
def test_error_is_half_a_step_or_what_saturation_takes(fast, fmt, mode, count, seed):
    x = numbers((3, count), seed)
    elements = np.arange(-127, 128) / 64 if fmt == "int8" else np.unique(minifloat.table(fmt)[np.isfinite(minifloat.table(fmt))])
    for side in sides(fast):
        codes, scales = side.quantize(x, fmt, mode)
        ratio, told = (each / each_scale(scales, count) for each in (x, microscaling.dequantize(codes, scales, fmt)))
        nearest = np.min(np.abs(ratio[..., None] - elements), axis=-1)
        exactly(np.abs(told - ratio), nearest, "distance")
        if mode in ("rceil", "ceil"):
            assert np.all(np.abs(ratio) <= elements[-1])


@given(formats, modes, columns, inputs.seeds)
def test_what_was_dequantized_stays(fast, fmt, mode, count, seed):
    for side in sides(fast):
        value = side.dequantize(*side.quantize(numbers((3, count), seed), fmt, mode), fmt)
        exactly(side.dequantize(*side.quantize(value, fmt, mode), fmt), value, "numbers")


@given(formats, modes, inputs.seeds, st.integers(-20, 20))
def test_powers_of_two_change_only_scales(fast, fmt, mode, seed, exponent):
    x = numbers((2, 32), seed)
    for side in sides(fast):
        codes, scales = side.quantize(x, fmt, mode)
        larger = side.quantize(x * 2.0**exponent, fmt, mode)
        exactly(larger[0], codes, "codes")
        exactly(larger[1], scales + exponent, "scales")


@given(formats, inputs.seeds)
def test_blocks_do_not_see_each_other(fast, fmt, seed):
    x = numbers((2, 100), seed)
    other = np.where(np.arange(100) // 32 == 2, 300 * x, x)
    for side in sides(fast):
        told = [np.delete(side.quantize(each, fmt)[0], np.s_[64:96], axis=1) for each in (x, other)]
        exactly(told[0], told[1], "codes of other blocks")
        exactly(*(np.delete(side.quantize(each, fmt)[1], 2, axis=1) for each in (x, other)), "scales of other blocks")


@pytest.mark.parametrize("fmt", FORMATS)
def test_blocks_of_zeros_are_zeros_of_the_same_signs(fast, fmt):
    x = np.where(np.arange(40) % 2, -0.0, 0.0)
    for side in sides(fast):
        codes, scales = side.quantize(x, fmt)
        exactly(scales, np.zeros(2), "scales")
        exactly(side.dequantize(codes, scales, fmt), np.zeros(40), "numbers")
        if fmt != "int8":
            exactly(np.signbit(side.dequantize(codes, scales, fmt)), np.signbit(x), "signs")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_takes_its_block_and_no_other(fast, fmt, broken):
    x = numbers((96,), 0)
    whole = microscaling.quantize(x, fmt)
    x[70] = broken
    for side in sides(fast):
        codes, scales = side.quantize(x, fmt)
        exactly(scales, np.array([*whole[1][:2], 255]), "scales")
        exactly(codes, np.where(np.arange(96) < 64, whole[0], 0), "codes")
        exactly(np.isnan(side.dequantize(codes, scales, fmt)), np.arange(96) >= 64, "NaN")


@given(inputs.sizes(8), inputs.seeds)
def test_unpack_undoes_pack(fast, count, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (3, count))
    for side in sides(fast):
        assert side.pack(codes).shape == (3, -(-count // 2))
        exactly(side.unpack(side.pack(codes), count), codes, "codes")


@pytest.mark.parametrize(
    "message, call",
    [
        ("fmt must be", lambda f: f.quantize(torch.ones(32), "e4m3")),
        ("mode must be", lambda f: f.quantize(torch.ones(32), "e2m1", "up")),
        ("x must have dtype", lambda f: f.quantize(torch.ones(32, dtype=torch.float64), "e2m1")),
        ("x must have at least one axis", lambda f: f.quantize(torch.ones(()), "e2m1")),
        ("scales must have shape", lambda f: f.dequantize(*(torch.ones(n, dtype=torch.uint8) for n in (33, 1)), "e2m1")),
        ("codes must have dtype int8", lambda f: f.dequantize(*(torch.ones(1, dtype=torch.uint8) for _ in "12"), "int8")),
        ("codes must be at most 15", lambda f: f.pack(torch.full((2,), 16, dtype=torch.uint8))),
        ("packed must have 3 bytes", lambda f: f.unpack(torch.ones(2, dtype=torch.uint8), 5)),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_empty_tensors_and_one_graph(fast):
    codes, scales = fast.quantize(torch.ones(2, 0), "e2m1")
    assert codes.shape == scales.shape == (2, 0)
    there_and_back = lambda x: fast.dequantize(*fast.quantize(x, "e2m1", "even"), "e2m1")
    x = inputs.tensor(numbers((2, 40), 0), "float32")
    exactly(torch.compile(there_and_back, fullgraph=True, backend="aot_eager")(x), there_and_back(x), "numbers")
