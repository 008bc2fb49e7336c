"""Kernels cut rows where the spec does: always where they only compare or add exactly, else wherever rounding could not matter."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import target
from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, dtypes, layouts, regimes, seeds, tensor, values
from twofold.conformance.poison import poisoned_empty
from twofold.conformance.rounding import Precision, bounded
from twofold.fast import backend
from twofold.fast.kernels import row_cutoff, row_stats
from twofold.spec.speculative import cutoff

FLOAT32 = Precision("float32")
OUTPUTS = ["float32"] * 5
sizes = st.sampled_from([1, 2, 5, 33, 4097])


def certain(logits, T, k, mass, ratio):
    """Whether float32 must keep the tokens that the spec keeps: no sum and no weight lies within its rounding error of its edge."""
    if T == 0:
        return True
    order = np.argsort(-logits, kind="stable")
    weights = lambda x: np.exp((x[order] - x.max()) / T)[: k or None]
    reach = bounded(lambda x: np.cumsum(weights(x)) - mass * weights(x).sum(), logits, precision=FLOAT32)
    near = bounded(lambda x: weights(x) - ratio, logits, precision=FLOAT32)
    clear = lambda x: np.all(np.abs(x.value) > x.error)
    return (mass >= 1 or clear(reach)) and (ratio == 0 or clear(near))


def drawn(rng, rows):
    """Settings of so many rows, each on or off, among them greedy ones; float32 numbers."""
    pick = lambda options: rng.choice(options, rows).astype(np.float32).astype(float)
    return {"T": pick([0.0, 0.3, 1.0, 1.0, 2.0]), "k": rng.choice([0, 1, 3, 40], rows), "mass": pick([1.0, 1.0, 0.0, 0.4, 0.9]),
            "ratio": pick([0.0, 0.0, 0.1, 0.5])}  # fmt: skip


def tensors(setting):
    return {name: tensor(values, None if name == "k" else "float32") for name, values in setting.items()}


def of_row(setting, b):
    return {name: values[b].item() for name, values in setting.items()}


@given(regimes, seeds, sizes, dtypes(), layouts)
@example("normal", 1, 4097, "bfloat16", "sliced")
def test_rows_are_cut_where_the_spec_cuts_them(fast, regime, seed, V, dtype, layout):
    rng, (logits,) = np.random.default_rng(seed), values(regime, [(3, V)], seed, dtype)
    logits[1, rng.random(V) < 0.3] = -np.inf
    logits[1, 0] = 1
    setting = drawn(rng, 3)
    given_ = tensor(logits, dtype, layout)
    law = fast.row(given_, **tensors(setting))
    restored = array(fast.restore(given_, law))
    for b in range(3):
        if certain(logits[b], **of_row(setting, b)):
            expected = bounded(cutoff.row, logits[b], precision=FLOAT32, outputs=OUTPUTS, **of_row(setting, b))
            for name, number, wanted in zip(("T", "greatest", "cut", "last"), law, expected, strict=False):
                exactly(array(number[b]), wanted.value, f"{name} of row {b}")
            agree(array(law[4][b]), expected[4], "total")
            p = bounded(lambda x: cutoff.restore(x, cutoff.row(x, **of_row(setting, b))), logits[b], precision=FLOAT32)  # noqa: B023
            exactly(restored[b] * (p.value == 0), 0 * p.value, "what is not kept")
            agree(restored[b], p, "probabilities")


def test_hardly_any_row_is_left_to_rounding():
    rng, (logits,) = np.random.default_rng(1), values("normal", [(200, 33)], 1, "float32")
    setting = drawn(rng, 200)
    assert np.mean([not certain(logits[b], **of_row(setting, b)) for b in range(200)]) < 0.01


@given(regimes, seeds, sizes, dtypes(), st.sampled_from([1, 2, 7, 4000, 4096]))
@example("ties", 1, 33, "float32", 7)  # five tie for the greatest, and top-k alone would keep two of the next
def test_counts_and_equals_of_the_greatest_are_cut_without_rounding(fast, regime, seed, V, dtype, k):
    """Top-k, and min-p at ratio 1, compare and count: every regime, every tie, whatever the temperature."""
    (logits,) = values(regime, [(2, V)], seed, dtype)
    ratio = np.array([0.0, 1.0])
    law = fast.row(tensor(logits, dtype), T=0.7, k=k, ratio=tensor(ratio, "float32"))
    for b in range(2):
        expected = cutoff.row(logits[b], T=0.7, k=k, ratio=ratio[b])
        exactly([array(law[2][b]), array(law[3][b])], [float(x) for x in expected[2:4]], "cut and last")


@given(seeds, st.sampled_from([1, 8, 33, 4097]), dtypes(), st.integers(0, 8), st.sampled_from([0, 4]))
@example(1, 4097, "float32", 7, 0)
@example(2, 4097, "bfloat16", 5, 4)
def test_equal_weights_are_cut_without_rounding(fast, seed, V, dtype, eighths, k):
    """Logits 3, 3 - 200 and minus infinity: weights are 1 or vanish, every sum is exact, and masses in eighths are reached exactly."""
    rng = np.random.default_rng(seed)
    logits = rng.choice([3.0, -197.0, -np.inf], (2, V), p=[0.6, 0.2, 0.2])
    logits[:, rng.integers(V)] = 3
    law = fast.row(tensor(logits, dtype), k=k, mass=tensor(np.array([eighths / 8] * 2), "float32"))
    for b in range(2):
        expected = cutoff.row(logits[b], k=k, mass=eighths / 8)
        exactly([array(number[b]) for number in law], [float(x) for x in expected], f"row {b}")


def test_minus_zero_is_zero(fast):
    logits = tensor(np.array([[-0.0, 0.0, -1.0, 0.0, -0.0]]), "float32")
    for k, last in ((1, 0), (2, 1), (3, 3), (4, 4)):
        assert [fast.row(logits, k=k)[n].item() for n in (2, 3)] == [0, last]


def test_every_float_is_told_from_its_neighbour(fast):
    """Thresholds of all sizes and both signs, subnormal ones too, one unit in the last place apart."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        start = torch.tensor([-3e4, -1.0, -1e-3, -torch.finfo(dtype).tiny, 0.0, torch.finfo(dtype).tiny, 0.3, 1.0, 7.0, 3e4], dtype=dtype)
        bits = start.view(torch.int32 if dtype == torch.float32 else torch.int16)
        logits = torch.cat([start, (bits + 1).view(dtype), (bits + 2).view(dtype)]).unique().flip(0)
        for k in (5, 14, 15, 24):
            cut = fast.row(tensor(array(logits)[None], str(dtype)[6:]), k=k)[2]
            exactly(cut[0], logits[k - 1], f"the {k}th greatest")


