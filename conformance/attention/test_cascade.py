"""Cascade attention: levels merge to attention over all keys, exactly; a shared prefix is read once; and the PyTorch form is bounded."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import HEADS, visible
from twofold.conformance.compare import agree
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import cascade, dense
from twofold.spec.attention.online_softmax import merge

lengths = st.lists(st.integers(0, 4), min_size=1, max_size=5)
requests = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=3)  # rows, and suffix keys beside those of the rows
DTYPES = inputs.dtypes()


def split(k, v, mask, lengths):
    """The keys, values and columns of the mask, cut into levels."""
    ends = np.cumsum(lengths)
    return [(k[end - n : end], v[end - n : end], None if mask is None else mask[:, end - n : end]) for n, end in zip(lengths, ends)]


def path_mask(rows, prefix, suffix):
    """What a request's rows see of its prefix, all, and of its suffix, up to their own positions."""
    return np.concatenate([np.ones((rows, prefix), dtype=bool), visible(rows, suffix, causal=True)], axis=1)


# The spec, without rounding


@given(inputs.seeds, st.integers(0, 4), lengths, st.sampled_from(["none", "random", "window"]), st.booleans())
@example(0, 4, [3, 2, 4], "window", True)
@example(0, 2, [0, 0], "none", True)
def test_levels_merge_to_attention_over_all_keys(seed, n_q, lengths, kind, with_sink):
    """Any levels, empty and masked ones among them, and a sink, which takes its share once. The window is narrower than the last level."""
    q, k, v = field.problem(seed, n_q, sum(lengths), 2)
    rng = np.random.default_rng(seed)
    mask = {"none": None, "random": rng.random((n_q, len(k))) < 0.5, "window": visible(n_q, len(k), True, (1, 0))}[kind]
    sink = field.logits(rng, 1)[0] if with_sink else None
    result = cascade.attention(q, split(k, v, mask, lengths), scale=1, sink=sink)
    field.exactly(result, dense.attention(q, k, v, mask=mask, scale=1, sink=sink))
    together = split(k, v, mask, [sum(lengths[:2]), *lengths[2:]])
    field.exactly(result, cascade.attention(q, together, scale=1, sink=sink), "the first two levels as one")


@given(inputs.seeds, st.integers(0, 5), requests)
@example(0, 0, [(1, 2), (1, 0)])
@example(1, 3, [])
@example(2, 1, [(1, 0), (2, 0), (1, 1)])
def test_a_shared_prefix_is_a_prefix_of_each_request(seed, prefix, requests):
    q, k, v = field.problem(seed, sum(rows for rows, _ in requests), prefix + sum(sum(request) for request in requests), 2)
    qs, ks, vs, row, key = [], [], [], 0, prefix
    for rows, more in requests:
        qs.append(q[row : row + rows])
        ks.append(k[key : key + rows + more])
        vs.append(v[key : key + rows + more])
        row, key = row + rows, key + rows + more
    results = cascade.shared_prefix(qs, k[:prefix], v[:prefix], list(zip(ks, vs)), scale=1)
    assert len(results) == len(requests)
    for q, own_k, own_v, result in zip(qs, ks, vs, results):
        whole = np.concatenate([k[:prefix], own_k]), np.concatenate([v[:prefix], own_v])
        field.exactly(result, dense.attention(q, *whole, mask=path_mask(len(q), prefix, len(own_k)), scale=1))


