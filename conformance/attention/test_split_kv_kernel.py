"""Flash-Decoding, exactly: which keys take part, and that a sequence's bits are its own; and what its kernel does for latent attention."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention.decoding import Decoding, decodings
from twofold.conformance.attention.problems import visible
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.kernels.split_attention import split_attention
from twofold.spec.attention import dense

windows = st.sampled_from([None, (0, 0), (5, None), (None, 3), (20, 17), (40, 0)])
ours = pytest.mark.skipif(target.target() != target.OURS, reason="our kernel")


def run(fast, problem, **chunks):
    return fast.attention(*problem.tensors(), length=problem.length, **problem.keywords, **chunks)


@given(st.sampled_from([0, 1, 16, 17, 33, 50]), st.sampled_from([1, 2, 7]), st.sampled_from([(1, 1), (3, 1), (10, 2), (7, 1), (8, 1)]),
       st.booleans(), windows, st.sampled_from([16, 17, 512]), st.sampled_from([16, 64]))  # fmt: skip
@example(50, 7, (10, 2), True, (20, 17), 17, 16)
@example(33, 2, (7, 1), False, None, 16, 16)
@example(50, 7, (1, 1), True, None, 16, 16)
@example(50, 1, (3, 1), True, (20, 17), 16, 64)
@example(33, 1, (1, 1), False, (5, None), 17, 64)
def test_mask_tomography(fast, length, n, heads, causal, window, size, width):
    """q = 0 makes every logit 0; one-hot values then show which keys a row read, each exactly once, and from which head."""
    seen = visible(n, length, causal, window)
    count = seen.sum(1)  # (N,)
    room = length + 2
    q, k = torch.zeros(1, n, heads[0], width), torch.ones(1, room, heads[1], width)
    v = torch.eye(room, 64)[None, :, None].repeat(1, 1, heads[1], 1) * torch.arange(1, heads[1] + 1)[:, None]
    q, k, v, used = (x.to(inputs.target.device()) for x in (q, k, v, torch.tensor([length])))
    o, lse = fast.attention(q, k, v, length=used, causal=causal, window=window, size=size)
    for h in range(heads[0]):
        owner = h // (heads[0] // heads[1]) + 1
        read = np.rint(inputs.array(o[0, :, h]) * count[:, None])
        exactly(read[:, :length], owner * seen.astype(float), f"keys read by head {h}")
        exactly(read[:, length:], np.zeros((n, 64 - length)), "keys that do not exist")
        exactly(np.rint(np.exp(inputs.array(lse[0, h]))), count.astype(float), "number of keys")


@pytest.mark.usefixtures("one_thread")
@given(st.permutations([70, 5, 33, 0]), st.integers(1, 4), inputs.seeds, st.sampled_from([(1, 1), (4, 2), (3, 1)]), st.booleans())
def test_a_sequence_has_its_own_bits_in_any_batch(fast, lengths, kept, seed, heads, window):
    """A fixed size cuts a sequence where its own length says. Other sequences, their order, and more room for keys change no bit of it."""
    q, k, v = inputs.values("normal", [(4, 1, heads[0], 16), (4, 80, heads[1], 16), (4, 80, heads[1], 16)], seed, "float32")
    options = {"causal": True, "window": (30, 0) if window else None, "softcap": None}
    o, lse = run(fast, Decoding(q, k, v, lengths, None, "float32", options), size=32)
    few = list(range(kept))[::-1]
    room = max(lengths[i] for i in few)
    part = Decoding(q[few], k[few, :room], v[few, :room], [lengths[i] for i in few], None, "float32", options)
    for x, y in zip(run(fast, part, size=32), (o[few], lse[few]), strict=True):
        exactly(x, y, "in another batch")


@given(decodings(dtypes=("float32", "bfloat16"), lengths=st.just([40, 17]), rows=(3,), heads=[(3, 1)]), st.integers(0, 2))
def test_rows_are_blind_to_what_they_may_not_see(fast, problem, row):
    """Keys outside a row's mask may be NaN and their values anything finite, NaN where no row looks: not one bit of the row changes."""
    problem.options["causal"] = True
    before = run(fast, problem, size=20)
    for b, length in enumerate(problem.lengths):
        unseen, unread = ~problem.mask(b)[row], ~problem.mask(b).any(0)
        problem.k[b, :length][unseen], problem.v[b, :length][unseen] = np.nan, 2.0**100
        problem.v[b, :length][unread] = np.nan
    after = run(fast, problem, size=20)
    exactly(after[0][:, row], before[0][:, row], "output")
    exactly(after[1][:, :, row], before[1][:, :, row], "log-sum-exp")


@given(decodings(dtypes=("float32", "bfloat16"), lengths=st.just([50, 18]), rows=(3,), heads=[(4, 2)]), st.sampled_from([16, 512]))
def test_rows_decoded_together_are_rows_decoded_alone(fast, problem, size):
    """Three causal rows at once, as in speculative decoding, or one by one against the keys that there were: the same attention."""
    problem.options["causal"] = True
    o, lse = run(fast, problem, size=size)
    for b, h, h_kv in problem.heads:
        for row in range(3):
            keys = problem.lengths[b] - 2 + row
            left = (problem.options["window"] or (None, None))[0]
            keys = slice(0 if left is None else max(keys - 1 - left, 0), keys)
            arrays = problem.q[b, row : row + 1, h], problem.k[b, keys, h_kv], problem.v[b, keys, h_kv]
            options = {"softcap": problem.options["softcap"], "sink": None if problem.sink is None else float(problem.sink[h])}
            expected = bounded(dense.attention, *arrays, precision=Precision(problem.dtype), outputs=(problem.dtype, "float32"), **options)
            agree(o[b, row : row + 1, h], expected[0], "output")
            agree(lse[b, h, row : row + 1], expected[1], "log-sum-exp")


