"""Grouped-tied attention: the tied half is not rotated, both uses of a state return their gradient, the cache is enough."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.decoding import demand_pages_are_rows
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import grouped, grouped_tied

SIZES = st.sampled_from([(1, 1, 16, 8), (4, 2, 16, 8), (6, 2, 33, 16), (3, 1, 8, 0), (2, 2, 8, 8)])  # H, Hkv, d, d_R
exact64 = Precision("float64", "float64")
OPTIONS = st.sampled_from([{}, {"causal": True}, {"causal": True, "window": (5, None)}])


def arrays(seed, sizes, n_q, n_k, dtype="float64"):
    """q (H, Nq, d), x (Hkv, Nk, d), kr (Nk, d_R)."""
    h, h_kv, d, d_r = sizes
    return inputs.values("normal", [(h, n_q, d), (h_kv, n_k, d), (n_k, d_r)], seed, dtype)


def tensors(q, x, kr, dtype="float32"):
    return [inputs.tensor(y, dtype) for y in (*(y.swapaxes(0, 1)[None] for y in (q, x)), kr[None])]


def projections(seed, sizes, width=12):
    h, h_kv, d, d_r = sizes
    w_q, w_x, w_kr = inputs.values("normal", [(h, d, width), (h_kv, d, width), (d_r, width)], seed, "float32")
    return {"w_q": w_q, "d_rope": d_r}, {"w_x": w_x, "w_kr": w_kr}


@given(inputs.seeds, SIZES, st.integers(1, 6), st.integers(0, 9))
def test_keys_stored_apart_give_the_same(seed, sizes, n_q, n_k):
    """Grouped attention whose keys are written out: the first channels those of the value, the last ones those of one rotated key."""
    q, x, kr = arrays(seed, sizes, n_q, n_k)
    kept, mask = sizes[2] - sizes[3], visible(n_q, n_k, True)
    k = np.empty_like(x)
    k[:, :, :kept], k[:, :, kept:] = x[:, :, :kept], kr
    for one, other in zip(grouped_tied.cached(q, x, kr, mask=mask), grouped.attention(q, k, x, mask=mask), strict=True):
        exactly(one, other)


@given(inputs.seeds, SIZES, st.booleans(), st.sampled_from([0, 1, 1000]))
def test_projections_agree_with_the_definition(fast, seed, sizes, interleaved, first):
    """Values do not know where they stand; keys know it in their last channels only, the same for every head."""
    ask, keep = projections(seed, sizes)
    (h,) = inputs.values("normal", [(5, 12)], seed + 1, "float32")
    pos = np.arange(5) + first
    place = lambda options: {name: x if name == "d_rope" else inputs.tensor(x, "float32") for name, x in options.items()}
    tensor = inputs.tensor(h[None], "float32"), inputs.tensor(pos)
    k, v = fast.project(*tensor, **place(keep), interleaved=interleaved)
    q = fast.queries(*tensor, **place(ask), interleaved=interleaved)
    options = {"precision": Precision("float32"), "interleaved": interleaved}
    expected = bounded(grouped_tied.project, h, pos, **keep, **options)
    for actual, right, what in zip((k, v), expected, ("keys", "values"), strict=True):
        agree(actual[0].transpose(0, 1), right, what)
    agree(q[0].transpose(0, 1), bounded(grouped_tied.queries, h, pos, **ask, **options), "queries")
    kept = sizes[2] - sizes[3]
    exactly(k[..., :kept], v[..., :kept], "tied channels")
    for head in range(1, sizes[1]):
        exactly(k[:, :, head, kept:], k[:, :, 0, kept:], "rotated key")
    exactly(grouped_tied.project(h, pos + 7, **keep)[1], grouped_tied.project(h, pos, **keep)[1], "values elsewhere")


@given(inputs.seeds, SIZES, st.booleans(), st.sampled_from([1, 7, 1000]))
def test_only_differences_of_positions_count(seed, sizes, interleaved, shift):
    ask, keep = projections(seed, sizes)
    (h,) = inputs.values("normal", [(6, 12)], seed + 1)

    def attend(h, pos):
        k, v = grouped_tied.project(h, pos, **keep, interleaved=interleaved)
        return grouped_tied.attention(grouped_tied.queries(h, pos, **ask, interleaved=interleaved), k, v)[0]

    pos = np.arange(6.0)  # as real numbers, so that the rounding of angles, which are as large as the shift, is in the bound
    here, later, back = (bounded(attend, h, at, precision=exact64) for at in (pos, pos + shift, pos[::-1]))
    coincide(later, here, "later by the same")
    assert np.all(np.abs(back.value - here.value) <= back.error + here.error) == (sizes[3] == 0)


@given(inputs.seeds, st.integers(2, 9))
def test_a_number_added_to_all_states_moves_more_than_the_output(seed, n_k):
    """For untied values it would be added to the output and nothing else; here it is in the keys, too, and each query sees it alike."""
    q, x, kr = arrays(seed, (2, 1, 16, 8), 3, n_k)
    moved = bounded(lambda q, x, kr: grouped_tied.cached(q, x + 1, kr), q, x, kr, precision=exact64)

    def by_hand(q, x, kr):
        o, lse = grouped_tied.cached(q, x, kr)
        return o + 1, lse + np.sum(q[:, :, :8], axis=2) / 4

    for one, other, what in zip(moved, bounded(by_hand, q, x, kr, precision=exact64), ("output", "log-sum-exp"), strict=True):
        coincide(one, other, what)


@given(inputs.seeds, SIZES, st.sampled_from([1, 5, 17]), st.sampled_from([1, 17, 40]), OPTIONS, st.sampled_from(["float32", "bfloat16"]))
@example(0, (4, 2, 16, 8), 5, 40, {"causal": True}, "bfloat16")
@example(0, (6, 2, 33, 16), 17, 40, {"causal": True, "window": (5, None)}, "float32")
def test_both_ways_agree_with_the_definition(fast, seed, sizes, n_q, n_k, options, dtype):
    """From keys and values, and from the cache."""
    case = arrays(seed, sizes, n_q, n_k, dtype)
    mask = visible(n_q, n_k, options.get("causal", False), options.get("window"))
    expected = bounded(grouped_tied.cached, *case, precision=Precision(dtype), outputs=(dtype, "float32"), mask=mask)
    q, x, kr = tensors(*case, dtype=dtype)
    kept = sizes[2] - sizes[3]
    k = torch.cat([x[..., :kept], kr[:, :, None].expand(-1, -1, sizes[1], -1)], 3)
    for o, lse in (fast.attention(q, k, x, **options), fast.cached(q, x, kr, **options)):
        agree(o[0].transpose(0, 1), expected[0], "output")
        agree(lse[0], expected[1], "log-sum-exp")


@given(inputs.seeds, st.sampled_from([1, 3, 16, 48]))
def test_states_in_pages_are_states_in_rows(fast, seed, page):
    cases = [tensors(*arrays(seed + i, (4, 2, 16, 8), 2, 50, "float32")) for i in range(4)]
    q, x, kr = (torch.cat([case[i] for case in cases]) for i in range(3))
    form = lambda x, kr, **where: fast.cached(q, x, kr, causal=True, **where)
    demand_pages_are_rows(form, [inputs.array(x), inputs.array(kr)], [0, 17, 50, 3], page, seed)


def test_gradients_of_a_state_come_from_both_of_its_uses(fast):
    """By finite differences of the definition, through projections, keys and values."""
    ask, keep = projections(0, (4, 2, 16, 8))
    (h,) = inputs.values("normal", [(6, 12)], 1, "float32")
    case, pos = [h, keep["w_x"], keep["w_kr"], ask["w_q"]], np.arange(6)

    def value(h, w_x, w_kr, w_q):
        k, v = grouped_tied.project(h, pos, w_x=w_x, w_kr=w_kr)
        q = grouped_tied.queries(h, pos, w_q=w_q, d_rope=8)
        return sum(y.sum() for y in grouped_tied.attention(q, k, v, mask=visible(6, 6, True)))

    leaves = [inputs.tensor(y[None] if i == 0 else y, "float32").requires_grad_() for i, y in enumerate(case)]
    places = inputs.tensor(pos)
    k, v = fast.project(leaves[0], places, w_x=leaves[1], w_kr=leaves[2])
    o, lse = fast.attention(fast.queries(leaves[0], places, w_q=leaves[3], d_rope=8), k, v, causal=True)
    for i, gradient in enumerate(torch.autograd.grad(o.sum() + lse.sum(), leaves)):
        direction = np.random.default_rng(i).standard_normal(case[i].shape)
        moved = [[y + sign * 1e-6 * direction if j == i else y for j, y in enumerate(case)] for sign in (1, -1)]
        slope = (value(*moved[0]) - value(*moved[1])) / 2e-6
        ours = (inputs.array(gradient[0] if i == 0 else gradient) * direction).sum()
        assert abs(ours - slope) <= 2.0**-24 * 2**14 * (1 + abs(slope)), f"argument {i}: {ours} instead of {slope}"


def test_wrong_arguments_are_named(fast):
    q, x, kr = tensors(*arrays(0, (4, 2, 16, 8), 2, 4, "float32"))
    table = torch.zeros(1, 1, dtype=torch.int32, device=q.device)
    h, pos = torch.zeros(1, 4, 12, device=q.device), torch.arange(4, device=q.device)
    weights = torch.zeros(2, 16, 12, device=q.device)
    for call, error, name in (
        (lambda: fast.cached(q[:, :, :3], x, kr), ValueError, "q"),
        (lambda: fast.cached(q, x[..., :8], kr), ValueError, "x"),
        (lambda: fast.cached(q, x, kr[:, :3]), ValueError, "kr"),
        (lambda: fast.cached(q, x, torch.zeros(1, 4, 17, device=q.device)), ValueError, "kr"),
        (lambda: fast.cached(q, x.double(), kr), TypeError, "x"),
        (lambda: fast.cached(q, x, kr, scale=0.0), ValueError, "scale"),
        (lambda: fast.cached(q, x, kr, size=0), ValueError, "size"),
        (lambda: fast.cached(q, x, kr, table=table), ValueError, "length"),
        (lambda: fast.queries(h, pos, w_q=weights, d_rope=17), ValueError, "d_rope"),
        (lambda: fast.project(h, pos, w_x=weights, w_kr=torch.zeros(18, 12, device=q.device)), ValueError, "w_kr"),
        (lambda: fast.project(h, pos[:3], w_x=weights, w_kr=weights[0]), ValueError, "pos"),
    ):
        with pytest.raises(error, match=name):
            call()
