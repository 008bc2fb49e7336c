"""FlashAttention-2, forward: which keys take part is exact, how precisely their values are summed is bounded."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.problems import HEADS, WINDOWS, Problem, problems, visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, flash

windows = st.sampled_from(WINDOWS)
exact64 = Precision("float64", "float64")


def run(fast, problem, layout="contiguous"):
    return fast.forward(*problem.tensors(layout), **problem.keywords)


@given(problems(), st.sampled_from([1, 2, 5, 16, 100]), st.sampled_from([1, 3, 7, 16, 100]))
def test_every_tiling_is_dense_attention(problem, block_q, block_k):
    """Law of the spec: in float64, tiles of any size give the definition."""
    bias = np.where(problem.mask, np.random.default_rng(0).standard_normal(problem.mask.shape), -np.inf)
    for b, h, h_kv in problem.heads[:1]:
        q, k, v = problem.q[b, :, h], problem.k[b, :, h_kv], problem.v[b, :, h_kv]
        options = {"mask": problem.mask, "softcap": problem.options["softcap"], "bias": bias}
        options |= {"sink": None if problem.sink is None else float(problem.sink[h])}
        expected = bounded(dense.attention, q, k, v, precision=exact64, **options)
        o, lse = flash.forward(q, k, v, block_q=block_q, block_k=block_k, **options)
        agree(o, expected[0], "output")
        agree(lse, expected[1], "log-sum-exp")


@given(problems())
def test_forward_agrees_with_the_definition(fast, problem):
    o, lse = run(fast, problem)
    for b, h, h_kv in problem.heads:
        expected = problem.bounds(dense.attention, b, h, h_kv, outputs=(problem.dtype, "float32"))
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")


@given(inputs.seeds, st.sampled_from(["float32", "bfloat16", "float16"]), st.booleans())
def test_errors_of_independent_inputs_are_those_of_independent_roundings(fast, seed, dtype, causal):
    q, k, v = inputs.values("normal", [(1, 33, 2, 16), (1, 49, 1, 16), (1, 49, 1, 16)], seed, dtype)
    problem = Problem(q, k, v, v, v, None, dtype, {"causal": causal, "window": None, "softcap": None})
    o, lse = run(fast, problem)
    for b, h, h_kv in problem.heads:
        expected = problem.bounds(dense.attention, b, h, h_kv, outputs=(dtype, "float32"))
        agree(o[b, :, h], expected[0], "output, independent", independent=True)
        agree(lse[b, h], expected[1], "log-sum-exp, independent", independent=True)


@given(inputs.sizes(16), inputs.sizes(16), st.sampled_from(HEADS), st.booleans(), windows, st.booleans())
@example(33, 33, (1, 1), True, (5, None), False)
@example(31, 65, (2, 1), False, (20, 17), True)
@example(65, 33, (4, 2), True, None, False)
def test_mask_tomography(fast, t_q, t_k, heads, causal, window, capped):
    """q = 0 makes every logit 0; one-hot values then show which keys a row read, each exactly once, and from which head."""
    q = torch.zeros(1, t_q, heads[0], 16, device=inputs.target.device())
    k = torch.ones(1, t_k, heads[1], 16, device=q.device)
    seen = visible(t_q, t_k, causal, window)
    options = {"causal": causal, "window": window, "softcap": 2.0 if capped else None}
    count = seen.sum(1)  # (Tq,)
    for start in range(0, t_k, 16):
        v = torch.zeros(1, t_k, heads[1], 16, device=q.device)
        for h in range(heads[1]):
            width = min(16, t_k - start)
            v[0, start : start + width, h, :width] = (h + 1) * torch.eye(width, device=q.device)
        o, lse = fast.forward(q, k, v, **options)
        for h in range(heads[0]):
            owner = h // (heads[0] // heads[1]) + 1
            read = np.rint(inputs.array(o[0, :, h]) * count[:, None])
            exactly(read[:, : t_k - start], owner * seen[:, start : start + 16].astype(float), f"keys read by head {h}")
            exactly(np.rint(np.exp(inputs.array(lse[0, h]))), count.astype(float), "number of keys")


@given(problems(low=1, regimes=st.sampled_from(["normal", "spiked", "large"])))
def test_weight_tomography(fast, problem):
    """The identity as values returns the weights themselves: scale, cap, sink and head map apart from the product with values."""
    t_k, kv_heads = problem.v.shape[1:3]
    problem.v = np.broadcast_to(np.eye(t_k)[None, :, None], (len(problem.v), t_k, kv_heads, t_k)).copy()
    o, _ = run(fast, problem)
    for b, h, h_kv in problem.heads:
        expected = problem.bounds(dense.attention, b, h, h_kv, outputs=(problem.dtype, "float32"))
        agree(o[b, :, h], expected[0], "weights")


@given(problems(low=1, sink=True))
def test_weights_are_a_partition_of_what_the_sink_leaves(fast, problem):
    """Values of 1 return each row's share: 1 without a sink, less with one, 0 without keys."""
    problem.v = np.ones_like(problem.v)
    with_sink, _ = run(fast, problem)
    for b, h, h_kv in problem.heads:
        expected = problem.bounds(dense.attention, b, h, h_kv, outputs=(problem.dtype, "float32"))
        agree(with_sink[b, :, h], expected[0], "share of the keys")