@given(regimes, seeds, st.sampled_from([1, 2, 100, 4097, 9000]), dtypes(), layouts)
def test_statistics_agree(fast, regime, seed, V, dtype, layout):
    (logits,) = values(regime, [(2, V)], seed, dtype)
    logits[1, np.random.default_rng(seed).random(V) < 0.5] = -np.inf
    logits[1, -1] = 0
    actual = fast.statistics(tensor(logits, dtype, layout))
    for b in range(2):
        expected = bounded(cutoff.statistics, logits[b], precision=FLOAT32, outputs=["float32"] * 4)
        exactly(array(actual[0][b]), expected[0].value, "greatest")
        exactly(array(actual[2][b]), expected[2].value, "first")
        agree(array(actual[1][b]), expected[1], "log-sum-exp")
        agree(array(actual[3][b]), expected[3], "entropy")


def test_logits_as_far_apart_as_floats_are_have_no_entropy(fast):
    logits = torch.full((1, 4097), -3e38, device=target.device())
    logits[0, 5] = 3e38
    assert [number.item() for number in fast.statistics(logits)] == [logits[0, 5].item(), logits[0, 5].item(), 5, 0]


def test_a_large_vocabulary(fast):
    (logits,) = values("normal", [(1, 131_072)], 3, "bfloat16")
    law = fast.row(tensor(logits, "bfloat16"), k=5000)
    expected = cutoff.row(logits[0], k=5000)
    exactly([array(law[2][0]), array(law[3][0])], [float(x) for x in expected[2:4]], "cut and last")
    agree(array(law[4][0]), bounded(cutoff.row, logits[0], k=5000, precision=FLOAT32, outputs=OUTPUTS)[4], "total")


