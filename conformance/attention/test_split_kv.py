"""Flash-Decoding: any partition of the keys gives the same attention; where a fixed size cuts, a sequence's bits are its own."""

import itertools
from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.decoding import Decoding, decodings
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.poison import poisoned_empty
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, split_kv

exact64 = Precision("float64", "float64")
chunkings = st.sampled_from([{"size": 512}, {"size": 32}, {"size": 17}, {"size": 100, "splits": 3}, {"splits": 1}])


def run(fast, problem, layout="contiguous", **chunks):
    return fast.attention(*problem.tensors(layout), length=problem.length, **problem.keywords, **chunks)


@st.composite
def partitions(draw, n):
    """Where chunks begin and end: anywhere, empty ones included."""
    return [0, *sorted(draw(st.lists(st.integers(0, n), max_size=4))), n]


@given(st.data(), inputs.seeds, st.integers(0, 4), st.integers(0, 8), st.booleans())
def test_every_partition_reorders_a_rational_function(data, seed, n_q, n_k, sink):
    """Law of the spec, without rounding: any bounds, mask, bias and sink, rows that see nothing of a chunk or nothing at all."""
    q, k, v = field.problem(seed, n_q, n_k, 2)
    rng = np.random.default_rng(seed + 1)
    mask = data.draw(st.sampled_from([None, np.tri(n_q, n_k, n_k - n_q, dtype=bool), rng.random((n_q, n_k)) < 0.4]))
    options = {"mask": mask, "bias": field.logits(rng, n_q, n_k), "sink": field.logits(rng, 1) if sink else None, "scale": 1}
    bounds = data.draw(partitions(n_k))
    field.exactly(split_kv.attention(q, k, v, bounds=bounds, **options), dense.attention(q, k, v, **options))


@given(st.data(), decodings(dtypes=("float64",), rows=(1, 3)))
def test_every_partition_is_dense_attention(data, problem):
    """Law of the spec in float64, with cap and sink; and its parts are attention over each chunk alone."""
    b, h, h_kv = problem.heads[-1]
    q, k, v = problem.q[b, :, h], problem.k[b, :, h_kv], problem.v[b, :, h_kv]
    bounds, mask = data.draw(partitions(len(k))), visible(len(q), len(k), problem.options["causal"], problem.options["window"])
    options = {"mask": mask, "softcap": problem.options["softcap"]}
    z = None if problem.sink is None else float(problem.sink[h])
    for actual, bound in zip(split_kv.attention(q, k, v, bounds=bounds, sink=z, **options),
                             bounded(dense.attention, q, k, v, sink=z, precision=exact64, **options)):  # fmt: skip
        agree(actual, bound, "whole")
    o, lse = split_kv.partials(q, k, v, bounds=bounds, **options)
    for s, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        part = slice(start, stop)
        chunk = bounded(dense.attention, q, k[part], v[part], precision=exact64, mask=mask[:, part], softcap=options["softcap"])
        agree(o[s], chunk[0], "part")
        agree(lse[s], chunk[1], "log-sum-exp of a part")