@given(inputs.seeds, st.booleans())
def test_sink_limits(fast, seed, causal):
    """A sink of -inf is none, one of +inf leaves nothing; the log-sum-exp counts real keys only."""
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", [(1, 9, 2, 16), (1, 7, 1, 16), (1, 7, 1, 16)], seed))
    o, lse = fast.forward(q, k, v, causal=causal)
    for z, left in ((-np.inf, 1), (np.inf, 0)):
        with_sink = fast.forward(q, k, v, causal=causal, sink=torch.full((2,), z, device=q.device))
        exactly(with_sink[0], left * o, f"output, sink {z}")
        exactly(with_sink[1], lse, f"log-sum-exp, sink {z}")


@given(problems(dtypes=("float32", "bfloat16"), low=2), st.data())
def test_rows_are_blind_to_what_they_may_not_see(fast, problem, data):
    """Keys outside a row's mask may be NaN and their values anything finite: not one bit of the row changes."""
    problem.options["causal"] = True
    row = data.draw(st.integers(0, problem.q.shape[1] - 1))
    unseen = ~problem.mask[row]
    unread = ~problem.mask.any(0)
    before = run(fast, problem)
    problem.k[:, unseen], problem.v[:, unseen] = np.nan, 2.0**100
    problem.v[:, unread] = np.nan
    after = run(fast, problem)
    exactly(after[0][:, row], before[0][:, row], "output")
    exactly(after[1][:, :, row], before[1][:, :, row], "log-sum-exp")


@given(problems(), inputs.layouts)
def test_strides_do_not_matter_and_gaps_are_not_read(fast, problem, layout):
    for x, y in zip(run(fast, problem, layout), run(fast, problem), strict=True):
        exactly(x, y, layout)


@given(problems())
def test_two_runs_are_bit_equal_and_inputs_unchanged(fast, problem):
    tensors = problem.tensors()
    first = fast.forward(*tensors, **problem.keywords)
    for x, y in zip(first, fast.forward(*tensors, **problem.keywords), strict=True):
        exactly(x, y, "second run")
    for x, y in zip(tensors, problem.tensors(), strict=True):
        exactly(x, y, "input")


@given(st.sampled_from([1.0, -1.0]), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([1, 2, 16, 32]))
def test_extreme_logits_are_logits(fast, sign, dtype, t_k):
    """Logits of ±2^17, far below every sentinel that has stood for -inf: equal ones still give the mean and their own log-sum-exp."""
    q, k = (np.full((1, 3, 1, 16), 2.0**6), np.full((1, t_k, 1, 16), sign * 2.0**7))
    v = np.arange(t_k * 16.0).reshape(1, t_k, 1, 16) % 7
    o, lse = fast.forward(*(inputs.tensor(x, dtype) for x in (q, k, v)), scale=1.0)
    exactly(o[0, :, 0], inputs.rounded(np.broadcast_to(v[0, :, 0].sum(0) / t_k, (3, 16)), dtype), "mean of the values")
    exactly(torch.exp(lse.double() - sign * 2.0**17).round(), np.full((1, 1, 3), float(t_k)), "number of keys")


@given(problems(low=1, softcap=True, regimes=st.sampled_from(["normal", "large"])))
def test_softcap_limits(fast, problem):
    """A cap far above every logit is none; one far below makes all logits ±c."""
    for cap in (2.0**20, 2.0**-4):
        problem.options["softcap"] = cap
        o, lse = run(fast, problem)
        for b, h, h_kv in problem.heads:
            expected = problem.bounds(dense.attention, b, h, h_kv, outputs=(problem.dtype, "float32"))
            agree(o[b, :, h], expected[0], "output, capped")
            agree(lse[b, h], expected[1], "log-sum-exp, capped")


def test_rows_without_keys(fast):
    """More rows than keys under a causal mask, and no keys at all: output 0 and log-sum-exp -inf, never NaN and never a mean."""
    q, k = torch.ones(1, 40, 1, 16), torch.ones(1, 5, 1, 16)
    q, k = q.to(inputs.target.device()), k.to(inputs.target.device())
    for keys, options in ((k, {"causal": True}), (k[:, :0], {}), (k, {"window": (0, 0)}), (k, {"causal": True, "sink": q[0, 0, :, 0]})):
        o, lse = fast.forward(q, keys, keys, **options)
        empty = 40 - keys.shape[1]
        exactly(o[:, :empty], np.zeros((1, empty, 1, 16)), "output")
        exactly(lse[..., :empty], np.full((1, 1, empty), -np.inf), "log-sum-exp")
        assert torch.isfinite(lse[..., empty:]).all()
