"""Warping: which tokens stay is exact, how their probabilities are renormalized is bounded."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, dtypes, regimes, seeds, tensor, values
from twofold.conformance.law import Model, autoregressive, completed, law, models
from twofold.conformance.prove import Claim, bias
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_chain import round_of
from twofold.spec.speculative import chain, warp

weights = st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any)
rows = weights.map(lambda w: np.array([Fraction(x, sum(w)) for x in w], dtype=object))
sixths = st.integers(0, 6).map(lambda n: Fraction(n, 6))
support = lambda row: set(np.flatnonzero(row))


@given(rows, st.integers(1, 7))
def test_top_k_keeps_the_k_likeliest_first_ones(p, k):
    kept = warp.top_k(p, k)
    expected = sorted(range(len(p)), key=lambda v: (-p[v], v))[:k]
    assert support(kept) == {v for v in expected if p[v]} and kept.sum() == 1
    assert warp.top_k(kept, k).tolist() == kept.tolist() and warp.top_k(p, 0) is p
    assert all(kept[v] * sum(p[u] for u in expected) == p[v] for v in expected)


@given(rows, sixths)
def test_top_p_keeps_the_shortest_list_that_reaches_the_mass(p, mass):
    kept = support(warp.top_p(p, mass))
    listed = sorted(kept, key=lambda v: (-p[v], v))
    assert listed == sorted(range(len(p)), key=lambda v: (-p[v], v))[: len(listed)] or mass == 1
    assert sum(p[v] for v in listed) >= mass and len(listed) >= 1
    assert len(listed) == 1 or mass == 1 or sum(p[v] for v in listed[:-1]) < mass


def test_top_p_twice_may_keep_less():
    once = warp.top_p(np.array([Fraction(5, 10), Fraction(3, 10), Fraction(2, 10)]), Fraction(6, 10))
    assert once.tolist() == [Fraction(5, 8), Fraction(3, 8), 0] and support(warp.top_p(once, Fraction(6, 10))) == {0}


@given(rows, sixths)
def test_min_p_keeps_what_comes_near_the_likeliest(p, ratio):
    kept = warp.min_p(p, ratio)
    assert support(kept) == {v for v in range(len(p)) if p[v] and p[v] >= ratio * max(p)}
    assert warp.min_p(kept, ratio).tolist() == kept.tolist()


@given(rows, sixths, sixths, st.integers(1, 6), st.integers(1, 6))
def test_stricter_settings_keep_a_part_of_what_looser_ones_keep(p, one, other, k, l):
    assert support(warp.top_k(p, min(k, l))) <= support(warp.top_k(p, max(k, l)))
    assert support(warp.top_p(p, min(one, other))) <= support(warp.top_p(p, max(one, other)))
    assert support(warp.min_p(p, max(one, other))) <= support(warp.min_p(p, min(one, other)))


@given(seeds, st.integers(1, 6))
def test_top_1_is_temperature_zero(seed, V):
    logits = np.random.default_rng(seed).integers(-2, 3, V).astype(float)
    assert warp.pipeline(logits, k=1).tolist() == warp.temperature(logits, 0).tolist() == warp.pipeline(logits, mass=0).tolist()


cuts = st.sampled_from([(2, 1, 0), (0, Fraction(3, 5), 0), (0, 1, Fraction(1, 2)), (2, Fraction(2, 3), Fraction(1, 3))])


@given(models(3, 3), models(3, 3), cuts)
def test_speculation_keeps_the_warped_law_whatever_the_draft_went_through(target, drafter, setting):
    k, mass, ratio = setting
    warped = lambda model: Model({context: warp.min_p(warp.top_p(warp.top_k(row, k), mass), ratio) for context, row in model.items()})
    for draft in (drafter, warped(drafter)):
        assert completed(law(round_of(warped(target), draft, 2)), warped(target), 3) == autoregressive(warped(target), 3)


def logits(target, context):
    with np.errstate(divide="ignore"):
        return np.log(np.array(target(context), dtype=float))


def rational(row):
    return np.array([Fraction(x).limit_denominator(1000) for x in row], dtype=object)  # these laws have denominators below 100


def claim(what, **settings):
    """That a round whose target rows come from `along` has the law of the target warped by `pipeline`, counts and all."""

    def warped(target):
        seen = lambda context: np.bincount(np.array(context, dtype=int), minlength=3)
        return lambda context: rational(warp.pipeline(logits(target, context), seen(context), **settings))

    def program(target, drafter):
        def verify(p, q, draft, rng):
            raw = np.stack([logits(target, draft[:i]) for i in range(len(draft) + 1)])
            return chain.verify([rational(row) for row in warp.along(raw, draft, **settings)], q, draft, rng)

        return rounds.chain(target, drafter, 2, verify)

    return Claim(what, program, length=3, claimed=lambda target, drafter: warped(target), reference=True)


CLAIMS = [claim("two drafted, top-2", k=2), claim("two drafted, a token emitted before has half its mass", presence=np.log(2))]


def test_warped_rows_along_a_draft_lose_nothing():
    assert bias("speculative.warp") == 0


@given(seeds, st.lists(st.integers(0, 4), max_size=4))
def test_every_position_of_a_draft_sees_the_tokens_before_it(seed, draft):
    rng = np.random.default_rng(seed)
    logits, counts, masks = rng.standard_normal((len(draft) + 1, 5)), rng.integers(0, 3, 5), rng.random((len(draft) + 1, 5)) < 0.8
    masks[:, 0] = True
    settings = dict(T=0.7, mass=0.9, repetition=1.3, presence=0.5, frequency=0.25)
    along = warp.along(logits, draft, counts, masks, **settings)
    for i in range(len(draft) + 1):
        seen = counts + np.bincount(np.array(draft[:i], dtype=int), minlength=5)
        exactly(along[i], warp.pipeline(logits[i], seen, masks[i], **settings))


def test_nothing_allowed_is_an_error():
    with pytest.raises(ValueError, match="is any token allowed"):
        warp.pipeline(np.zeros(3), mask=np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="not nan"):
        warp.temperature(np.array([0.0, np.nan]), 1)


@given(regimes, seeds, st.sampled_from([1, 2, 7, 100]), dtypes(), st.sampled_from([1e-30, 0.25, 1.0, 3.0]))
def test_temperature_agrees(fast, regime, seed, V, dtype, T):
    (logits,) = values(regime, [(4, V)], seed, dtype)
    actual = array(fast.temperature(tensor(logits, dtype), T))
    for b in range(4):
        agree(actual[b], bounded(warp.temperature, logits[b], T, precision=Precision("float32")), "probabilities")


settings = st.fixed_dictionaries(
    {"T": st.sampled_from([0.5, 1.0, 2.0]), "k": st.sampled_from([0, 1, 3, 60]), "mass": st.sampled_from([0.0, 0.3, 0.9, 1.0])},
    optional={name: st.just(value) for name, value in (("ratio", 0.1), ("repetition", 1.25), ("presence", 0.5), ("frequency", -0.25))},
)


@given(seeds, st.sampled_from([1, 5, 50]), settings, st.booleans())
def test_the_pipeline_agrees(fast, seed, V, setting, masked):
    rng = np.random.default_rng(seed)
    (logits,) = values("normal", [(3, V)], seed, "float32")
    counts, masks, extra = rng.integers(0, 3, (3, V)), rng.random((3, V)) < 0.7, values("normal", [(V,)], seed + 1, "float32")[0]
    masks[:, 0] = True
    mask = masks if masked else np.ones_like(masks)
    call = {name: value for name, value in setting.items() if name not in ("repetition", "presence", "frequency")}
    penalties = {name: value for name, value in setting.items() if name in ("repetition", "presence", "frequency")} | {"bias": extra}
    for b in range(3):  # decisions that rounding could turn are not compared
        p = warp.top_k(warp.pipeline(logits[b], counts[b], mask[b], T=call["T"], **penalties), call["k"])
        gaps = np.diff(np.sort(p[p > 0]))
        assume(np.all(gaps > 1e-5) and np.all(np.abs(np.cumsum(np.sort(p)[::-1])[:-1] - call["mass"]) > 1e-5))
        assume(np.all(np.abs(p[p < p.max()] / p.max() - call.get("ratio", 0.5)) > 1e-5))
    arguments = tensor(logits, "float32"), tensor(counts), tensor(mask)
    actual = array(fast.pipeline(*arguments, **call, **penalties | {"bias": tensor(extra, "float32")}))
    for b in range(3):
        expected = bounded(warp.pipeline, logits[b], counts[b], mask[b], precision=Precision("float32"), **call, **penalties)
        exactly(actual[b] > 0, expected.value > 0, "tokens kept")
        agree(actual[b], expected, "probabilities")


@given(seeds, st.sampled_from([1, 2, 5, 9]), st.integers(0, 10), st.integers(0, 8), st.integers(0, 8))
def test_ties_and_exact_masses_are_cut_as_in_the_spec(fast, seed, V, k, mass, ratio):
    counts = np.random.default_rng(seed).multinomial(8, np.full(V, 1 / V))  # eighths: ties abound and no sum is rounded
    exact, floats = np.array([Fraction(int(n), 8) for n in counts], dtype=object), tensor(counts / 8, "float32")
    for form, setting, value in (("top_k", k, k), ("top_p", Fraction(mass, 8), mass / 8), ("min_p", Fraction(ratio, 8), ratio / 8)):
        expected = getattr(warp, form)(exact, setting)
        for given_ in (value, torch.tensor(value)):  # a number, and a tensor of one value per row
            exactly(array(getattr(fast, form)(floats, given_)), expected.astype(float).astype(np.float32).astype(float), form)


@given(seeds, st.integers(0, 3))
def test_along_agrees_with_one_position_at_a_time(fast, seed, gamma):
    rng = np.random.default_rng(seed)
    logits, draft, counts = rng.standard_normal((2, gamma + 1, 6)), rng.integers(0, 6, (2, gamma)), rng.integers(0, 2, (2, 6))
    setting = dict(T=0.8, k=4, presence=0.7, frequency=0.2, repetition=1.2)
    rows_ = fast.along(tensor(logits, "float32"), tensor(draft), tensor(counts), **setting)
    assert rows_.shape == (2, gamma + 1, 6)
    for b in range(2):
        for i in range(gamma + 1):
            seen = tensor(counts[b] + np.bincount(draft[b, :i], minlength=6))
            exactly(array(rows_[b, i]), array(fast.pipeline(tensor(logits[b, i], "float32"), seen, **setting)), f"position {i}")


def test_every_request_has_its_own_settings(fast):
    logits = torch.linspace(-1, 1, 12).view(3, 4).roll(1, 1)
    T, k, mass, ratio = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 2, 3]), torch.tensor([1.0, 0.7, 1.5]), torch.tensor([0.0, 0.0, 0.9])
    together = fast.pipeline(logits, T=T, k=k, mass=mass, ratio=ratio)
    for b in range(3):
        alone = fast.pipeline(logits[b], T=T[b].item(), k=k[b].item(), mass=mass[b].item(), ratio=ratio[b].item())
        exactly(array(together[b]), array(alone), f"request {b}")


def test_a_row_without_a_law_is_nan(fast):
    logits = torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf], [torch.nan, 0.0]])
    for T in (0, 1):
        bad = fast.pipeline(logits, T=T, k=1, mass=0.5).isnan()
        assert bad.any(-1).tolist() == [False, True, True]


@pytest.mark.parametrize(("form", "arguments", "message"), [
    ("temperature", (torch.zeros(2, dtype=torch.int64), 1), "logits must be a floating"),
    ("temperature", (torch.zeros(2), -1), "T must lie"), ("top_k", (torch.zeros(2), -1), "k must lie"),
    ("top_p", (torch.zeros(2), -0.1), "mass must lie"), ("min_p", (torch.zeros(2), 2), "ratio must lie"),
    ("min_p", (torch.zeros(2, 3), torch.zeros(3)), "one value per row"), ("pipeline", (torch.zeros(2, 0),), "V at least 1"),
    ("pipeline", (torch.zeros(2), None, torch.ones(2)), "mask must have dtype"), ("penalize", (torch.zeros(2), torch.zeros(3)), "counts"),
    ("along", (torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)), "3 rows per request"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, form, arguments, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        getattr(fast, form)(*arguments)


def test_it_compiles(fast):
    call = lambda logits: fast.pipeline(logits, T=0.7, k=3, mass=0.9, ratio=0.1)
    logits = torch.linspace(-1, 1, 12).view(3, 4)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(logits), call(logits))
