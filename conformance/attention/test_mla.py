"""Multi-head latent attention: the expanded and the absorbed form are one function, positions count by their differences."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.decoding import demand_pages_are_rows
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import flash, mla

SIZES = st.sampled_from([(1, 16, 16, 8, 8), (3, 24, 8, 8, 16), (2, 33, 16, 0, 5)])  # heads, d_c, d_n, d_R, d_v
OPTIONS = st.sampled_from([{}, {"causal": True}, {"causal": True, "window": (5, None)}])
exact64 = Precision("float64", "float64")


def arrays(seed, sizes, n_q, n_k, dtype="float64"):
    """qn (H, Nq, d_n), qr (H, Nq, d_R), c (Nk, d_c), kr (Nk, d_R), w_uk (H, d_n, d_c), w_uv (H, d_v, d_c); projections of unit gain."""
    h, d_c, d_n, d_r, d_v = sizes
    shapes = [(h, n_q, d_n), (h, n_q, d_r), (n_k, d_c), (n_k, d_r), (h, d_n, d_c), (h, d_v, d_c)]
    qn, qr, c, kr, w_uk, w_uv = inputs.values("normal", shapes, seed)
    return [inputs.rounded(x, dtype) for x in (qn, qr, c, kr, w_uk * d_c**-0.5, w_uv * d_c**-0.5)]


def tensors(qn, qr, c, kr, w_uk, w_uv, dtype="float32"):
    heads_last = [x.swapaxes(0, 1)[None] for x in (qn, qr)]
    return [inputs.tensor(x, dtype) for x in (*heads_last, c[None], kr[None], w_uk, w_uv)]


@given(inputs.seeds, SIZES, st.integers(1, 6), st.integers(0, 9), st.sampled_from([None, 0.3]))
def test_absorbing_the_projections_changes_nothing(seed, sizes, n_q, n_k, scale):
    """Log-sum-exp included; the default scale is that of the wide keys, not of the latents."""
    case, options = arrays(seed, sizes, n_q, n_k), {"mask": visible(n_q, n_k, True), "scale": scale}
    expected = bounded(mla.expand, *case, precision=exact64, **options)
    for actual, right, what in zip(mla.absorb(*case, **options), expected, ("output", "log-sum-exp"), strict=True):
        agree(actual, right, what)


@given(inputs.seeds, st.integers(0, 4), st.integers(0, 9), st.integers(1, 5), st.booleans())
@example(0, 3, 5, 2, True)
def test_the_seesaw_is_a_reordering(seed, n_q, n_k, block, masked):
    """Without rounding, odd numbers of tiles and rows without keys included."""
    q, k, v = field.problem(seed, n_q, n_k, 3)
    mask = np.random.default_rng(seed).random((n_q, n_k)) < 0.5 if masked else None
    expected = flash.forward(q, k, v, block_q=max(n_q, 1), block_k=block, mask=mask, scale=1)
    field.exactly(mla.seesaw(q, k, v, block=block, mask=mask, scale=1), expected)


def projections(seed, sizes, width=12, d_q=10):
    h, d_c, d_n, d_r, _ = sizes
    shapes = [(d_c, width), (d_c,), (d_r, width), (d_q, width), (d_q,), (h, d_n + d_r, d_q)]
    w_dkv, gain_c, w_kr, w_dq, gain_q, w_uq = inputs.values("normal", shapes, seed, "float32")
    return {"w_dkv": w_dkv, "gain": gain_c, "w_kr": w_kr}, {"w_dq": w_dq, "gain": gain_q, "w_uq": w_uq, "d_rope": d_r}


@given(inputs.seeds, SIZES, st.booleans(), st.sampled_from([1, 7, 1000]))
def test_only_differences_of_positions_count(seed, sizes, interleaved, shift):
    """All positions later by the same: the same attention. Without rotated dimensions they do not count at all; with them they do."""
    down, up = projections(seed, sizes)
    (h,) = inputs.values("normal", [(6, 12)], seed + 1)
    *_, w_uk, w_uv = arrays(seed + 2, sizes, 1, 1)

    def attend(h, pos):
        cache = mla.compress(h, pos, **down, interleaved=interleaved)
        return mla.absorb(*mla.queries(h, pos, **up, interleaved=interleaved), *cache, w_uk, w_uv)[0]

    pos = np.arange(6.0)  # as real numbers, so that the rounding of angles, which are as large as the shift, is in the bound
    here, later, back = (bounded(attend, h, at, precision=exact64) for at in (pos, pos + shift, pos[::-1]))
    coincide(later, here, "later by the same")
    assert np.all(np.abs(back.value - here.value) <= back.error + here.error) == (sizes[3] == 0)


def test_rotations_by_hand():
    """Both layouts turn by t base^(-2i/d): at position 1 by 1 and 1/100 radians, in pairs (0, 1), (2, 3) or (0, 2), (1, 3)."""
    one, identity = np.array([[1.0, 0.0, 1.0, 0.0]]), np.eye(4)
    a, b = (np.cos(1), np.sin(1)), (np.cos(0.01), np.sin(0.01))
    for interleaved, expected in ((True, [*a, *b]), (False, [a[0] - a[1], 0, a[0] + a[1], 0])):
        _, kr = mla.compress(one, np.array([1]), w_dkv=identity, gain=np.ones(4), w_kr=identity, interleaved=interleaved)
        assert np.allclose(kr[0], expected, rtol=0, atol=2.0**-50)


@given(inputs.seeds, SIZES)
def test_heads_with_equal_projections_are_equal(seed, sizes):
    qn, qr, c, kr, w_uk, w_uv = arrays(seed, sizes, 3, 5)
    repeated = [np.repeat(x[:1], 2, axis=0) for x in (qn, qr, w_uk, w_uv)]
    o, lse = mla.expand(*repeated[:2], c, kr, *repeated[2:])
    exactly(o[0], o[1], "output")
    exactly(lse[0], lse[1], "log-sum-exp")


@given(inputs.seeds, SIZES, st.sampled_from([1, 5, 17]), st.sampled_from([1, 17, 40]), OPTIONS, st.sampled_from(["float32", "bfloat16"]))
@example(0, (3, 24, 8, 8, 16), 5, 40, {"causal": True}, "bfloat16")
@example(0, (2, 33, 16, 0, 5), 17, 40, {"causal": True, "window": (5, None)}, "float32")
def test_both_forms_agree_with_their_own_definition(fast, seed, sizes, n_q, n_k, options, dtype):
    """They round differently, so each is held to the bound of its own text."""
    case = arrays(seed, sizes, n_q, n_k, dtype)
    mask = visible(n_q, n_k, options.get("causal", False), options.get("window"))
    for form in ("expand", "absorb"):
        o, lse = getattr(fast, form)(*tensors(*case, dtype=dtype), **options)
        expected = bounded(getattr(mla, form), *case, precision=Precision(dtype), outputs=(dtype, "float32"), mask=mask)
        agree(o[0].transpose(0, 1), expected[0], f"output, {form}")
        agree(lse[0], expected[1], f"log-sum-exp, {form}")


@given(inputs.seeds, SIZES, st.booleans(), st.sampled_from([0, 1000]))
def test_projections_agree_with_the_definition(fast, seed, sizes, interleaved, first):
    down, up = projections(seed, sizes)
    (h,) = inputs.values("normal", [(5, 12)], seed + 1, "float32")
    pos = np.arange(5) + first
    on_device = lambda options: {name: x if name == "d_rope" else inputs.tensor(x, "float32") for name, x in options.items()}
    for form, options in (("compress", down), ("queries", up)):
        results = getattr(fast, form)(inputs.tensor(h[None], "float32"), inputs.tensor(pos), **on_device(options), interleaved=interleaved)
        expected = bounded(getattr(mla, form), h, pos, precision=Precision("float32"), interleaved=interleaved, **options)
        for actual, right in zip(results, expected, strict=True):
            agree(actual[0] if form == "compress" else actual[0].transpose(0, 1), right, form)


@given(inputs.seeds, st.sampled_from([1, 3, 16, 48]))
def test_latents_in_pages_are_latents_in_rows(fast, seed, page):
    cases = [arrays(seed + i, (3, 24, 8, 8, 16), 2, 50, "float32") for i in range(4)]
    qn, qr, c, kr = (torch.cat([tensors(*case)[i] for case in cases]) for i in range(4))
    form = lambda c, kr, **where: fast.absorb(qn, qr, c, kr, *tensors(*cases[0])[4:], causal=True, **where)
    o, _ = demand_pages_are_rows(form, [inputs.array(c), inputs.array(kr)], [0, 17, 50, 3], page, seed)
    exactly(o[0], np.zeros(o[0].shape), "a sequence of no tokens")


def test_gradients_of_the_expanded_form_reach_every_argument(fast):
    """By finite differences of the definition, in a direction that touches all arguments."""
    case = arrays(0, (2, 16, 8, 8, 16), 4, 6, "float32")
    leaves = [x.requires_grad_() for x in tensors(*case)]
    o, lse = fast.expand(*leaves, causal=True)
    gradients = torch.autograd.grad((o.sum() + lse.sum()), leaves)
    value = lambda arrays: sum(x.sum() for x in mla.expand(*arrays, mask=visible(4, 6, True)))
    for i, gradient in enumerate(gradients):
        direction = np.random.default_rng(i).standard_normal(case[i].shape)
        moved = [[x + sign * 1e-6 * direction if j == i else x for j, x in enumerate(case)] for sign in (1, -1)]
        slope = (value(moved[0]) - value(moved[1])) / 2e-6
        ours = inputs.array(gradient[0].transpose(0, 1) if i < 2 else gradient[0] if i < 4 else gradient)  # as the definition has it
        ours = (ours * direction).sum()
        assert abs(ours - slope) <= 2.0**-24 * 2**10 * (1 + abs(slope)), f"argument {i}: {ours} instead of {slope}"


def test_wrong_arguments_are_named(fast):
    case = tensors(*arrays(0, (2, 16, 8, 8, 16), 2, 4, "float32"))
    qn, qr, c, kr, w_uk, w_uv = case
    table = torch.zeros(1, 1, dtype=torch.int32, device=qn.device)
    wide = qn, qr, c.repeat(1, 1, 40), kr, w_uk.repeat(1, 1, 40), w_uv.repeat(1, 1, 40)
    for call, error, name in (
        (lambda: fast.expand(qn, qr, c, kr[:, :3], w_uk, w_uv), ValueError, "kr"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk[:1], w_uv), ValueError, "w_uk"),
        (lambda: fast.absorb(qn, qr, c.double(), kr, w_uk, w_uv), TypeError, "c"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, scale=float("nan")), ValueError, "scale"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, size=0), ValueError, "size"),
        (lambda: fast.absorb(*wide), ValueError, "c must"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, table=table), ValueError, "length"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, length=torch.ones(2, dtype=torch.int32, device=qn.device)), ValueError, "length"),
        (lambda: fast.queries(c, torch.arange(4), w_dq=w_uk[0], gain=c[0, 0, :8], w_uq=w_uv[:, :, :8], d_rope=17), ValueError, "d_rope"),
        (lambda: fast.compress(c, torch.arange(3), w_dkv=w_uk[0], gain=c[0, 0, :8], w_kr=w_uk[0]), ValueError, "pos"),
        (lambda: fast.compress(c, torch.arange(4.0), w_dkv=w_uk[0], gain=c[0, 0, :8], w_kr=w_uk[0]), TypeError, "pos"),
        (lambda: fast.compress(c, torch.arange(4), w_dkv=w_uk[0].double(), gain=c[0, 0, :8], w_kr=w_uk[0]), TypeError, "w_dkv"),
    ):
        with pytest.raises(error, match=name):
            call()