def test_occupancy_is_its_definition(fast):
    """Brute force in rationals, and the twins agree: enough programs as they are, or the fewest chunks within 85 % of the fullest waves."""
    for sms, blocks, max_splits in itertools.product((7, 24, 108), (0, 1, 5, 13, 40), (1, 6, 128)):
        for tiles in range(1, sms + 2):
            useful = [s for s in range(1, min(max_splits, sms, blocks) + 1) if s == 1 or -(-blocks // s) < -(-blocks // (s - 1))]
            waves = {s: Fraction(tiles * s, sms) for s in useful}
            full = {s: x / -(-x.numerator // x.denominator) for s, x in waves.items()}
            wanted = [s for s in useful if full[s] >= Fraction(17, 20) * max(full.values())]
            expected = 1 if Fraction(tiles, sms) >= Fraction(4, 5) or not wanted else wanted[0]
            assert split_kv.occupancy(tiles, blocks, sms, max_splits) == expected
            assert fast.occupancy(tiles, blocks, sms, max_splits) == expected


@given(st.integers(0, 100), st.integers(1, 40))
def test_fixed_bounds_are_a_partition_that_grows_at_its_end(fast, n, size):
    bounds = split_kv.fixed(n, size)
    assert fast.fixed(n, size) == bounds
    assert [stop - start for start, stop in zip(bounds, bounds[1:])] == [size] * (n // size) + [n % size] * (n % size > 0 or n == 0)
    assert split_kv.fixed(n + 1, size)[: len(bounds) - 1] == bounds[:-1]


@given(decodings(), chunkings)
@example(Decoding(np.ones((1, 1, 16, 16)), np.ones((1, 40, 2, 16)), np.ones((1, 40, 2, 16)), [40], None, "bfloat16",
                  {"causal": True, "window": None, "softcap": None}), {"size": 16})  # fmt: skip
def test_attention_agrees_with_the_definition(fast, problem, chunks):
    """Ragged lengths, groups of heads, windows, caps and sinks; what lies behind a length is NaN."""
    o, lse = run(fast, problem, **chunks)
    for b, h, h_kv in problem.heads:
        expected = problem.expected(b, h, h_kv)
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")


@given(st.data(), decodings(rows=(1, 3), heads=[(1, 1), (6, 2)]))
def test_parts_agree_with_the_definition_and_merge_to_it(fast, data, problem):
    """Chunks anywhere, also empty ones and those behind a sequence's end, where every part is 0 and -inf."""
    q, k, v = problem.tensors()
    bounds, keywords = data.draw(partitions(k.shape[1])), problem.keywords
    sink = keywords.pop("sink")
    o, lse = fast.partials(q, k, v, bounds=bounds, length=problem.length, **keywords)
    merged = fast.combine(o, lse)
    whole = fast.attention(q, k, v, bounds=bounds, length=problem.length, sink=sink, **keywords)
    for b, h, h_kv in problem.heads:
        keys = slice(problem.lengths[b])
        arrays = problem.q[b, :, h], problem.k[b, keys, h_kv], problem.v[b, keys, h_kv]
        cuts = [min(cut, problem.lengths[b]) for cut in bounds]
        options = {"bounds": cuts, "mask": problem.mask(b), "softcap": problem.options["softcap"]}
        expected = bounded(split_kv.partials, *arrays, precision=Precision(problem.dtype), outputs="float32", **options)
        agree(o[:, b, :, h], expected[0], "output of a part")
        agree(lse[:, b, h], expected[1], "log-sum-exp of a part")
        expected = bounded(split_kv.attention, *arrays, precision=Precision(problem.dtype), outputs="float32", **options)
        agree(merged[0][b, :, h], expected[0], "output, merged")
        agree(merged[1][b, h], expected[1], "log-sum-exp, merged")
        expected = problem.expected(b, h, h_kv)
        agree(whole[0][b, :, h], expected[0], "output")
        agree(whole[1][b, h], expected[1], "log-sum-exp")


@given(st.integers(1, 40), st.integers(0, 3), st.sampled_from(["float32", "bfloat16"]), inputs.seeds)
def test_combining_takes_each_part_by_its_mass(fast, splits, empty, dtype, seed):
    """Parts of mass 2^n whose total is a power of two merge without rounding; parts of mass 0 are not read."""
    rng = np.random.default_rng(seed)
    mass = np.ones(splits)
    while mass.sum() != 2.0 ** np.ceil(np.log2(mass.sum())):
        mass[np.argmin(mass)] *= 2
    parts = inputs.rounded(rng.integers(-8, 9, (splits, 2, 1, 3, 5)).astype(float), dtype)
    order = rng.permutation(splits + empty)
    o = np.concatenate([parts, np.full((empty, 2, 1, 3, 5), np.nan)])[order]
    lse = np.concatenate([np.log(mass), np.full(empty, -np.inf)])[order]
    lse = np.broadcast_to(lse[:, None, None, None], (splits + empty, 2, 3, 1))
    merged, total = fast.combine(inputs.tensor(o, dtype), inputs.tensor(lse.copy(), "float32"))
    expected = bounded(split_kv.combine, np.where(np.isnan(o[:, 0, 0, 0]), 0, o[:, 0, 0, 0]), lse[:, 0, 0, 0], precision=Precision(dtype),
                       outputs=(dtype, "float32"))  # fmt: skip
    agree(merged[0, 0, 0], expected[0], "merged output")
    agree(total[0, 0], expected[1].reshape(1), "merged log-sum-exp")


def test_combining_nothing(fast):
    """Parts that are all empty, and no parts at all: output 0 and log-sum-exp -inf, never NaN."""
    o, lse = torch.full((3, 1, 2, 1, 4), float("nan")), torch.full((3, 1, 1, 2), -np.inf)
    for parts, sums in ((o, lse), (o[:0], lse[:0])):
        merged, total = fast.combine(parts.to(inputs.target.device()), sums.to(inputs.target.device()))
        exactly(merged, np.zeros((1, 2, 1, 4)), "output")
        exactly(total, np.full((1, 1, 2), -np.inf), "log-sum-exp")


@given(decodings(dtypes=("float32", "bfloat16"), heads=[(3, 1), (4, 2)]), st.sampled_from([16, 20]), inputs.layouts)
def test_scratch_that_nobody_wrote_is_not_read_and_strides_do_not_matter(fast, problem, size, layout):
    """Parts behind a sequence's end and in front of its window stay unwritten: NaN there changes no bit. Two runs agree."""
    first = run(fast, problem, size=size)
    with poisoned_empty():
        second = run(fast, problem, layout, size=size)
    for x, y in zip(second, first, strict=True):
        exactly(x, y, layout)
