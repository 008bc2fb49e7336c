"""Ring attention, the spec: any cut of the sequence is dense attention without rounding, gradients come home whole, stripes balance."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import visible
from twofold.conformance.attention.ranks import cut, stripes
from twofold.conformance.compare import agree
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, online_softmax, ring

exact64 = Precision("float64", "float64")
lengths = st.lists(st.integers(0, 4), min_size=1, max_size=5)


@given(inputs.seeds, lengths, st.booleans(), st.integers(0, 4))
@example(0, [0, 3, 0, 2], True, 1)
@example(0, [0, 0], False, 0)
def test_any_cut_is_dense_attention(seed, lengths, causal, turn):
    """In the field: any number of devices, uneven and empty shards; without a mask the devices may stand in any order around the ring."""
    n = sum(lengths)
    q, k, v = field.problem(seed, n, n, 2)
    o, lse = ring.forward(*(cut(x, lengths) for x in (q, k, v)), causal=causal, scale=1)
    whole = dense.attention(q, k, v, mask=visible(n, n, causal), scale=1)
    for parts, expected in zip((o, lse), whole, strict=True):
        for r, (part, piece) in enumerate(zip(parts, cut(expected, lengths), strict=True)):
            field.exactly(part, piece, f"device {r}")
    if not causal:
        turned = [shards[turn % len(lengths) :] + shards[: turn % len(lengths)] for shards in (cut(x, lengths) for x in (k, v))]
        field.exactly(ring.forward(cut(q, lengths), *turned, scale=1)[0], o, "other devices hold the keys")


@given(inputs.seeds, st.integers(0, 11), st.integers(1, 5))
def test_stripes_are_causal_attention(seed, n, size):
    q, k, v = field.problem(seed, n, n, 2)
    result = ring.striped(*(stripes(x, size) for x in (q, k, v)), scale=1)
    whole = dense.attention(q, k, v, mask=visible(n, n, causal=True), scale=1)
    for parts, expected in zip(result, whole, strict=True):
        field.exactly(list(parts), stripes(expected, size))


@given(inputs.regimes, inputs.seeds, lengths, st.sampled_from(["all", "causal", "striped"]), st.booleans())
@example("normal", 0, [3, 0, 2], "causal", True)
def test_gradients_come_home_whole(regime, seed, lengths, kind, with_dlse):
    n, size = sum(lengths), len(lengths)
    q, k, v, do, dlse = inputs.values(regime, [(n, 4), (n, 4), (n, 3), (n, 3), (n,)], seed)
    divide = (lambda x: stripes(x, size)) if kind == "striped" else lambda x: cut(x, lengths)
    mask = visible(n, n, kind != "all")
    whole = bounded(dense.backward, q, k, v, do, dlse=dlse if with_dlse else None, mask=mask, precision=exact64)
    shards = [divide(x) for x in (q, k, v)]
    o, lse = ring.striped(*shards) if kind == "striped" else ring.forward(*shards, causal=kind == "causal")
    options = {"dlse_shards": divide(dlse) if with_dlse else None, "causal": kind != "all", "stripes": kind == "striped"}
    gradients = ring.backward(*shards, o, lse, divide(do), **options)
    order = np.concatenate(divide(np.arange(n)))
    for name, parts, expected in zip(("dq", "dk", "dv"), gradients, whole):
        agree(np.concatenate(parts), expected[order], name)


@given(st.integers(2, 5), st.integers(1, 40), st.integers(2, 8))
def test_stripes_have_the_same_work_at_every_step(size, n, tile):
    """Devices that hold n tokens each visit as many tiles as any other, or one more; contiguous ones at some step all tiles, or none."""
    x, seen = np.zeros((size * n, 1)), []

    def tiles(mask):
        padded = np.pad(mask, [(0, -length % tile) for length in mask.shape])
        return padded.reshape(padded.shape[0] // tile, tile, -1, tile).any((1, 3)).sum()

    def watched(q, k, v, *, mask, scale):
        seen.append(tiles(mask))
        return dense.attention(q, k, v, mask=mask, scale=scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "attention", watched)
        ring.striped(*[stripes(x, size)] * 3)
        striped, seen = seen, []
        ring.forward(*[cut(x, [n] * size)] * 3, causal=True)
    steps = np.array(striped + [0] * (size * size - len(striped))).reshape(size, size) if n > 1 else np.zeros((size, size))
    assert np.all(np.ptp(steps, axis=1) <= 1)
    assert len(seen) == size * (size + 1) // 2 and max(seen) == (-(-n // tile)) ** 2


@given(inputs.seeds, st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_smoothed_parts_merge_once_their_log_sum_exp_is_shifted_back(seed, lengths):
    """Each device subtracts the mean of its own keys: outputs stay right, but ⊕ needs scale · q · mean added to each log-sum-exp."""
    q, k, v = inputs.values("normal", [(3, 4), (sum(lengths), 4), (sum(lengths), 2)], seed)
    k = k + np.repeat(3.0 * np.arange(len(lengths)), lengths)[:, None]  # the means differ from device to device

    def smoothed(q, k, v):
        result, start = (np.zeros((3, 2)), np.full(3, -np.inf)), 0
        for n in lengths:
            keys, values = k[start : start + n], v[start : start + n]
            mean = np.mean(keys, axis=0)
            o, lse = dense.attention(q, keys - mean, values)
            result = online_softmax.merge(result, (o, lse + 0.5 * (q @ mean)))
            start = start + n
        return result

    whole = dense.attention(q, k, v)
    for actual, bound, what in zip(whole, bounded(smoothed, q, k, v, precision=exact64), ("output", "log-sum-exp"), strict=True):
        agree(actual, bound, what)
