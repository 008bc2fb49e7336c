"""An 8-bit cache: which numbers there are and which scale belongs to which token is exact, how far a number moves is bounded."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, flash_v3, fp8_kv

CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()  # what every byte stands for
NUMBERS = np.unique(CODES[np.isfinite(CODES)])  # 253 of them, 0 once
TOP = {"e4m3": 448, "int8": 127}
kinds = st.sampled_from(["e4m3", "int8"])
groups = st.sampled_from([None, 1, 3, 4])


def under_one(fast, x):
    """The codes of numbers whose scale is 1, by spec and by fast; the numbers must be those of float32."""
    x = np.asarray(x, np.float32).astype(float)
    one = torch.ones(1, 1, 1, device=inputs.target.device())
    codes = fp8_kv.quantize(x[:, None], scale=np.array([[1.0]]))[0][:, 0]
    return codes, inputs.array(fast.quantize(inputs.tensor(x[None, :, None, None], "float32"), scale=one)[0])[0, :, 0, 0]


def test_every_number_every_midpoint_and_their_neighbors(fast):
    """Against the bytes of the format: a number is itself, a midpoint goes to the even mantissa, a hair beside it to the nearer number."""
    low, high = NUMBERS[:-1], NUMBERS[1:]
    middle = ((low + high) / 2).astype(np.float32)
    even = torch.from_numpy(np.abs(low)).to(torch.float8_e4m3fn).view(torch.uint8).numpy() % 2 == 0
    below, above = (np.nextafter(middle, np.float32(side)) for side in (-np.inf, np.inf))
    for x, expected in ((NUMBERS, NUMBERS), (middle, np.where(even, low, high)), (below, low), (above, high)):
        for codes in under_one(fast, x):
            exactly(codes, expected)
    for codes in under_one(fast, [448.0, 449.0, 464.0, 465.0, 1e30, np.inf, -1e30, -np.inf, np.nan]):
        exactly(codes, np.array([448.0] * 6 + [-448.0] * 2 + [np.nan]), "beyond")


def case(seed, number, group, n=11, heads=2, width=5):
    """Numbers (2, n, heads, width) that the format holds under the powers of two that their groups' maxima lead to, and those powers."""
    rng, each = np.random.default_rng(seed), n if group is None else group
    shape = (2, -(-n // each), heads)
    power = 2.0 ** rng.integers(-6, 7, shape)
    held = NUMBERS if number == "e4m3" else np.arange(-127.0, 128)
    codes = rng.choice(held, (2, n, heads, width))
    codes[:, ::each, :, 0] = rng.choice([-1, 1], (2, shape[1], heads)) * TOP[number]  # the largest of its group
    return codes, power, codes * np.repeat(power, each, 1)[:, :n, :, None]


@given(inputs.seeds, kinds, groups, inputs.dtypes(), inputs.layouts)
def test_what_the_format_holds_stays(fast, seed, number, group, dtype, layout):
    codes, power, x = case(seed, number, group)
    actual, scale = fast.quantize(inputs.tensor(x, dtype, layout), group, number)
    exactly(scale, power, "scales")
    exactly(actual, codes, "codes")
    for b, h in np.ndindex(2, 2):
        own, own_scale = fp8_kv.quantize(x[b, :, h], group, number)
        exactly(own, codes[b, :, h], "codes of the spec")
        exactly(own_scale, power[b, :, h, None], "scales of the spec")


@given(inputs.seeds, kinds, st.integers(-3, 3), inputs.regimes)
def test_no_number_moves_further_than_stated(seed, number, exponent, regime):
    """2^-4 of itself where e4m3 is normal, 2^-10 of the scale below, half a scale for integers. Powers of two as scales divide exactly."""
    (x,) = inputs.values(regime, [(9, 7)], seed, "float32")
    s = 2.0**exponent
    x = np.clip(x, -TOP[number] * s, TOP[number] * s)
    codes, _ = fp8_kv.quantize(x, None, number, scale=np.array([[s]]))
    limit = np.maximum(2.0**-4 * np.abs(x), s * 2.0**-10) if number == "e4m3" else np.full_like(x, s / 2)
    assert np.all(np.abs(x - s * codes) <= limit)


@given(inputs.seeds, kinds, groups, inputs.regimes, inputs.dtypes())
@example(0, "e4m3", 3, "normal", "bfloat16")
def test_codes_of_any_numbers_are_the_nearest(fast, seed, number, group, regime, dtype):
    """Under the scale as stored, to the rounding of one division; the scale is the definition's to the same."""
    (x,) = inputs.values(regime, [(2, 10, 3, 6)], seed, dtype)
    codes, scale = map(inputs.array, fast.quantize(inputs.tensor(x, dtype), group, number))
    nearest = flash_v3.e4m3 if number == "e4m3" else (lambda r: np.clip(np.rint(r), -127, 127))
    each = 10 if group is None else group
    ratio = x / np.repeat(scale, each, 1)[:, :10, :, None]
    slack = 2.0**-23
    assert np.all((codes == nearest(ratio * (1 - slack))) | (codes == nearest(ratio * (1 + slack))))
    for start in range(0, 10, each):
        part = x[:, start : start + each]
        expected = bounded(lambda y: np.max(np.abs(y)) / TOP[number], part[0, :, 0].reshape(-1), precision=Precision("float32"))
        if expected.value:
            agree(scale[0, start // each, 0], expected, "scale")
        else:
            exactly(scale[0, start // each, 0], 1.0, "scale of zeros")


@given(kinds, st.sampled_from([2.0**-8, 1.0]), inputs.dtypes("float32", "bfloat16"))
def test_overflow_saturates(fast, number, s, dtype):
    """A scale that was calibrated too small: the largest code, in spec and fast; infinity too; attention stays finite."""
    x = np.array([[449.0, -1e30, 3e38, 0.0]]) * s
    calibrated = torch.full((1, 1, 1), s, device=inputs.target.device())
    codes, given_ = fast.quantize(inputs.tensor(x[:, None, None], dtype), None, number, scale=calibrated)
    exactly(codes[0, 0, 0], TOP[number] * np.array([1.0, -1.0, 1.0, 0.0]), "codes")
    exactly(fp8_kv.quantize(x, None, number, scale=np.array([[s]]))[0], inputs.array(codes[0, 0]), "codes of the spec")
    o, lse = fast.attention(torch.ones(1, 1, 1, 4, device=codes.device), codes, codes, given_, given_)
    assert torch.isfinite(o).all() and torch.isfinite(lse).all()


def test_damage_stays_in_its_group(fast):
    x = np.ones((1, 6, 2, 4))
    x[0, 2, 1, 0], x[0, 5, 0, 3] = np.nan, np.inf
    for number in TOP:
        codes, scale = fast.quantize(inputs.tensor(x, "float32"), 2, number)
        hurt = np.isnan(inputs.array(scale))
        exactly(hurt, np.array([[[False, False], [False, True], [True, False]]]), "damaged groups")
        whole = ~np.repeat(hurt, 2, 1)
        exactly(inputs.array(codes)[whole], np.full((whole.sum(), 4), float(TOP[number])), "other codes")


def test_the_definition_is_dense_attention_on_what_was_kept():
    q, k, v = inputs.values("normal", [(3, 8), (7, 8), (7, 4)], 0)
    for number, group in (("e4m3", 2), ("int8", None)):
        (a, s), (b, t) = (fp8_kv.quantize(x, group, number) for x in (k, v))
        kept = dense.attention(q, *(codes * np.repeat(scale, group or 7, 0)[:7] for codes, scale in ((a, s), (b, t))))
        for actual, expected in zip(fp8_kv.attention(q, a, b, s, t, group=group), kept, strict=True):
            exactly(actual, expected)


@pytest.mark.parametrize("number", ["e4m3", "int8"])
def test_no_tokens(fast, number):
    x = torch.ones(2, 0, 1, 4, device=inputs.target.device())
    for group in (None, 4):
        codes, scale = fast.quantize(x, group, number)
        assert codes.shape == x.shape and scale.shape == (2, 0, 1)
        o, lse = fast.attention(torch.ones(2, 1, 1, 4, device=x.device), codes, codes, scale, scale, group=group)
        exactly(o, np.zeros((2, 1, 1, 4)))
        exactly(lse, np.full((2, 1, 1), -np.inf))
        exactly(fp8_kv.quantize(np.ones((0, 4)), group, number)[1], np.ones((0, 1)), "scales of the spec")
