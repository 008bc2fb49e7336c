"""Minifloats are exact: every code, every midpoint between two codes and its neighbors, every special value, in every format."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.fast.attention import fp8_kv
from twofold.spec.number_formats import minifloat

FORMATS = tuple(minifloat.FORMATS)
PEERS = {
    "fp16": np.float16, "bf16": ml_dtypes.bfloat16, "e5m2": ml_dtypes.float8_e5m2, "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn, "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip
TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "e5m2": torch.float8_e5m2, "e4m3fn": torch.float8_e4m3fn}
SPECIAL = FORMATS[:4]  # the formats that have NaN

GOLDEN = {  # by hand, from the tables of the OCP documents and of IEEE 754: code, value
    "fp16": [(0x0001, 2.0**-24), (0x0400, 2.0**-14), (0x3C00, 1.0), (0x3555, 1365 / 4096), (0x7BFF, 65504.0), (0xFC00, -np.inf)],
    "bf16": [(0x0001, 2.0**-133), (0x0080, 2.0**-126), (0x3F80, 1.0), (0x4049, 3.140625), (0x7F7F, 2.0**128 - 2.0**120)],
    "e5m2": [(0x01, 2.0**-16), (0x03, 3 * 2.0**-16), (0x04, 2.0**-14), (0x3C, 1.0), (0x7B, 57344.0), (0x7C, np.inf), (0x7D, np.nan)],
    "e4m3fn": [(0x01, 2.0**-9), (0x07, 7 * 2.0**-9), (0x08, 2.0**-6), (0x38, 1.0), (0x78, 256.0), (0xFE, -448.0), (0xFF, np.nan)],
    "e3m2": [(0x01, 0.0625), (0x03, 0.1875), (0x04, 0.25), (0x0C, 1.0), (0x1F, 28.0), (0x3F, -28.0)],
    "e2m3": [(0x01, 0.125), (0x07, 0.875), (0x08, 1.0), (0x0F, 1.875), (0x1F, 7.5), (0x3F, -7.5)],
    "e2m1": list(enumerate([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])),
}


class Arrays:
    """The implementation under test, fed and read in arrays; `dtype` is that of its input."""

    def __init__(self, fast, dtype="float64"):
        self.fast, self.dtype = fast, dtype

    def decode(self, code, fmt):
        return inputs.array(self.fast.decode(inputs.tensor(code, "uint16" if fmt in FORMATS[:2] else "uint8"), fmt))

    def encode(self, x, *options):
        return inputs.array(self.fast.encode(inputs.tensor(x, self.dtype), *options)).astype(np.int64)

    def round(self, x, *options):
        return inputs.array(self.fast.round(inputs.tensor(x, self.dtype), *options))


def sides(fast):
    return minifloat, Arrays(fast), Arrays(fast, "float32")


def sign(fmt):
    return 1 << minifloat.FORMATS[fmt].exponent + minifloat.FORMATS[fmt].mantissa


def finite(fmt):
    """The codes without sign, in order, and their values by the peer's own table."""
    codes = np.arange(minifloat.FORMATS[fmt].largest + 1)
    return codes, peer_table(fmt)[codes]


def peer_table(fmt):
    codes = np.arange(2 * sign(fmt), dtype=np.uint16 if fmt in FORMATS[:2] else np.uint8)
    with np.errstate(invalid="ignore"):  # signaling NaN
        return codes.view(PEERS[fmt]).astype(float)


def same_sign(x, y):
    exactly(np.signbit(x[~np.isnan(x)]), np.signbit(y[~np.isnan(y)]), "sign")


@pytest.mark.parametrize("fmt", FORMATS)
def test_golden_codes(fast, fmt):
    codes, values = (np.array(column) for column in zip(*GOLDEN[fmt]))
    for side in sides(fast):
        exactly(side.decode(codes, fmt), values, "values")
        same_sign(side.decode(codes, fmt), values)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_code_stands_for_what_others_say(fast, fmt):
    codes, values = np.arange(2 * sign(fmt)), peer_table(fmt)
    for side in sides(fast)[:2]:
        exactly(side.decode(codes, fmt), values, "values")
        same_sign(side.decode(codes, fmt), values)
    exactly(minifloat.table(fmt), values, "table")
    exactly(fast.table(fmt), values, "table")
    if fmt in TORCH:
        exactly(torch.from_numpy(codes).to(torch.uint16 if fmt in FORMATS[:2] else torch.uint8).view(TORCH[fmt]).float(), values, "torch")


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_number_has_its_own_code(fast, fmt):
    codes, values = np.arange(2 * sign(fmt)), peer_table(fmt)
    number = ~np.isnan(values)
    for side in sides(fast):
        if fmt in SPECIAL:
            exactly(side.encode(values[number], fmt, "special"), codes[number], "codes")
        held = np.isfinite(values)
        exactly(side.encode(values[held], fmt), codes[held], "codes")


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_midpoint_goes_to_the_even_code_and_its_neighbors_to_the_near_one(fast, fmt):
    codes, values = finite(fmt)
    middle = (values[:-1] + values[1:]) / 2
    even = np.where(codes[:-1] % 2 == 0, codes[:-1], codes[1:])
    for side in sides(fast):
        kind = np.float32 if getattr(side, "dtype", "") == "float32" else np.float64
        low, high = (np.nextafter(kind(middle), kind(to)).astype(float) for to in (0, np.inf))
        for direction, s in ((1, 0), (-1, sign(fmt))):
            exactly(side.encode(direction * middle, fmt), even + s, "midpoints")
            exactly(side.encode(direction * low, fmt), codes[:-1] + s, "just below")
            exactly(side.encode(direction * high, fmt), codes[1:] + s, "just above")


