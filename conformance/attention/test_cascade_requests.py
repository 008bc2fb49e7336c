"""Cascade attention: which keys each request reads, one pass for the prefix, gradients, edges, and errors that name the argument."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense

requests = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=3)  # rows, and suffix keys beside those of the rows


def ones(*shape):
    return torch.ones(*shape, device=inputs.target.device())


@given(st.integers(0, 9), requests)
@example(5, [(1, 0), (3, 2), (0, 4), (2, 0)])
def test_each_request_reads_the_prefix_and_its_own_keys(fast, prefix, requests):
    """Tomography: q = 0, and values that name every key in the batch; a request that read another's suffix would show it."""
    total = prefix + sum(sum(request) for request in requests)
    names = torch.eye(max(total, 1), device=inputs.target.device())[:, None]  # (keys, 1, names)
    suffixes, starts, at = [], [], prefix
    for rows, more in requests:
        suffixes.append((ones(rows + more, 1, 4), names[at : at + rows + more]))
        starts.append(at)
        at += rows + more
    qs = [0 * ones(rows, 2, 4) for rows, _ in requests]
    for (rows, more), start, (o, lse) in zip(requests, starts, fast.shared_prefix(qs, ones(prefix, 1, 4), names[:prefix], suffixes)):
        seen = np.zeros((rows, max(total, 1)))
        seen[:, :prefix] = 1
        seen[:, start : start + rows + more] = visible(rows, rows + more, causal=True)
        count = seen.sum(1)
        for head in range(2):
            exactly(np.rint(inputs.array(o[:, head]) * count[:, None]), seen, "keys read")
            exactly(np.rint(np.exp(inputs.array(lse[head]))), count, "number of keys")


@pytest.mark.skipif(target.target() != target.OURS, reason="our own passes are counted")
def test_the_prefix_takes_one_pass_for_all_rows(fast, monkeypatch):
    from twofold.fast.attention import flash

    passes, forward = [], flash.forward
    monkeypatch.setattr(flash, "forward", lambda q, k, v, **options: passes.append((q.shape[1], k)) or forward(q, k, v, **options))
    kp = ones(6, 1, 4)
    fast.shared_prefix([ones(n, 2, 4) for n in (1, 3, 2)], kp, kp, [(ones(3, 1, 4), ones(3, 1, 4))] * 3)
    assert [rows for rows, k in passes if k.data_ptr() == kp.data_ptr()] == [6]


def test_levels_without_a_visible_key_change_nothing(fast):
    """A window that ends inside the last level leaves the others empty: by a mask, by having no keys. Not one bit changes."""
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", [(1, 5, 2, 8), (1, 7, 1, 8), (1, 7, 1, 8)], 0))
    nobody = torch.zeros(1, 1, 1, 3, dtype=torch.bool, device=q.device)
    last = (k, v, {"causal": True, "window": (1, 0)})
    for others in ([(k[:, :3], v[:, :3], nobody)], [(k[:, :0], v[:, :0], None)], [(k[:, :3], v[:, :3], nobody)] * 2):
        for levels in ([*others, last], [last, *others]):
            for x, y in zip(fast.attention(q, levels), fast.attention(q, [last]), strict=True):
                exactly(x, y, "with empty levels")
    o, lse = fast.attention(q, [(k[:, :3], v[:, :3], nobody), (k[:, :0], v[:, :0], None)], sink=ones(2))
    exactly(o, np.zeros((1, 5, 2, 8)), "all levels empty")
    exactly(lse, np.full((1, 2, 5), -np.inf), "log-sum-exp, all levels empty")


