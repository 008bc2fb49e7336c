"""Ring attention in real processes: gloo, up to four ranks, uneven and empty shards, forward and backward."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.problems import visible
from twofold.conformance.attention.ranks import Ranks, attend, cut, refuse, stripes
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, flash, online_softmax

few = settings(max_examples=max(settings().max_examples // 4, 3))  # processes wait for each other


@pytest.fixture(scope="module")
def ranks(fast):
    with Ranks(fast.chapter, fast.side) as ranks:
        yield ranks


def masks(form, lengths, causal):
    """For each device and shard what its rows see, written down from the positions in the sequence."""
    order = np.arange(sum(lengths))
    places = stripes(order, len(lengths)) if form == "striped" else cut(order, lengths)
    if form == "forward" and not causal:
        return [[None] * len(lengths)] * len(lengths)
    return [[keys[None, :] <= rows[:, None] for keys in places] for rows in places]


def problem(regime, seed, lengths, heads, dtype, form):
    """One tuple q, k, v, do, dlse per rank: its shards of one sequence."""
    (h, h_kv), n = heads, sum(lengths)
    q, k, v, do = inputs.values(regime, [(1, n, h, 16), (1, n, h_kv, 16), (1, n, h_kv, 8), (1, n, h, 8)], seed, dtype)
    dlse = inputs.values("normal", [(1, h, n)], seed, "float32")[0]
    divide = (lambda x, axis: stripes(x, len(lengths), axis)) if form == "striped" else lambda x, axis: cut(x, lengths, axis)
    return list(zip(*(divide(x, axis) for x, axis in ((q, 1), (k, 1), (v, 1), (do, 1), (dlse, 2)))))


def run(ranks, form, shards, dtype, causal):
    options = {"causal": causal} if form == "forward" else {}
    results = ranks.run(attend, [(form, list(shard), dtype, options) for shard in shards])
    assert all(unchanged and name == f"torch.{dtype}" for _, name, unchanged in results)
    return [arrays for arrays, _, _ in results]


def stored_parts(dtype, masks):
    """The spec of one rank, its parts stored in the dtype of the inputs before they are merged: what the contract says."""

    def attention(q, *arrays):
        parts = [dense.attention(q, k, v, mask=mask) for k, v, mask in zip(arrays[::2], arrays[1::2], masks)]
        stored = [(o.rounded_to(dtype), lse) for o, lse in parts]
        return reduce(online_softmax.merge, stored)

    return attention


cuts = st.sampled_from([[5], [4, 9], [1, 0, 7], [6, 6, 6], [3, 17, 0, 2], [2, 2, 1, 1], [0, 1, 0, 1]])
forms = st.sampled_from([("forward", False), ("forward", True), ("striped", True)])


@few
@given(inputs.regimes, inputs.seeds, cuts, forms, st.sampled_from([(1, 1), (2, 1), (4, 2)]), inputs.dtypes())
@example("normal", 0, [3, 17, 0, 2], ("forward", True), (4, 2), "bfloat16")
@example("normal", 0, [2, 2, 1, 1], ("striped", True), (2, 1), "float32")
def test_ranks_agree_with_the_definition(ranks, regime, seed, lengths, form, heads, dtype):
    """Every rank's parts are stored in the dtype of the inputs and merged in float32; the gradients likewise, from the stored results."""
    form, causal = form
    lengths = [len(each) for each in stripes(np.arange(sum(lengths)), len(lengths))] if form == "striped" else lengths
    shards, seen = problem(regime, seed, lengths, heads, dtype, form), masks(form, lengths, causal)
    results, size, group = run(ranks, form, shards, dtype, causal), len(lengths), heads[0] // heads[1]
    precision = Precision(dtype)
    sums = [{} for _ in lengths]  # (head, dk or dv) -> what the ranks have made of it
    for r, (q, _, _, do, dlse) in enumerate(shards):
        o, lse, dq = results[r][:3]
        for head in range(heads[0]):
            j = head // group
            keys = [(s, shards[s][1][0, :, j], shards[s][2][0, :, j]) for s in ((r - t) % size for t in range(size))]
            merged = stored_parts(dtype, [seen[r][s] for s, _, _ in keys])
            arrays = [x for _, k, v in keys for x in (k, v)]
            expected = bounded(merged, q[0, :, head], *arrays, precision=precision, outputs=(dtype, "float32"))
            agree(o[0, :, head], expected[0], "output")
            agree(lse[0, head], expected[1], "log-sum-exp")
            stored = o[0, :, head], lse[0, head], do[0, :, head]
            total = 0.0
            for s, k, v in keys:
                options = {"dlse": dlse[0, head], "mask": seen[r][s], "precision": precision, "outputs": "float32"}
                dq_part, dk_part, dv_part, _, _ = bounded(flash.backward, q[0, :, head], k, v, *stored, **options)
                total = dq_part.rounded_to(dtype) + total
                for name, part in (("dk", dk_part), ("dv", dv_part)):
                    sums[s].setdefault((j, name), {}).setdefault(r, []).append(part)
            agree(dq[0, :, head], total.rounded_to(dtype), "dq")
    for s, (_, _, _, dk, dv, *_) in enumerate(results):
        for (j, name), by_rank in sums[s].items():
            total = sum(sum(parts).rounded_to(dtype) for parts in by_rank.values())
            agree((dk if name == "dk" else dv)[0, :, j], total.rounded_to(dtype), name)