@pytest.mark.parametrize("fmt", FORMATS)
def test_overflow_begins_half_a_step_beyond_the_largest(fast, fmt):
    f, values = minifloat.FORMATS[fmt], finite(fmt)[1]
    edge = values[-1] + (values[-1] - values[-2]) / 2
    beyond = f.nan if f.infinity is None else f.infinity
    for side in sides(fast):
        kind = np.float32 if getattr(side, "dtype", "") == "float32" else np.float64
        just_below, just_above = (float(np.nextafter(kind(edge), kind(to))) for to in (0, np.inf))
        x = np.array([just_below, edge, just_above, 1e38 if fmt != "bf16" else 3.4e38, np.inf])
        for direction, s in ((1, 0), (-1, sign(fmt))):
            exactly(side.encode(direction * x, fmt), np.full(5, f.largest) + s, "saturated")
            if fmt in SPECIAL:  # at the edge the even code is the larger one, except where the largest is even
                at_edge = f.largest if f.largest % 2 == 0 else beyond
                exactly(side.encode(direction * x, fmt, "special"), np.array([f.largest, at_edge] + [beyond] * 3) + s, "special")


def test_where_overflow_begins():
    exactly(minifloat.encode(np.array([464, np.nextafter(464, 465)]), "e4m3fn", "special"), np.array([0x7E, 0x7F]))
    exactly(minifloat.encode(np.array([np.nextafter(61440, 0), 61440]), "e5m2", "special"), np.array([0x7B, 0x7C]))
    exactly(minifloat.encode(np.array([np.nextafter(65520, 0), 65520]), "fp16", "special"), np.array([0x7BFF, 0x7C00]))


@pytest.mark.parametrize("fmt", SPECIAL)
def test_nan_stays_nan_in_both_modes_and_keeps_its_sign(fast, fmt):
    x = np.array([np.nan, np.copysign(np.nan, -1)])
    expected = minifloat.FORMATS[fmt].nan + np.array([0, sign(fmt)])
    for side in sides(fast):
        for overflow in ("saturate", "special"):
            exactly(side.encode(x, fmt, overflow), expected, "codes")
            assert np.all(np.isnan(side.round(x, fmt, overflow)))


@pytest.mark.parametrize("fmt", FORMATS)
def test_zero_keeps_its_sign(fast, fmt):
    tiny = np.array([0.0, 2.0**-140, 2.0**-149])  # numbers that float32 holds as subnormal ones
    for side in sides(fast):
        exactly(side.encode(tiny, fmt), np.zeros(3, int), "codes")
        exactly(side.encode(-tiny, fmt), np.full(3, sign(fmt)), "codes")
        assert np.all(np.signbit(side.round(-tiny, fmt)))


@given(st.sampled_from(FORMATS), inputs.seeds)
def test_codes_are_monotone_and_odd(fast, fmt, seed):
    x = np.sort(np.abs(any_numbers(seed, 500)))
    for side in sides(fast):
        assert np.all(np.diff(side.encode(x, fmt)) >= 0)
        exactly(side.encode(-x, fmt), side.encode(x, fmt) + sign(fmt), "codes of negated numbers")