@given(inputs.seeds, st.sampled_from([0, 5, 20]), st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=2))
def test_gradients_flow_through_merging(fast, seed, prefix, requests):
    """To queries, suffixes, and, from all requests, to the prefix: those of attention over the whole, in float32."""
    shapes = [shape for rows, more in requests for shape in ((rows, 2, 8), (rows + more, 1, 8), (rows + more, 1, 8))]
    kp, vp, *arrays = inputs.values("normal", [(prefix, 1, 8), (prefix, 1, 8), *shapes], seed, "float32")
    leaves = [inputs.tensor(x, "float32").requires_grad_() for x in (kp, vp, *arrays)]
    results = fast.shared_prefix(leaves[2::3], *leaves[:2], list(zip(leaves[3::3], leaves[4::3])))
    rng = np.random.default_rng(seed)
    cotangents = [(rng.integers(-2, 3, o.shape).astype(float), rng.integers(-2, 3, lse.shape).astype(float)) for o, lse in results]
    flat = [inputs.tensor(x, "float32") for pair in cotangents for x in pair]
    gradients = torch.autograd.grad([x for pair in results for x in pair], leaves, flat)
    into_prefix = []
    for i, (do, dlse) in enumerate(cotangents):
        q, k, v = arrays[3 * i : 3 * i + 3]
        whole = np.concatenate([kp, k])[:, 0], np.concatenate([vp, v])[:, 0]
        mask = np.concatenate([np.ones((len(q), prefix), dtype=bool), visible(len(q), len(k), causal=True)], axis=1)
        heads = [
            bounded(dense.backward, q[:, h], *whole, do[:, h], dlse=dlse[h], mask=mask, precision=Precision("float32")) for h in range(2)
        ]
        for h in range(2):
            agree(gradients[2 + 3 * i][:, h], heads[h][0], "dq")
        sums = [x + y for x, y in zip(heads[0][1:3], heads[1][1:3])]
        into_prefix = [x + y[:prefix] for x, y in zip(into_prefix, sums)] or [y[:prefix] for y in sums]
        for name, actual, bound in zip(("dk", "dv"), gradients[3 + 3 * i : 5 + 3 * i], sums, strict=True):
            agree(actual[:, 0], bound[prefix:], name)
    for name, actual, bound in zip(("dk", "dv"), gradients[:2], into_prefix, strict=True):
        agree(actual[:, 0], bound, f"{name} of the prefix")


def test_inputs_are_unchanged_and_no_requests_pass(fast):
    assert fast.shared_prefix([], ones(3, 1, 4), ones(3, 1, 4), []) == []
    assert fast.traffic(1000, [10, 20], 64, 32) == 1030 * 96
    q, k = ones(1, 3, 2, 4), ones(1, 3, 1, 4)
    fast.attention(q, [(k, k, None), (k, k, {"causal": True})], sink=ones(2))
    assert all((x == 1).all() for x in (q, k))


def test_errors_name_the_argument(fast):
    q, k = ones(1, 3, 2, 4), ones(1, 5, 1, 4)
    for levels, options, error, name in (
        ([], {}, ValueError, "levels"),
        ([(k, k)], {}, TypeError, r"levels\[0\]"),
        ([(k, k, None), (k, k, {"left": 3})], {}, TypeError, r"levels\[1\]"),
        ([(k, k, True)], {}, TypeError, r"levels\[0\]"),
        ([(k, k[:, :2], None)], {}, ValueError, "v"),
        ([(k, k, k)], {}, ValueError, "mask"),
        ([(k, k, None)], {"sink": ones(3)}, ValueError, "sink"),
        ([(k, k, None)], {"scale": -1.0}, ValueError, "scale"),
    ):
        with pytest.raises(error, match=f"^{name}"):
            fast.attention(q, levels, **options)
    suffix = (k[0], k[0])
    for qs, prefix, suffixes, error, name in (
        ([q[0]], (k[0], k[0]), [], ValueError, "suffixes"),
        ([q[0]], (k[0], k[0]), [(k[0],)], TypeError, r"suffixes\[0\]"),
        ([q[0]], (k[0], k[0]), [(k[0, :2], k[0, :2])], ValueError, r"qs\[0\]"),
        ([q[0], q], (k[0], k[0]), [suffix, suffix], ValueError, r"qs\[1\]"),
        ([q[0]], (k[0], k[0, :2]), [suffix], ValueError, "vp"),
        ([q[0].half()], (k[0], k[0]), [suffix], TypeError, r"qs\[0\]"),
        ([q[0]], (k[0], k[0]), [(k[0], k[0, :2])], ValueError, r"suffixes\[0\]"),
    ):
        with pytest.raises(error, match=f"^{name}"):
            fast.shared_prefix(qs, *prefix, suffixes)