@few
@given(inputs.seeds, st.sampled_from([[4, 9], [1, 0, 7]]), forms, st.sampled_from(["float32", "bfloat16"]))
def test_autograd_and_a_second_run_have_the_same_bits(ranks, seed, lengths, form, dtype):
    form, causal = form
    shards = problem("normal", seed, lengths, (2, 1), dtype, form)
    results, again = (run(ranks, form, shards, dtype, causal) for _ in range(2))
    for one, other in zip(results, again, strict=True):
        for name, x, y in zip(("o", "lse", "dq", "dk", "dv"), one, other):
            exactly(x, y, f"{name} of a second run")
        for name, x, y in zip(("dq", "dk", "dv"), one[2:5], one[5:8], strict=True):
            exactly(x, y, f"{name} by autograd")


@few
@given(cuts, forms)
@example([3, 17, 0, 2], ("forward", True))
@example([0, 1, 0, 1], ("striped", True))
def test_every_key_is_read_once_by_whom_it_concerns(ranks, lengths, form):
    """Tomography: q = 0, and values that name their key."""
    form, causal = form
    n, size = sum(lengths), len(lengths)
    lengths = [len(each) for each in stripes(np.arange(n), size)] if form == "striped" else lengths
    names = np.eye(n)[None, :, None]
    zeros, ones = np.zeros((1, n, 1, 8)), np.ones((1, n, 1, 8))
    divide = (lambda x: stripes(x, size, 1)) if form == "striped" else lambda x: cut(x, lengths, 1)
    shards = [(q, k, v, 0 * q[..., :1] * np.zeros(n), np.zeros((1, 1, q.shape[1]))) for q, k, v in zip(*map(divide, (zeros, ones, names)))]
    seen = divide(visible(n, n, causal)[None])
    for r, (o, lse, *_) in enumerate(run(ranks, form, shards, "float32", causal)):
        count = seen[r][0].sum(1)
        exactly(np.rint(o[0, :, 0] * count[:, None]), seen[r][0].astype(float), f"keys read by rank {r}")
        exactly(np.rint(np.exp(lse[0, 0])), count.astype(float), f"number of keys of rank {r}")


def test_ranks_that_do_not_fit_are_told(ranks):
    shape = lambda n, h=1, d=8: (1, n, h, d)
    for shapes, options, name in (
        ([[shape(3), shape(3), shape(3)], [shape(3), shape(3, 1, 8), shape(3, 1, 4)]], {}, "k_shards must differ"),
        ([[shape(3), shape(2), shape(2)]] * 2, {"causal": True}, "k_shards must have the tokens"),
        ([[shape(3), shape(3), shape(2)]] * 2, {}, "v_shards must"),
    ):
        for answer in ranks.run(refuse, [(each, options) for each in shapes]):
            assert answer.startswith(f"ValueError: {name}"), answer


def test_without_processes_the_error_says_what_is_missing(fast):
    x = torch.zeros(1, 3, 1, 8)
    for call in (fast.forward, fast.striped):
        with pytest.raises(RuntimeError, match="init_process_group"):
            call(x, x, x)