def any_numbers(seed, count):
    """Float32 numbers of every exponent alike, finite."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    return np.where(bits >> 23 & 0xFF == 0xFF, 1, bits.view(np.float32)).astype(float)


@given(st.sampled_from(FORMATS), st.sampled_from(["float64", "float32", "bfloat16", "float16"]), inputs.seeds, inputs.layouts)
@example("e4m3fn", "bfloat16", 0, "transposed")
def test_all_numbers_of_all_dtypes_have_the_definitions_code(fast, fmt, dtype, seed, layout):
    around = minifloat.FORMATS[fmt]
    x = np.random.default_rng(seed).standard_normal(600) * 2.0 ** (np.arange(600) % 60 - around.bias - around.mantissa - 2)
    x = inputs.rounded(np.concatenate([x, any_numbers(seed, 600)]).reshape(3, 4, 100), dtype)
    for overflow in ("saturate", "special")[: 1 + (fmt in SPECIAL)]:
        exactly(fast.encode(inputs.tensor(x, dtype, layout), fmt, overflow), minifloat.encode(x, fmt, overflow), "codes")
        exactly(fast.round(inputs.tensor(x, dtype, layout), fmt, overflow), minifloat.round(x, fmt, overflow), "numbers")


@given(st.sampled_from(FORMATS), inputs.seeds)
def test_others_round_alike(fmt, seed):
    """ml_dtypes everywhere, overflow being special where it can be; torch where nothing overflows: there its versions differ."""
    x = any_numbers(seed, 3000)
    x = np.concatenate([x, finite(fmt)[1][-1] * np.random.default_rng(seed).uniform(-1.2, 1.2, 500)]).astype(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        theirs = x.astype(PEERS[fmt]).astype(float)
    exactly(theirs, minifloat.round(x, fmt, "special" if fmt in SPECIAL else "saturate"), "ml_dtypes")
    if fmt in TORCH:
        x = x[np.abs(x) <= finite(fmt)[1][-1]]
        exactly(torch.from_numpy(x).to(TORCH[fmt]), minifloat.round(x, fmt), "torch")


def test_rounding_twice_is_not_rounding_once(fast):
    x = 1.0625 + 2.0**-10  # just above the middle of 1 and 1.125; bfloat16 forgets by how much
    for side in sides(fast):
        assert side.round(np.array([x]), "e4m3fn")[0] == 1.125
        assert side.round(side.round(np.array([x]), "bf16"), "e4m3fn")[0] == 1.0
    exactly(Arrays(fast).encode(np.array([1.0625 + 2.0**-40]), "e4m3fn"), np.array([0x39]), "64 bits are not rounded to 32 first")


def test_the_8_bit_cache_stores_these_codes(fast):
    x = inputs.tensor(any_numbers(0, 4000).reshape(1, 10, 4, 100), "float32")
    codes, _ = fp8_kv.quantize(x, scale=torch.ones(1, 1, 4, device=x.device))
    exactly(codes.view(torch.uint8), fast.encode(x, "e4m3fn"), "codes")


def test_shapes_and_empty_tensors(fast):
    for x in (torch.ones(shape) for shape in [(), (0,), (2, 0, 3), (1, 5)]):
        assert fast.encode(x, "e2m1").shape == x.shape and fast.encode(x, "bf16").dtype == torch.uint16
        exactly(fast.round(x, "e3m2"), x, "numbers")


@pytest.mark.parametrize(
    "message, call",
    [
        ("fmt must be one of", lambda f: f.encode(torch.ones(2), "e4m3")),
        ("x must have dtype", lambda f: f.encode(torch.ones(2, dtype=torch.int32), "e2m1")),
        ("code must have dtype uint8", lambda f: f.decode(torch.ones(2), "e2m1")),
        ("code must have dtype uint16", lambda f: f.decode(torch.ones(2, dtype=torch.uint8), "bf16")),
        ("overflow must be", lambda f: f.encode(torch.ones(2), "e5m2", "wrap")),
        ("overflow must be 'saturate' for e2m1", lambda f: f.encode(torch.ones(2), "e2m1", "special")),
        ("x must not hold NaN", lambda f: f.encode(torch.tensor([float("nan")]), "e3m2")),
    ],
)
def test_bad_arguments_are_told(fast, message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_the_spec_refuses_what_it_cannot_hold():
    for call, *arguments in [
        (minifloat.encode, np.array([np.nan]), "e2m1"), (minifloat.encode, np.ones(1), "e2m1", "special"),
        (minifloat.encode, np.ones(1), "e5m2", "wrap"), (minifloat.table, "fp32"),
        (minifloat.decode, np.array([16]), "e2m1"), (minifloat.decode, np.array([-1]), "e5m2"),
    ]:  # fmt: skip
        with pytest.raises(ValueError):
            call(*arguments)


@pytest.mark.parametrize("fmt", FORMATS)
def test_compiles_in_one_graph(fast, fmt):
    x = torch.linspace(-9, 9, 300)
    compiled = torch.compile(lambda x: fast.round(x, fmt), fullgraph=True, backend="aot_eager")
    exactly(compiled(x), fast.round(x, fmt), "numbers")
