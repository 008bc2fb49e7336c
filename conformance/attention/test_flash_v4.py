"""FlashAttention-4's numerics: when a row is rescaled does not matter, and how an exponential is made is a matter of its key alone."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import problems, visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.spec.attention import dense, flash_v4

EPSILON = 8.8e-5  # relative error of the cubic, as its authors and the chapter state it
STRETCH = 128  # keys whose exponentials are made in the same way
exact64 = Precision("float64", "float64")


class Threshold:
    """A tau for the field, where a difference of logits is a residue: this part of all residues lies below it."""

    def __init__(self, part):
        self.part = part

    def __mul__(self, _):
        return field.Log(int(self.part * (field.P - 2)) + 1)


@given(inputs.seeds, st.integers(0, 5), st.integers(0, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
@example(0, 4, 9, 2, 1, 0.5)
def test_any_reference_gives_the_same_output(seed, n_q, n_k, block_q, block_k, part):
    """Without rounding: a row may keep its reference or take the new maximum, tile by tile as it pleases."""
    q, k, v = field.problem(seed, n_q, n_k, 2)
    mask = np.random.default_rng(seed).random((n_q, n_k)) < 0.6
    options = {"mask": mask, "scale": 1}
    lazy = flash_v4.lazy_rescale(q, k, v, block_q=block_q, block_k=block_k, tau=Threshold(part), **options)
    field.exactly(lazy, dense.attention(q, k, v, **options))


@given(problems(sink=False, softcap=False), st.sampled_from([0, 1, 8, 64]), st.sampled_from([1, 5, 16]))
def test_every_tau_is_dense_attention(problem, tau, block):
    q, k, v = problem.q[0, :, 0], problem.k[0, :, 0], problem.v[0, :, 0]
    expected = bounded(dense.attention, q, k, v, precision=exact64, mask=problem.mask)
    o, lse = flash_v4.lazy_rescale(q, k, v, block_q=block, block_k=block, tau=tau, mask=problem.mask)
    agree(o, expected[0], "output")
    agree(lse, expected[1], "log-sum-exp")


def test_the_cubic_is_as_good_as_stated_and_no_cubic_is_better():
    """On all 2^23 mantissas. Where an error swings to both sides four times, no other cubic with p(0) = 1 stays below the least swing."""
    f = np.arange(2**23) / 2**23
    error = flash_v4.exp2(f) / 2**f - 1
    assert np.max(np.abs(error)) <= EPSILON
    turns = np.flatnonzero(np.diff(np.sign(np.diff(error[:: 2**10])))) * 2**10 + 2**10
    swings = np.append(error[turns], error[-1])
    assert len(swings) == 4 and np.all(swings[1:] * swings[:-1] < 0)
    assert np.min(np.abs(swings)) >= 0.96 * np.max(np.abs(error))


def test_higher_degrees_are_better_and_all_rise_from_one_integer_to_the_next():
    f = np.arange(-(2**16), 2**16) / 2**15
    errors = []
    for degree in range(1, 6):
        power = flash_v4.exp2(f, degree=degree)
        assert np.all(np.diff(power) > 0)
        errors.append(np.max(np.abs(power / 2**f - 1)))
    assert all(finer < coarser / 10 for coarser, finer in zip(errors, errors[1:]))


@given(st.integers(1, 5), inputs.seeds)
@example(3, 0)
def test_polynomial_powers(fast, degree, seed):
    """float32 adds a few roundings to the definition; integers are powers of two; what is too small is nothing."""
    whole = np.arange(-126.0, 128)
    exactly(fast.exp2(inputs.tensor(whole, "float32"), degree=degree), 2**whole, "integers")
    nothing = np.array([-127.0, -127.5, -1000.0, -np.inf])
    exactly(fast.exp2(inputs.tensor(nothing, "float32"), degree=degree), np.zeros(4), "too small")
    exactly(flash_v4.exp2(nothing, degree=degree), np.zeros(4), "too small, spec")
    x = np.random.default_rng(seed).integers(-126 * 2**14, 127 * 2**14, 4000) / 2**14  # as float32 holds them, and their fractions
    n, coefficients = np.floor(x), flash_v4.POLYNOMIALS[degree]
    p = bounded(lambda f: _horner(coefficients, f), x - n, precision=Precision("float32"))
    power = inputs.array(fast.exp2(inputs.tensor(x, "float32"), degree=degree))
    agree(power / 2**n, p, "2^f")
    exactly(flash_v4.exp2(x, degree=degree), p.value * 2**n, "spec")


def _horner(coefficients, f):
    p = 0.0 * f
    for coefficient in coefficients[::-1]:
        p = p * f + coefficient
    return p


def test_the_cubic_in_float32(fast):
    f = np.arange(2**16) / 2**16
    power = inputs.array(fast.exp2(inputs.tensor(f, "float32")))
    assert np.max(np.abs(power / 2**f - 1)) <= EPSILON and np.all(np.diff(power) > 0)


def test_where_the_exponent_field_ends(fast):
    """Between -127 and -126 the leading 1 is lost, as in the released kernel: still rising, from 0 to the least normal number."""
    x = -127 + np.arange(1, 64) / 64
    expected = flash_v4.exp2(x)
    assert np.all(np.diff(expected) > 0) and np.all(expected < 2.0**-126) and np.all(expected > 0)
    actual = inputs.array(fast.exp2(inputs.tensor(x, "float32")))
    assert np.all(np.abs(actual - expected) <= 2.0**-126 * 2.0**-21)  # p's roundings, against a unit of 2^-126


def widened(expected, weights, v):
    """The bound where every weight may be off by EPSILON: a weighted mean moves by no more than its values scatter."""
    o, lse = expected
    drift = EPSILON / (1 - EPSILON) * np.einsum("qk,qkd->qd", weights, np.abs(v[None] - o.value[:, None]))
    more = lambda x, extra: Rounded(x.value, x.error + extra, x.variance + extra**2, precision=x.precision)
    return more(o, drift), more(lse, np.where(np.isfinite(lse.value), -np.log1p(-EPSILON), 0))


@given(problems(sink=False, softcap=False), st.sampled_from([0, 1, 8, 15]), st.sampled_from([None, 1, 2]))
def test_fast_agrees_with_the_definition(fast, problem, tau, emulate):
    options = {name: problem.options[name] for name in ("causal", "window")}
    o, lse = fast.lazy_rescale(*problem.tensors(), tau=tau, emulate=emulate, **options)
    for b, h, h_kv in problem.heads:
        expected = problem.bounds(dense.attention, b, h, h_kv, outputs=(problem.dtype, "float32"))
        if emulate:
            expected = widened(expected, dense.weights(problem.q[b, :, h], problem.k[b, :, h_kv], mask=problem.mask), problem.v[b, :, h_kv])
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")


@pytest.mark.parametrize(("tau", "dtype"), [(0.5, "float32"), (15, "float16")])
def test_a_maximum_that_drifts_upward(fast, tau, dtype):
    """Logits that rise by 21 powers of two, two of them in 512 keys: no weight overflows 16 bits, and nothing is forgotten."""
    n = 5200
    k = inputs.rounded(np.broadcast_to((np.arange(n) * 0.0028)[None, :, None, None], (1, n, 1, 16)), dtype)
    q, v = np.ones((1, 1, 1, 16)), np.random.default_rng(0).integers(-4, 5, (1, n, 1, 16)) / 4
    o, lse = fast.lazy_rescale(*(inputs.tensor(x, dtype) for x in (q, k, v)), tau=tau, scale=1 / 16)
    arrays, outputs = (q[0, :, 0], k[0, :, 0], v[0, :, 0]), (dtype, "float32")
    expected = bounded(dense.attention, *arrays, scale=1 / 16, precision=Precision(dtype), outputs=outputs)
    agree(o[0, :, 0], expected[0], "output, drifting")
    agree(lse[0, 0], expected[1], "log-sum-exp, drifting")


@given(st.sampled_from([1, 2, 3]), st.sampled_from([2, 127, 129, 260]), st.sampled_from([1, 2, 18]), st.booleans())
@example(2, 260, 1, False)
@example(2, 129, 18, True)
def test_which_keys_are_emulated_is_a_matter_of_their_position(fast, emulate, n, rows, causal):
    """Each key's weight over that of key 0, which is heaviest and exact: nearer to the cubic if emulated, to the power if not."""
    logit = -(np.arange(n) % 7 + 0.5)
    logit[0] = 0
    kinds = 2.0**logit, flash_v4.exp2(logit)  # apart by most of EPSILON
    mine = (np.arange(n) // STRETCH % emulate == 0).astype(int)
    q, k = np.zeros((1, rows, 1, 16)), np.zeros((1, n, 1, 16))
    q[..., 0], k[0, :, 0, 0] = 1, logit
    for first in range(1, n, 100):
        chosen = np.arange(first, min(first + 100, n), 3)
        v = np.zeros((1, n, 1, len(chosen) + 1))
        v[0, chosen, 0, np.arange(len(chosen))], v[0, 0, 0, -1] = 1, 1
        o, _ = fast.lazy_rescale(*(inputs.tensor(x, "float32") for x in (q, k, v)), scale=float(np.log(2)), emulate=emulate, causal=causal)
        last = inputs.array(o[0, -1, 0])  # sees every key
        distance = np.abs(last[:-1] / last[-1] - np.stack(kinds)[:, chosen])
        exactly(np.argmin(distance, 0), mine[chosen], "kind of exponential")


@given(inputs.seeds, st.sampled_from([None, 1, 2]), st.sampled_from(["float32", "bfloat16"]))
def test_a_token_decoded_is_a_token_prefilled(fast, seed, emulate, dtype):
    """Integer logits and values, so that sums do not depend on their order: the same bits, wherever tiles begin and masks lie."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.integers(-1, 2, (1, 18, 2, 16)), rng.integers(-1, 2, (1, 140, 1, 16)), np.eye(140, 24)[None, :, None] * 2.0
    tensors = [inputs.tensor(x, dtype) for x in (q, k, v)]
    whole = fast.lazy_rescale(*tensors, causal=True, scale=0.5, emulate=emulate)
    one = fast.lazy_rescale(tensors[0][:, -1:], *tensors[1:], causal=True, scale=0.5, emulate=emulate)
    exactly(one[0], whole[0][:, -1:], "output")
    exactly(one[1], whole[1][:, :, -1:], "log-sum-exp")


@given(problems(dtypes=("float32", "bfloat16"), low=2, sink=False, softcap=False), st.data())
def test_rows_are_blind_to_what_they_may_not_see(fast, problem, data):
    """Keys outside a row's mask may be NaN and their values anything finite: not one bit of the row changes."""
    options = {"causal": True, "window": problem.options["window"], "emulate": data.draw(st.sampled_from([None, 1]))}
    mask = visible(problem.q.shape[1], problem.k.shape[1], True, problem.options["window"])
    row = data.draw(st.integers(0, problem.q.shape[1] - 1))
    before = fast.lazy_rescale(*problem.tensors(), **options)
    problem.k[:, ~mask[row]], problem.v[:, ~mask[row]] = np.nan, 2.0**100
    problem.v[:, ~mask.any(0)] = np.nan
    after = fast.lazy_rescale(*problem.tensors(), **options)
    exactly(after[0][:, row], before[0][:, row], "output")
    exactly(after[1][:, :, row], before[1][:, :, row], "log-sum-exp")


@given(problems(sink=False, softcap=False), inputs.layouts)
def test_strides_do_not_matter_and_two_runs_are_bit_equal(fast, problem, layout):
    options = {name: problem.options[name] for name in ("causal", "window")}
    tensors = problem.tensors(layout)
    for x, y in zip(fast.lazy_rescale(*tensors, **options), fast.lazy_rescale(*problem.tensors(), **options), strict=True):
        exactly(x, y, layout)
    for x, y in zip(tensors, problem.tensors(), strict=True):
        exactly(x, y, "input")


def test_rows_without_keys(fast):
    q = torch.ones(1, 40, 1, 16, device=inputs.target.device())
    for keys in (q[:, :5], q[:, :0]):
        o, lse = fast.lazy_rescale(q, keys, keys, causal=True, emulate=1)
        empty = 40 - keys.shape[1]
        exactly(o[:, :empty], np.zeros((1, empty, 1, 16)), "output")
        exactly(lse[..., :empty], np.full((1, 1, empty), -np.inf), "log-sum-exp")
        assert torch.isfinite(lse[..., empty:]).all()