@pytest.mark.parametrize(("V", "dtype"), [(3, "float32"), (4097, "bfloat16")])
def test_a_row_alone_is_the_row_in_a_batch(fast, V, dtype):
    rng, (logits,) = np.random.default_rng(V), values("normal", [(2, 2, V)], V, dtype)
    setting = {name: each.reshape(2, 2) for name, each in drawn(rng, 4).items()}
    with poisoned_empty():
        together = fast.row(tensor(logits, dtype, "transposed"), **tensors(setting))
        again = fast.row(tensor(logits, dtype, "sliced"), **tensors(setting))
    for b, r in np.ndindex(2, 2):
        alone = fast.row(tensor(logits[b, r][None], dtype), **{name: x[b, r].item() for name, x in setting.items()})
        for one, many, same in zip(alone, together, again, strict=True):
            exactly(array(many[b, r]), array(one[0]), f"row {b}, {r}")
            exactly(array(same[b, r]), array(one[0]), "another run, another layout")


@given(seeds, st.sampled_from([1, 6]))
def test_a_tokens_probability_is_the_one_in_its_row(fast, seed, V):
    rng, (logits,) = np.random.default_rng(seed), values("ties", [(1, 3, V)], seed, "float32")
    ids, law = rng.integers(-2, V + 2, (1, 3, 4)), fast.row(tensor(logits, "float32"), T=0.7, k=3)
    rows = array(fast.restore(tensor(logits, "float32"), law))
    inside = (ids >= 0) & (ids < V)
    expected = np.where(inside, np.take_along_axis(rows, np.where(inside, ids, 0), -1), 0)
    needed = (ids[..., None] == np.arange(V)).any(2) | (np.arange(V) == 0)
    hidden = tensor(np.where(needed, logits, np.nan), "float32")
    exactly(array(fast.probability(hidden, law, tensor(ids))), expected, "probabilities")


@contextmanager
def reads(logits):
    """How often a launch reads each element of these logits, counted in the interpreter."""
    from triton.runtime.interpreter import InterpreterBuilder

    counts, load = np.zeros(logits.numel(), int), InterpreterBuilder.create_masked_load

    def counted(self, pointers, mask, *rest, **named):
        at = (pointers.data.astype(np.int64) - logits.data_ptr()) // logits.element_size()
        at = np.broadcast_to(at, mask.data.shape)[mask.data]
        np.add.at(counts, at[(at >= 0) & (at < counts.size)], 1)
        return load(self, pointers, mask, *rest, **named)

    InterpreterBuilder.create_masked_load = counted
    try:
        yield counts
    finally:
        InterpreterBuilder.create_masked_load = load


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_each_logit_is_read_as_often_as_is_said(fast, dtype):
    seen = fast.side == "triton" and backend.interpreted()  # neither the twin's loads nor a GPU's pass through the interpreter
    logits = tensor(values("normal", [(2, 4100)], 1, dtype)[0], dtype)
    with reads(logits) as counts:
        fast.statistics(logits)
    assert set(counts) == {seen} and row_stats.bytes_read(2, 4100, logits.dtype) == logits.nbytes
    for on in ({}, {"k": 9}, {"ratio": 0.5}, {"k": 9, "mass": 0.5, "ratio": 0.1}):
        with reads(logits) as counts:
            fast.row(logits, **on)
        expected = row_cutoff.bytes_read(2, 4100, logits.dtype, **dict.fromkeys(on, True))
        assert len(set(counts)) == 1 and counts.sum() * logits.element_size() == seen * expected, on
    with reads(logits) as counts:
        fast.row(logits, T=0, k=9, mass=0.5, ratio=0.1)
    assert set(counts) == {seen}, "a greedy row is not read again, whatever its other settings are"
