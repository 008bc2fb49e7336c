"""Grouped latent attention: with one latent it is MLA, with several each group is one of its own, and the absorbed form is the same."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.decoding import demand_pages_are_rows
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import grouped_latent, mla

# h_c, H, d_c, d_n, d_R, d_v
SIZES = st.sampled_from([(1, 1, 16, 16, 8, 8), (2, 4, 24, 8, 8, 16), (3, 3, 33, 16, 0, 5), (2, 6, 16, 5, 8, 7)])
OPTIONS = st.sampled_from([{}, {"causal": True}, {"causal": True, "window": (5, None)}])
exact64 = Precision("float64", "float64")


def arrays(seed, sizes, n_q, n_k, dtype="float64"):
    """qn (H, Nq, d_n), qr (H, Nq, d_R), c (h_c, Nk, d_c), kr (Nk, d_R), w_uk (H, d_n, d_c), w_uv (H, d_v, d_c)."""
    h_c, h, d_c, d_n, d_r, d_v = sizes
    shapes = [(h, n_q, d_n), (h, n_q, d_r), (h_c, n_k, d_c), (n_k, d_r), (h, d_n, d_c), (h, d_v, d_c)]
    qn, qr, c, kr, w_uk, w_uv = inputs.values("normal", shapes, seed)
    return [inputs.rounded(x, dtype) for x in (qn, qr, c, kr, w_uk * d_c**-0.5, w_uv * d_c**-0.5)]


def tensors(qn, qr, c, kr, w_uk, w_uv, dtype="float32"):
    heads_last = [x.swapaxes(0, 1)[None] for x in (qn, qr, c)]
    return [inputs.tensor(x, dtype) for x in (*heads_last, kr[None], w_uk, w_uv)]


@given(inputs.seeds, SIZES, st.integers(1, 6), st.integers(0, 9), st.sampled_from([None, 0.3]))
def test_absorbing_the_projections_changes_nothing(seed, sizes, n_q, n_k, scale):
    case, options = arrays(seed, sizes, n_q, n_k), {"mask": visible(n_q, n_k, True), "scale": scale}
    expected = bounded(grouped_latent.expand, *case, precision=exact64, **options)
    for actual, right, what in zip(grouped_latent.absorb(*case, **options), expected, ("output", "log-sum-exp"), strict=True):
        agree(actual, right, what)


@given(inputs.seeds, st.integers(1, 6), st.integers(0, 9))
def test_with_one_latent_it_is_mla(fast, seed, n_q, n_k):
    qn, qr, c, kr, w_uk, w_uv = case = arrays(seed, (1, 3, 16, 8, 8, 5), n_q, n_k)
    mask = visible(n_q, n_k, True)
    for form in ("expand", "absorb"):
        one, other = getattr(grouped_latent, form)(*case, mask=mask), getattr(mla, form)(qn, qr, c[0], kr, w_uk, w_uv, mask=mask)
        for x, y in zip(one, other, strict=True):
            exactly(x, y, form)
        o, lse = getattr(fast, form)(*tensors(*case), causal=True)
        expected = bounded(getattr(mla, form), *(inputs.rounded(x, "float32") for x in (qn, qr, c[0], kr, w_uk, w_uv)), mask=mask,
                           precision=Precision("float32"))  # fmt: skip
        agree(o[0].transpose(0, 1), expected[0], f"output, {form}")
        agree(lse[0], expected[1], f"log-sum-exp, {form}")


@given(inputs.seeds, st.sampled_from([(2, 4), (3, 6)]), st.data())
def test_a_group_is_blind_to_other_latents(fast, seed, heads, data):
    """NaN in another group's latent: this one's heads do not change by a bit."""
    h_c, h = heads
    case = arrays(seed, (h_c, h, 16, 8, 8, 5), 3, 9)
    a = data.draw(st.integers(0, h_c - 1))
    own, spoiled = slice(a * h // h_c, (a + 1) * h // h_c), [x.copy() for x in case]
    spoiled[2][np.arange(h_c) != a] = np.nan
    for form in ("expand", "absorb"):
        exactly(getattr(grouped_latent, form)(*spoiled)[0][own], getattr(grouped_latent, form)(*case)[0][own], "spec")
        for x, y, axis in zip(getattr(fast, form)(*tensors(*spoiled)), getattr(fast, form)(*tensors(*case)), (2, 1), strict=True):
            exactly(x.movedim(axis, 0)[own], y.movedim(axis, 0)[own], form)


@given(inputs.seeds, SIZES, st.sampled_from([1, 5, 17]), st.sampled_from([1, 17, 40]), OPTIONS, st.sampled_from(["float32", "bfloat16"]))
@example(0, (2, 4, 24, 8, 8, 16), 5, 40, {"causal": True}, "bfloat16")
@example(0, (3, 3, 33, 16, 0, 5), 17, 40, {"causal": True, "window": (5, None)}, "float32")
def test_both_forms_agree_with_their_own_definition(fast, seed, sizes, n_q, n_k, options, dtype):
    case = arrays(seed, sizes, n_q, n_k, dtype)
    mask = visible(n_q, n_k, options.get("causal", False), options.get("window"))
    for form in ("expand", "absorb"):
        o, lse = getattr(fast, form)(*tensors(*case, dtype=dtype), **options)
        expected = bounded(getattr(grouped_latent, form), *case, precision=Precision(dtype), outputs=(dtype, "float32"), mask=mask)
        agree(o[0].transpose(0, 1), expected[0], f"output, {form}")
        agree(lse[0], expected[1], f"log-sum-exp, {form}")


@given(inputs.seeds, st.booleans(), st.sampled_from([0, 1000]))
def test_every_latent_has_its_own_norm(fast, seed, interleaved, first):
    """Against the definition; and a latent a thousand times as large does not change the other."""
    shapes = [(5, 12), (2, 8, 12), (2, 8), (4, 12)]
    h, w_dkv, gain, w_kr = inputs.values("normal", shapes, seed, "float32")
    pos, options = np.arange(5) + first, {"interleaved": interleaved}
    place = lambda **x: {name: inputs.tensor(y, "float32") for name, y in x.items()}
    results = fast.compress(inputs.tensor(h[None], "float32"), inputs.tensor(pos), **place(w_dkv=w_dkv, gain=gain, w_kr=w_kr), **options)
    expected = bounded(grouped_latent.compress, h, pos, precision=Precision("float32"), w_dkv=w_dkv, gain=gain, w_kr=w_kr, **options)
    agree(results[0][0].transpose(0, 1), expected[0], "latents")
    agree(results[1][0], expected[1], "rotated key")
    louder = w_dkv * np.array([1.0, 1024.0])[:, None, None]
    again = fast.compress(inputs.tensor(h[None], "float32"), inputs.tensor(pos), **place(w_dkv=louder, gain=gain, w_kr=w_kr), **options)
    exactly(again[0][:, :, 0], results[0][:, :, 0], "the other latent")
    c, kr = grouped_latent.compress(h, pos, w_dkv=w_dkv, gain=gain, w_kr=w_kr, **options)
    for a in range(2):
        one = mla.compress(h, pos, w_dkv=w_dkv[a], gain=gain[a], w_kr=w_kr, **options)
        exactly(c[a], one[0], "a latent of MLA")
        exactly(kr, one[1], "the rotated key of MLA")


@given(inputs.seeds, st.sampled_from([1, 3, 16, 48]))
def test_latents_in_pages_are_latents_in_rows(fast, seed, page):
    cases = [arrays(seed + i, (2, 4, 24, 8, 8, 16), 2, 50, "float32") for i in range(4)]
    qn, qr, c, kr = (torch.cat([tensors(*case)[i] for case in cases]) for i in range(4))
    form = lambda c, kr, **where: fast.absorb(qn, qr, c, kr, *tensors(*cases[0])[4:], causal=True, **where)
    demand_pages_are_rows(form, [inputs.array(c), inputs.array(kr)], [0, 17, 50, 3], page, seed)


def test_gradients_of_the_expanded_form_reach_every_argument(fast):
    """By finite differences of the definition, in a direction that touches all of an argument."""
    case = arrays(0, (2, 4, 16, 8, 8, 5), 4, 6, "float32")
    leaves = [x.requires_grad_() for x in tensors(*case)]
    o, lse = fast.expand(*leaves, causal=True)
    gradients = torch.autograd.grad((o.sum() + lse.sum()), leaves)
    value = lambda arrays: sum(x.sum() for x in grouped_latent.expand(*arrays, mask=visible(4, 6, True)))
    for i, gradient in enumerate(gradients):
        direction = np.random.default_rng(i).standard_normal(case[i].shape)
        moved = [[x + sign * 1e-6 * direction if j == i else x for j, x in enumerate(case)] for sign in (1, -1)]
        slope = (value(moved[0]) - value(moved[1])) / 2e-6
        ours = inputs.array(gradient[0].transpose(0, 1) if i < 3 else gradient[0] if i < 4 else gradient)  # as the definition has it
        ours = (ours * direction).sum()
        assert abs(ours - slope) <= 2.0**-24 * 2**10 * (1 + abs(slope)), f"argument {i}: {ours} instead of {slope}"


def test_wrong_arguments_are_named(fast):
    qn, qr, c, kr, w_uk, w_uv = tensors(*arrays(0, (2, 4, 16, 8, 8, 16), 2, 4, "float32"))
    table = torch.zeros(1, 1, dtype=torch.int32, device=qn.device)
    for call, error, name in (
        (lambda: fast.expand(qn, qr, c, kr[:, :3], w_uk, w_uv), ValueError, "kr"),
        (lambda: fast.absorb(qn[:, :, :3], qr[:, :, :3], c, kr, w_uk[:3], w_uv[:3]), ValueError, "qn"),
        (lambda: fast.absorb(qn, qr, c[:, :, 0], kr, w_uk, w_uv), ValueError, "c"),
        (lambda: fast.absorb(qn, qr, c.double(), kr, w_uk, w_uv), TypeError, "c"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, scale=-1.0), ValueError, "scale"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, size=0), ValueError, "size"),
        (lambda: fast.absorb(qn, qr, c, kr, w_uk, w_uv, table=table), ValueError, "length"),
        (lambda: fast.compress(kr, torch.arange(4), w_dkv=w_uk[:, :, :8], gain=w_uk[0, 0], w_kr=w_uk[0, :, :8]), ValueError, "gain"),
    ):
        with pytest.raises(error, match=name):
            call()