@given(decodings(lengths=st.sampled_from([[1], [33], [50, 2]])), st.sampled_from([16, 512]))
def test_weights_are_a_partition_of_what_the_sink_leaves(fast, problem, size):
    """Values of 1 return each row's share. The sink takes it once, however many chunks there are."""
    problem.v = np.ones_like(problem.v)
    o, _ = run(fast, problem, size=size)
    for b, h, h_kv in problem.heads:
        agree(o[b, :, h], problem.expected(b, h, h_kv)[0], "share of the keys")


@given(inputs.seeds, st.sampled_from([16, 512]))
def test_sink_limits(fast, seed, size):
    """A sink of -inf is none, one of +inf leaves nothing; the log-sum-exp counts real keys only."""
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", [(1, 2, 2, 16), (1, 40, 1, 16), (1, 40, 1, 16)], seed))
    o, lse = fast.attention(q, k, v, size=size)
    for z, left in ((-np.inf, 1), (np.inf, 0)):
        with_sink = fast.attention(q, k, v, size=size, sink=torch.full((2,), z, device=q.device))
        exactly(with_sink[0], left * o, f"output, sink {z}")
        exactly(with_sink[1], lse, f"log-sum-exp, sink {z}")


@given(st.sampled_from([1.0, -1.0]), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([1, 16, 32]))
def test_extreme_logits_are_logits(fast, sign, dtype, t_k):
    """Logits of ±2^16, far below every sentinel that has stood for -inf: equal ones still give the mean, in every chunk and over all."""
    q, k = (np.full((1, 1, 3, 16), 2.0**6), np.full((1, t_k, 1, 16), sign * 2.0**6))
    v = np.full((1, t_k, 1, 16), 3.0)
    o, lse = fast.attention(*(inputs.tensor(x, dtype) for x in (q, k, v)), scale=1.0, size=16)
    exactly(o, np.full((1, 1, 3, 16), 3.0), "mean of the values")
    exactly(torch.exp(lse.double() - sign * 2.0**16).round(), np.full((1, 3, 1), float(t_k)), "number of keys")


def test_nothing_to_attend(fast):
    """No keys, no rows, no sequences, and a batch in which one sequence is empty: 0 and -inf, never NaN and never a mean."""
    x = torch.ones(2, 40, 2, 16, device=inputs.target.device())
    for q, keys, length in ((x[:, :3], x[:, :0], None), (x[:, :3], x, [0, 40]), (x[:, :0], x, None), (x[:0, :3], x[:0], None)):
        used = None if length is None else inputs.tensor(np.array(length))
        o, lse = fast.attention(q, keys, keys, length=used, size=16)
        assert o.shape == q.shape and lse.shape == (q.shape[0], 2, q.shape[1])
        empty = [b for b in range(len(q)) if not keys.shape[1] or (length and not length[b])]
        exactly(o[empty], np.zeros((len(empty), *q.shape[1:])), "output")
        exactly(lse[empty], np.full((len(empty), 2, q.shape[1]), -np.inf), "log-sum-exp")
        assert torch.isfinite(o).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_offsets_beyond_two_billion(fast, axis):
    """Queries, keys and values whose sequences, tokens or heads lie 2^30 elements apart."""
    q, k, v = (inputs.tensor(x, "bfloat16", device="cpu") for x in inputs.values("normal", [(3, 3, 3, 16)] * 3, 5, "bfloat16"))
    far = fast.attention(*(far_apart(x, axis) for x in (q, k, v)), causal=True)
    for x, y in zip(far, fast.attention(q, k, v, causal=True), strict=True):
        exactly(x, y, "far apart")


@ours
@given(st.sampled_from(["float32", "bfloat16"]), inputs.seeds, st.sampled_from([16, 512]), st.sampled_from([1, 5]), st.booleans())
def test_keys_with_a_shared_part_that_are_values_as_well(fast, dtype, seed, size, n, pooled):
    """The hooks for latent attention: all heads share a second part of the keys; without values the first part is both."""
    fast.attention  # noqa: B018  the side that runs
    shapes = [(2, n, 6, 24), (2, n, 6, 8), (2, 48, 2, 24), (2, 48, 8)]
    q, q_rest, k, rest = inputs.values("normal", shapes, seed, dtype)
    length = [40, 7]
    pages = {"table": torch.tensor([[3, 1, 4], [2, 0, 5]], device=inputs.target.device())} if pooled else {}
    tensors = [inputs.tensor(x, dtype) for x in (q, q_rest, k, rest)]
    if pooled:
        order = pages["table"].flatten().argsort()
        tensors[2:] = [x.unflatten(1, (3, 16)).flatten(0, 1)[order].contiguous() for x in tensors[2:]]
    used = inputs.tensor(np.array(length))
    o, lse = split_attention(
        tensors[0], tensors[2], None, q_rest=tensors[1], k_rest=tensors[3], length=used, size=size, right=0, scale=0.25, **pages
    )
    for b, h in ((0, 0), (0, 5), (1, 3)):
        keys = slice(length[b])
        queries = np.concatenate([q[b, :, h], q_rest[b, :, h]], axis=1)
        whole = np.concatenate([k[b, keys, h // 3], rest[b, keys]], axis=1)
        options = {"mask": visible(n, length[b], causal=True), "scale": 0.25}
        expected = bounded(
            dense.attention, queries, whole, k[b, keys, h // 3], precision=Precision(dtype), outputs=(dtype, "float32"), **options
        )
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")