@given(inputs.seeds, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_a_tree_of_segments_is_its_paths(seed, root, left, right):
    """Two subtrees of two requests each under one root: every segment is attended once, by the rows of all requests below it."""
    q, k, v = field.problem(seed, 4, root + left + right + 4, 2)
    ends = np.cumsum([root, left, right, 1, 1, 1, 1])
    segments = [(k[end - n : end], v[end - n : end]) for n, end in zip(np.diff(ends, prepend=0), ends)]
    own = segments[3:]
    below = cascade.shared_prefix([q[:1], q[1:2]], *segments[1], own[:2], scale=1)
    below += cascade.shared_prefix([q[2:3], q[3:]], *segments[2], own[2:], scale=1)
    o, lse = (np.concatenate(parts) for parts in zip(*below))
    result = merge(dense.attention(q, *segments[0], scale=1), (o, lse))
    for i in range(4):
        path = [segments[0], segments[1 + i // 2], own[i]]
        whole = (np.concatenate(parts) for parts in zip(*path))
        field.exactly([x[i : i + 1] for x in result], dense.attention(q[i : i + 1], *whole, scale=1))


class Counted(np.ndarray):
    """An array that counts its elements whenever it enters a matrix product."""

    def __array_finalize__(self, parent):
        self.read = getattr(parent, "read", None)

    def __array_ufunc__(self, ufunc, method, *operands, **options):
        if ufunc is np.matmul:
            next(x for x in operands if isinstance(x, Counted)).read.extend(x.size for x in operands if isinstance(x, Counted))
        return getattr(ufunc, method)(*(x.view(np.ndarray) if isinstance(x, Counted) else x for x in operands), **options)


@given(st.integers(0, 20), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 4))
def test_traffic_is_what_a_run_reads(prefix, suffixes, d, dv):
    """The prefix enters one product with the keys and one with the values, however many requests there are."""
    read = []

    def counted(*shape):
        x = np.ones(shape).view(Counted)
        x.read = read
        return x

    cascade.shared_prefix(
        [np.ones((1, d)) for _ in suffixes], counted(prefix, d), counted(prefix, dv), [(counted(n, d), counted(n, dv)) for n in suffixes]
    )
    assert sum(read) == cascade.traffic(prefix, suffixes, d, dv)


# The implementation


def parts_stored(dtype):
    """The spec, its parts stored in the dtype of the inputs before they are merged: what the contract says."""

    def attention(q, *arrays, masks, sink, scale):
        parts = [dense.attention(q, k, v, mask=mask, scale=scale) for k, v, mask in zip(arrays[::2], arrays[1::2], masks)]
        o, lse = parts[0][0].rounded_to(dtype), parts[0][1]
        for o_next, lse_next in parts[1:]:
            o, lse = merge((o, lse), (o_next.rounded_to(dtype), lse_next))
            o = o.rounded_to(dtype)
        return dense.share(lse, sink)[:, None] * o, lse

    return attention


def held(result, dtype, q, levels, masks, sink=None, scale=None):
    """One head's output and log-sum-exp within the bound."""
    arrays = [x for level in levels for x in level]
    options = {"masks": masks, "sink": sink, "scale": scale}
    expected = bounded(parts_stored(dtype), q, *arrays, precision=Precision(dtype), outputs=(dtype, "float32"), **options)
    agree(result[0], expected[0], "output")
    agree(result[1], expected[1], "log-sum-exp")


@given(inputs.regimes, inputs.seeds, DTYPES, st.sampled_from(HEADS), inputs.layouts, st.booleans(), st.sampled_from([0, 5, 17]))
def test_levels_agree_with_the_definition(fast, regime, seed, dtype, heads, layout, with_sink, t_q):
    """A level that everybody sees, one with a window, one with a mask of pairs, one without keys, one causal."""
    sizes, (h, h_kv), d, dv = [9, 20, 6, 0, max(t_q, 3)], heads, 16, 24
    shapes = [(1, t_q, h, d)] + [(1, n, h_kv, width) for n in sizes for width in (d, dv)]
    q, *arrays = inputs.values(regime, shapes, seed, dtype)
    sink = inputs.values("normal", [(h,)], seed, "float32")[0] if with_sink else None
    pairs = np.random.default_rng(seed).random((t_q, 6)) < 0.5
    masks = [None, visible(t_q, 20, window=(4, 2)), pairs, None, visible(t_q, sizes[4], causal=True)]
    options = [None, {"window": (4, 2)}, inputs.tensor(pairs[None, None]), {}, {"causal": True}]
    given_ = [inputs.tensor(x, dtype, layout) for x in arrays]
    levels = list(zip(given_[::2], given_[1::2], options))
    o, lse = fast.attention(inputs.tensor(q, dtype, layout), levels, sink=None if sink is None else inputs.tensor(sink, "float32"))
    assert o.dtype == getattr(torch, dtype)
    for head in range(h):
        mine = [x[0, :, head // (h // h_kv)] for x in arrays]
        level = list(zip(mine[::2], mine[1::2]))
        held((o[0, :, head], lse[0, head]), dtype, q[0, :, head], level, masks, None if sink is None else float(sink[head]))


@given(inputs.regimes, inputs.seeds, DTYPES, st.sampled_from(HEADS), inputs.sizes(16), requests)
@example("normal", 0, "float32", (4, 2), 33, [(1, 0), (17, 3), (0, 2), (1, 40)])
@example("normal", 0, "bfloat16", (2, 1), 0, [(1, 5), (3, 0)])
def test_a_shared_prefix_agrees_with_the_definition(fast, regime, seed, dtype, heads, prefix, requests):
    h, h_kv = heads
    shapes = [shape for rows, more in requests for shape in ((rows, h, 16), (rows + more, h_kv, 16), (rows + more, h_kv, 8))]
    kp, vp, *arrays = inputs.values(regime, [(prefix, h_kv, 16), (prefix, h_kv, 8), *shapes], seed, dtype)
    given_ = [inputs.tensor(x, dtype) for x in arrays]
    suffixes = list(zip(given_[1::3], given_[2::3]))
    results = fast.shared_prefix(given_[::3], inputs.tensor(kp, dtype), inputs.tensor(vp, dtype), suffixes, scale=0.5)
    assert len(results) == len(requests)
    for q, k, v, (o, lse) in zip(arrays[::3], arrays[1::3], arrays[2::3], results):
        masks = [None, visible(len(q), len(k), causal=True)]
        for head in range(h):
            j = head // (h // h_kv)
            held((o[:, head], lse[head]), dtype, q[:, head], [(kp[:, j], vp[:, j]), (k[:, j], v[:, j])], masks, scale=0.5)
