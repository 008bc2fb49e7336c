"""NF4 is exact: sixteen numbers, fifteen thresholds with the floats beside them, and the bytes."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.number_formats import normal_float

THRESHOLDS = np.array([  # the constants of the kernel that bitsandbytes released
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984, -0.13791173323988914,
    -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
    0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
], np.float32)  # fmt: skip
GOLDEN = [  # numbers under a maximum of 2, codes and bytes by hand from the table and the order of halves
    ([-2.0, 2.0, 0.0, 0.16], [0, 15, 7, 8], [0x0F, 0x78]),
    ([1.0, -1.0, 2.0], [12, 2, 15], [0xC2, 0xF7]),  # 0.5 lies nearer to 0.44 than to 0.56; the last half byte stands for 0
    ([-0.2, 0.2, -0.1, 0.1, 2.0], [6, 8, 6, 8, 15], [0x68, 0x68, 0xF7]),
]
counts = inputs.sizes(64, low=1)


class Arrays:
    """The implementation under test, fed and read in arrays."""

    def __init__(self, fast):
        self.fast = fast

    def encode(self, x, absmax, *block):
        return inputs.array(self.fast.encode(*(inputs.tensor(each, "float32") for each in (x, absmax)), *block)).astype(int)

    def decode(self, codes, absmax, *block):
        return inputs.array(self.fast.decode(inputs.tensor(codes, "uint8"), inputs.tensor(absmax, "float32"), *block))

    def block_maximum(self, x, *block):
        return inputs.array(self.fast.block_maximum(inputs.tensor(x, "float32"), *block))

    def table(self):
        return inputs.array(self.fast.table())

    def pack(self, codes):
        return inputs.array(self.fast.pack(inputs.tensor(codes, "uint8")))

    def unpack(self, packed, count):
        return inputs.array(self.fast.unpack(inputs.tensor(packed, "uint8"), count))


def sides(fast):
    return normal_float, Arrays(fast)


def numbers(shape, seed, dtype="float32"):
    """Blocks of very different size, one of them all zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).ravel() * 2.0 ** (np.arange(np.prod(shape)) // 64 % 9 * 3 - 12)
    x[64:128] = 0
    return inputs.rounded(x.reshape(shape), dtype)


def test_table_is_the_papers_construction_in_float32(fast):
    quantile = NormalDist().inv_cdf
    top = 0.9677083
    positive = [quantile(p) for p in np.linspace(top, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(top, 0.5, 8)[:-1]]
    expected = np.array(sorted([*positive, *negative, 0.0])) / max(positive)
    for side in sides(fast):
        told = side.table().astype(float)
        assert np.max(np.abs(told - expected)) < 1.2e-7  # the paper gives its offset with seven digits
        assert np.all(np.diff(told) > 0) and (told[0], told[7], told[15]) == (-1, 0, 1)
        exactly(told, told.astype(np.float32), "float32")
    exactly(Arrays(fast).table(), normal_float.table(), "table")


@pytest.mark.parametrize("x, codes, packed", GOLDEN)
def test_golden_codes_and_bytes(fast, x, codes, packed):
    for side in sides(fast):
        exactly(side.encode(np.array(x), np.array([2.0])), np.array(codes), "codes")
        exactly(side.pack(np.array(codes)), np.array(packed), "bytes")
        exactly(side.unpack(np.array(packed), len(codes)), np.array(codes), "codes")


def test_thresholds_are_the_released_ones_and_take_the_lower_code(fast):
    one = np.ones(1)
    for side in sides(fast):
        exactly(side.encode(THRESHOLDS.astype(float), one), np.arange(15), "at the thresholds")
        exactly(side.encode(np.nextafter(THRESHOLDS, np.float32(-2)).astype(float), one), np.arange(15), "just below")
        exactly(side.encode(np.nextafter(THRESHOLDS, np.float32(2)).astype(float), one), np.arange(1, 16), "just above")


def test_codes_are_the_nearest_but_for_six_numbers(fast):
    entries = normal_float.table().astype(float)
    near = [np.nextafter(THRESHOLDS, np.float32(to)).astype(float) for to in (-2, 2)]
    x = np.concatenate([THRESHOLDS.astype(float), *near, entries, np.linspace(-1, 1, 1001).astype(np.float32).astype(float)])
    distance = np.abs(x[:, None] - entries)
    for side in sides(fast):
        code = side.encode(x, np.ones(-(-x.size // 64)))
        farther = np.take_along_axis(distance, code[:, None], 1)[:, 0] > distance.min(1)
        assert farther.sum() == 6 and np.all(np.isin(x[farther], THRESHOLDS.astype(float)))


def test_a_number_is_multiplied_by_the_reciprocal(fast):
    x = np.array([-1.83189857006073, -1.019038200378418, -0.41373518109321594, 0.11937045305967331, 1.1679376363754272, 1.9283608198165894])
    for side in sides(fast):  # in float32, x / 3 lies on the other side of a threshold
        exactly(side.encode(x, np.array([3.0])), np.array([1, 3, 5, 8, 12, 14]), "codes")


@given(st.integers(-120, 120))
def test_every_entry_has_its_own_code_at_every_scale(fast, exponent):
    absmax = np.array([2.0**exponent])
    for side in sides(fast):
        exactly(side.encode(normal_float.table() * absmax, absmax), np.arange(16), "codes")
        exactly(side.decode(np.arange(16), absmax), normal_float.table() * absmax, "numbers")


@given(counts, st.sampled_from([64, 128, 5]), inputs.seeds)
def test_error_is_half_a_gap_and_the_largest_number_comes_back(fast, count, block, seed):
    x = numbers((3 * count,), seed)
    entries = normal_float.table().astype(float)
    for side in sides(fast):
        absmax = side.block_maximum(x, block)
        exactly(absmax, np.array([np.abs(x[start : start + block]).max() for start in range(0, x.size, block)]), "maxima")
        codes, each = side.encode(x, absmax, block), np.repeat(absmax, block)[: x.size]
        told = side.decode(codes, absmax, block)
        largest = np.abs(x) == each
        exactly(told[largest], x[largest], "largest numbers")
        half = np.maximum(np.diff(entries, prepend=-1.0)[codes], np.diff(entries, append=1.0)[codes]) / 2
        assert np.all(np.abs(told - x) <= (half + 2.0**-22) * each)


@given(inputs.sizes(64), st.sampled_from([64, 16]), inputs.dtypes(), inputs.seeds, inputs.layouts)
@example(65, 64, "float16", 0, "sliced")
def test_numbers_of_every_dtype_and_layout_have_the_definitions_codes(fast, columns, block, dtype, seed, layout):
    x = numbers((3, columns), seed, dtype)
    absmax = normal_float.block_maximum(x, block)
    tensor = inputs.tensor(x, dtype, layout)
    exactly(fast.block_maximum(tensor, block), absmax, "maxima")
    codes = fast.encode(tensor, inputs.tensor(absmax, "float32"), block)
    exactly(codes, normal_float.encode(x, absmax, block), "codes")
    told = normal_float.decode(inputs.array(codes), absmax, block)
    exactly(fast.decode(codes, inputs.tensor(absmax, "float32"), block), np.float32(told), "numbers")
    half = fast.decode(codes, inputs.tensor(absmax, "float32"), block, dtype=torch.bfloat16)
    exactly(half, inputs.rounded(np.float32(told), "bfloat16"), "numbers in 16 bits")


@given(inputs.seeds, st.integers(-20, 20))
def test_codes_are_monotone_and_powers_of_two_change_only_maxima(fast, seed, exponent):
    x = np.sort(numbers((64,), seed))
    for side in sides(fast):
        absmax = side.block_maximum(x)
        codes = side.encode(x, absmax)
        assert np.all(np.diff(codes) >= 0)
        exactly(side.encode(x * 2.0**exponent, absmax * 2.0**exponent), codes, "codes")


@given(inputs.seeds)
def test_blocks_do_not_see_each_other(fast, seed):
    x = numbers((200,), seed)
    other = np.where(np.arange(200) // 64 == 2, -5 * x, x)
    kept = np.arange(200) // 64 != 2
    for side in sides(fast):
        codes, others = (side.encode(each, side.block_maximum(each)) for each in (x, other))
        exactly(others[kept], codes[kept], "codes of other blocks")


def test_blocks_of_zeros_are_codes_of_zero(fast):
    for side in sides(fast):
        codes = side.encode(np.zeros(70), side.block_maximum(np.zeros(70)))
        exactly(codes, np.full(70, 7), "codes")
        exactly(side.decode(codes, np.zeros(2)), np.zeros(70), "numbers")


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_block(fast, broken):
    x = numbers((192,), 1)
    x[100] = broken
    absmax = fast.block_maximum(inputs.tensor(x, "float32"))
    told = inputs.array(fast.decode(fast.encode(inputs.tensor(x, "float32"), absmax), absmax))
    exactly(np.isnan(told), np.arange(192) // 64 == 1, "NaN")
    for call in (lambda: normal_float.block_maximum(x), lambda: normal_float.encode(x, np.ones(3))):
        with pytest.raises(ValueError, match="finite"):
            call()


@given(inputs.sizes(8), inputs.seeds)
def test_unpack_undoes_pack(fast, count, seed):
    codes = np.random.default_rng(seed).integers(0, 16, count)
    for side in sides(fast):
        assert side.pack(codes).shape == (-(-count // 2),)
        exactly(side.unpack(side.pack(codes), count), codes, "codes")
    exactly(side.pack(codes), normal_float.pack(codes), "bytes")


@pytest.mark.parametrize(
    "message, call",
    [
        ("absmax must have shape", lambda f: f.encode(torch.ones(65), torch.ones(1))),
        ("absmax must have dtype", lambda f: f.encode(torch.ones(4), torch.ones(1, dtype=torch.float64))),
        ("x must have dtype", lambda f: f.encode(torch.ones(4, dtype=torch.int32), torch.ones(1))),
        ("block must be at least 1", lambda f: f.block_maximum(torch.ones(4), 0)),
        ("dtype must be", lambda f: f.decode(torch.ones(4, dtype=torch.uint8), torch.ones(1), dtype=torch.int8)),
        ("codes must be at most 15", lambda f: f.pack(torch.full((2,), 16, dtype=torch.uint8))),
        ("packed must have shape", lambda f: f.unpack(torch.ones(2, dtype=torch.uint8), 5)),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_does_not_fit():
    for call in (
        lambda: normal_float.pack(np.array([16])),
        lambda: normal_float.unpack(np.zeros(2, np.uint8), 5),
        lambda: normal_float.encode(np.ones(65), np.ones(1)),
    ):
        with pytest.raises(ValueError):
            call()


def test_compiles_in_one_graph(fast):
    def there_and_back(x):
        absmax = fast.block_maximum(x)
        return fast.decode(fast.unpack(fast.pack(fast.encode(x, absmax)), 100), absmax)

    x = inputs.tensor(numbers((100,), 0), "float32")
    exactly(torch.compile(there_and_back, fullgraph=True, backend="aot_eager")(x), there_and_back(x), "numbers")
