"""FlashAttention-2, backward: the gradients of output and log-sum-exp, given the output and log-sum-exp that were really stored."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.problems import Problem, problems
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.spec.attention import dense, flash

exact64 = Precision("float64", "float64")


def stored(fast, problem):
    """What the implementation itself keeps from the forward pass."""
    return fast.forward(*problem.tensors(), **problem.keywords)


def run(fast, problem, o, lse, dlse=True, layout="contiguous"):
    q, k, v = problem.tensors(layout)
    do = inputs.tensor(problem.do, problem.dtype)
    dlse = inputs.tensor(problem.dlse, "float32") if dlse else None
    return fast.backward(q, k, v, o, lse, do, dlse=dlse, **problem.keywords)


def expected(problem, o, lse, dlse=True):
    """Bounds of (dq by query head, dk and dv by key head, dsink by query head); heads that share keys add up in float32."""
    o, lse = inputs.array(o), inputs.array(lse)
    dq, dkv, dsink = {}, {}, {}
    for b, h, h_kv in problem.heads:
        gradients = problem.bounds(
            flash.backward, b, h, h_kv, o[b, :, h], lse[b, h], problem.do[b, :, h],
            dlse=problem.dlse[b, h] if dlse else None, outputs="float32",
        )  # fmt: skip
        dq[b, h] = gradients[0].rounded_to(problem.dtype)
        dkv[b, h_kv] = [x + y for x, y in zip(dkv[b, h_kv], gradients[1:3])] if (b, h_kv) in dkv else gradients[1:3]
        dsink[h] = gradients[4] if h not in dsink or gradients[4] is None else dsink[h] + gradients[4]
    return dq, {key: [x.rounded_to(problem.dtype) for x in pair] for key, pair in dkv.items()}, dsink


@given(problems(), st.sampled_from([1, 2, 5, 16, 100]), st.sampled_from([1, 3, 7, 16, 100]))
def test_every_tiling_has_the_gradients_of_dense_attention(problem, block_q, block_k):
    """Law of the spec, in float64."""
    bias = np.where(problem.mask, np.random.default_rng(0).standard_normal(problem.mask.shape), -np.inf)
    b, h, h_kv = problem.heads[0]
    arrays = problem.q[b, :, h], problem.k[b, :, h_kv], problem.v[b, :, h_kv]
    do, dlse = problem.do[b, :, h], problem.dlse[b, h]
    options = {"mask": problem.mask, "softcap": problem.options["softcap"], "bias": bias}
    options |= {"sink": None if problem.sink is None else float(problem.sink[h])}
    reference = bounded(dense.backward, *arrays, do, dlse=dlse, precision=exact64, **options)
    tiles = {"block_q": block_q, "block_k": block_k}
    gradients = flash.backward(*arrays, *flash.forward(*arrays, **tiles, **options), do, dlse=dlse, **tiles, **options)
    for name, actual, bound in zip(("dq", "dk", "dv", "dbias", "dsink"), gradients, reference, strict=True):
        assert (actual is None) == (bound is None)
        if actual is not None:
            agree(np.atleast_1d(actual), bound.reshape(-1) if bound.ndim == 0 else bound, name)


@given(problems())
def test_gradients_agree_with_the_definition(fast, problem):
    o, lse = stored(fast, problem)
    dq, dk, dv, dbias, dsink = run(fast, problem, o, lse)
    reference = expected(problem, o, lse)
    for (b, h), bound in reference[0].items():
        agree(dq[b, :, h], bound, "dq")
    for (b, h_kv), bounds in reference[1].items():
        agree(dk[b, :, h_kv], bounds[0], "dk")
        agree(dv[b, :, h_kv], bounds[1], "dv")
    assert dbias is None and (dsink is None) == (problem.sink is None)
    for h, bound in reference[2].items():
        if bound is not None:
            agree(dsink[h : h + 1], bound.reshape(1), "dsink")


@given(problems(dtypes=("float32",), sink=False, softcap=False, low=1))
def test_gradients_are_conserved(fast, problem):
    """Without cap and sink the columns of dS cancel: sums over keys leave dk = scale · dlse · q and dv = do of the rows that have keys.

    In float32 only: where the stored output is rounded to 16 bits, D = do · o misses what was rounded away, by definition.
    """
    o, lse = stored(fast, problem)
    _, dk, dv, _, _ = run(fast, problem, o, lse)
    _, bounds, _ = expected(problem, o, lse)
    group = problem.q.shape[2] // problem.k.shape[2]
    some = problem.mask.any(1)
    for (b, h_kv), (dk_bound, dv_bound) in bounds.items():
        heads = range(h_kv * group, (h_kv + 1) * group)
        law_k = sum(problem.q.shape[3] ** -0.5 * (problem.dlse[b, h] * some) @ problem.q[b, :, h] for h in heads)
        law_v = sum(some @ problem.do[b, :, h] for h in heads)
        for actual, bound, law, name in ((dk, dk_bound, law_k, "sum of dk"), (dv, dv_bound, law_v, "sum of dv")):
            total = np.sum(bound, axis=0)
            agree(inputs.array(actual[b, :, h_kv]).sum(0), Rounded(law, total.error, precision=total.precision), name)


@given(problems(dtypes=("float32", "bfloat16"), sink=False, softcap=False))
def test_mask_tomography_of_the_gradient(fast, problem):
    """q = 0 makes every weight 1 / number of keys; a one-hot gradient times that number returns the columns of the mask in dv."""
    t_q, (kv_heads, width) = problem.q.shape[1], problem.v.shape[2:]
    problem.q, problem.dlse = np.zeros_like(problem.q), np.zeros_like(problem.dlse)
    seen, count = problem.mask, problem.mask.sum(1)
    group = problem.q.shape[2] // kv_heads
    o, lse = stored(fast, problem)
    for start in range(0, t_q, width):
        hot = np.zeros((t_q, width))
        rows = np.arange(start, min(start + width, t_q))
        hot[rows, rows - start] = 1.0 if problem.dtype == "float32" else 64.0
        scale = hot.max(initial=1.0)
        problem.do = np.broadcast_to(hot[None, :, None], problem.do.shape).copy()
        _, _, dv, _, _ = run(fast, problem, o, lse)
        read = np.rint(inputs.array(dv)[..., : len(rows)] / (scale * group) * count[rows])
        exactly(read, np.broadcast_to(seen[rows].T[None, :, None, :], read.shape).astype(float), "rows that read each key")


@given(problems(dtypes=("float32", "bfloat16"), low=2))
def test_pairs_outside_the_mask_have_no_gradient(fast, problem):
    """Keys that no row sees get exactly 0, even where they are NaN; rows that see no key get and give exactly 0."""
    unread, empty = ~problem.mask.any(0), ~problem.mask.any(1)
    before = run(fast, problem, *stored(fast, problem))
    problem.k[:, unread], problem.v[:, unread] = np.nan, np.nan
    after = run(fast, problem, *stored(fast, problem))
    for name, x, y in zip(("dq", "dk", "dv"), before, after):
        exactly(x, y, name)
    exactly(before[0][:, empty], np.zeros(before[0][:, empty].shape), "dq of rows without keys")
    for x in before[1:3]:
        exactly(x[:, unread], np.zeros(x[:, unread].shape), "dk, dv of keys that no row sees")


@given(problems(), inputs.layouts)
def test_two_runs_are_bit_equal_in_any_layout(fast, problem, layout):
    o, lse = stored(fast, problem)
    for x, y in zip(run(fast, problem, o, lse), run(fast, problem, o, lse, layout=layout), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            exactly(x, y, f"{layout} run")


@given(problems(low=1), st.sampled_from(["o", "lse", "both"]))
def test_autograd_is_backward(fast, problem, used):
    """Both results of forward are differentiable, alone and together; what a gradient is not asked of stays None."""
    leaves = [x.requires_grad_() for x in problem.tensors()]
    keywords = problem.keywords
    if problem.sink is not None:
        leaves.append(keywords["sink"].requires_grad_())
    o, lse = fast.forward(*leaves[:3], **keywords)
    do, dlse = inputs.tensor(problem.do, problem.dtype), inputs.tensor(problem.dlse, "float32")
    outputs = {"o": ([o], [do]), "lse": ([lse], [dlse]), "both": ([o, lse], [do, dlse])}[used]
    gradients = torch.autograd.grad(*outputs[:1], leaves, *outputs[1:])
    do = torch.zeros_like(do) if used == "lse" else do
    detached = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in keywords.items()}
    arguments = [x.detach() for x in (*leaves[:3], o, lse)]
    direct = fast.backward(*arguments, do, dlse=None if used == "o" else dlse, **detached)
    for name, x, y in zip(("dq", "dk", "dv", "dsink"), gradients, (*direct[:3], direct[4])):
        exactly(x, y, name)


@given(inputs.seeds, st.sampled_from(["float32", "bfloat16"]))
def test_a_saturated_cap_has_no_gradient(fast, seed, dtype):
    """Logits far beyond the cap sit where tanh is flat: dq and dk are exactly 0, dv is not."""
    v, do = inputs.values("normal", [(1, 9, 1, 16), (1, 5, 1, 16)], seed, dtype)
    q, k, v, do = (inputs.tensor(x, dtype) for x in (np.full((1, 5, 1, 16), 8.0), np.full((1, 9, 1, 16), 8.0), v, do))
    o, lse = fast.forward(q, k, v, softcap=1.0)
    dq, dk, dv, _, _ = fast.backward(q, k, v, o, lse, do, softcap=1.0)
    exactly(dq, np.zeros(dq.shape), "dq")
    exactly(dk, np.zeros(dk.shape), "dk")
    assert (dv != 0).any()


@given(inputs.seeds, st.sampled_from([-200.0, -90.0, 90.0, 200.0]))
def test_a_sink_far_from_every_logit(fast, seed, z):
    """Far below, it is absent; far above, only the log-sum-exp has gradients. Neither overflows."""
    q, k, v, do, dlse = inputs.values("normal", [(1, 5, 1, 16), (1, 9, 1, 16), (1, 9, 1, 16), (1, 5, 1, 16), (1, 1, 5)], seed, "float32")
    q, k, v, do, dlse = (inputs.tensor(x, "float32") for x in (q, k, v, do, dlse))
    sink = torch.full((1,), z, device=q.device)
    o, lse = fast.forward(q, k, v, sink=sink)
    with_sink = fast.backward(q, k, v, o, lse, do, dlse=dlse, sink=sink)
    share = 1.0 if z < 0 else 0.0
    without = fast.backward(q, k, v, o, lse, share * do, dlse=dlse)
    for name, x, y in zip(("dq", "dk", "dv"), with_sink, without):
        if share or name != "dv":
            exactly((x - y).abs() <= 2.0**-16 * (1 + y.abs()), torch.ones_like(x, dtype=torch.bool), name)
    assert with_sink[4].abs().max() < 2.0**-60


@pytest.mark.parametrize(("t_q", "t_k", "window"), [(3, 1100, None), (3, 1100, (1090, None)), (150, 150, (None, 0)), (140, 600, (70, 3))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_tiles(fast, t_q, t_k, window, dtype):
    """Sequences longer than any tile: maxima, sums and gradients are carried from tile to tile; the largest logit comes late."""
    shapes = [(1, t_q, 2, 16), (1, t_k, 1, 16), (1, t_k, 1, 16), (1, t_q, 2, 16), (1, 2, t_q)]
    q, k, v, do, dlse = inputs.values("normal", shapes, t_k, dtype)
    k = inputs.rounded(k * np.linspace(0.25, 4, t_k)[None, :, None, None], dtype)
    problem = Problem(q, k, v, do, dlse, None, dtype, {"causal": False, "window": window, "softcap": None})
    o, lse = stored(fast, problem)
    dq, dk, dv, _, _ = run(fast, problem, o, lse)
    reference = expected(problem, o, lse)
    for b, h, h_kv in problem.heads:
        bounds = problem.bounds(dense.attention, b, h, h_kv, outputs=(dtype, "float32"))
        agree(o[b, :, h], bounds[0], "output")
        agree(lse[b, h], bounds[1], "log-sum-exp")
        agree(dq[b, :, h], reference[0][b, h], "dq")
    agree(dk[0, :, 0], reference[1][0, 0][0], "dk")
    agree(dv[0, :, 0], reference[1][0, 0][1], "dv")
