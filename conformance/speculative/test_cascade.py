"""A cascade's rule names a law, and speculation keeps it exactly; the batched rows are the spec's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law, models
from twofold.conformance.prove import Claim
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.tape import exact
from twofold.fast.speculative import sampling as fast_sampling
from twofold.spec.speculative import block, cascade, chain

F = Fraction
RULES = ["chow", "opt", "token_specific"]
rules = st.sampled_from(RULES)
prices = st.sampled_from([F(0), F(1, 6), F(1, 4), F(1, 3), F(1, 2), F(1), F(2)])
row = lambda model: model(())


def mixture(rule, target, drafter, t):
    """The cascade as a model: the law that its text should have."""
    return lambda context: getattr(cascade, rule)(target(context), drafter(context), t)


def claim(rule):
    wanted = lambda target, drafter: mixture(rule, target, drafter, F(1, 4))
    program = lambda target, drafter: rounds.chain(wanted(target, drafter), drafter, 2, chain.verify)
    return Claim(f"two drafted, {rule} at t = 1/4", program, 3, claimed=wanted, reference=True)


CLAIMS = [claim(rule) for rule in RULES]


@given(models(3, 3), models(3, 3), rules, prices)
def test_text_has_the_law_that_the_rule_names(target, drafter, rule, t):
    wanted = mixture(rule, target, drafter, t)
    for verify in (chain.verify, block.verify):
        rounds.lossless(rounds.chain(wanted, drafter, 2, verify), wanted, 3)


@given(models(4, 1).map(row), models(4, 1).map(row), st.sampled_from(RULES[:2]), prices)
def test_a_draft_is_refused_only_where_the_rule_defers(p, q, rule, t):
    wanted = getattr(cascade, rule)(p, q, t)
    defers = (wanted is p) and not (p == q).all()
    kept = rounds.kept(rounds.chain(lambda context: wanted, lambda context: q, 1, chain.verify))
    assert kept == (1 - np.maximum(p - q, 0).sum() if defers else 1)


@given(models(4, 1).map(row), models(4, 1).map(row), prices)
def test_opt_takes_what_is_expected_to_cost_less(p, q, t):
    """A mistake costs 1 and a refusal t; refusals are counted by verifying a draft against either model."""
    kept = lambda law_: rounds.kept(rounds.chain(lambda context: law_, lambda context: q, 1, chain.verify))
    cost = lambda law_: 1 - max(law_) + t * (1 - kept(law_))
    assert cost(cascade.opt(p, q, t)) == min(cost(p), cost(q))


@given(models(4, 1).map(row), models(4, 1).map(row), prices, prices)
def test_a_higher_price_leaves_more_to_the_small_model(p, q, t, more):
    for rule in RULES:
        near, far = (abs(getattr(cascade, rule)(p, q, price) - q).sum() for price in (max(t, more), min(t, more)))
        assert near <= far or rule == "token_specific"
    good = lambda price: {v for v in range(4) if p[v] >= max(p) - price}
    assert good(min(t, more)) <= good(max(t, more))


@given(models(4, 1).map(row), models(4, 1).map(row), prices)
def test_tokens_that_are_not_good_enough_come_from_the_large_model_only(p, q, t):
    wanted, poor = cascade.token_specific(p, q, t), p < max(p) - t
    assert sum(wanted) == 1 and all(wanted >= 0)
    deferred = sum(q[poor])
    assert all(wanted[poor] == p[poor] * deferred) and all(wanted[~poor] == q[~poor] + p[~poor] * deferred)
    assert np.maximum(wanted - q, 0).sum() <= deferred  # no more is refused than was deferred


@given(models(4, 1).map(row), models(4, 1).map(row))
def test_limits_of_the_price(p, q):
    assert cascade.chow(p, q, 1) is cascade.opt(p, q, 1 + 1 / (np.maximum(p - q, 0).sum() or F(1))) is q
    assert (cascade.token_specific(p, q, 1) == q).all()
    assert cascade.chow(p, q, 0) is (q if max(q) == 1 else p) and cascade.opt(p, q, 0) is (q if max(q) >= max(p) else p)


def test_values_on_the_reference_pair():
    """p = (3, 1, 2)/6, q = (1, 1, 4)/6: the total variation is 1/3. By hand."""
    p, q = TARGET(()), DRAFT(())
    assert cascade.chow(p, q, F(1, 3)) is q and cascade.chow(p, q, F(1, 4)) is p
    assert cascade.opt(q, p, F(1, 2)) is p and cascade.opt(q, p, F(1, 3)) is q  # the large one surer by 1/6, against t/3
    assert cascade.token_specific(p, q, F(1, 6)).tolist() == [F(9, 36), F(1, 36), F(26, 36)]


@given(models(4, 1).map(row), models(4, 1).map(row), rules, prices, st.permutations(range(4)))
def test_renaming_the_tokens_renames_the_law(p, q, rule, t, names):
    form = getattr(cascade, rule)
    assert (form(p[names], q[names], t) == form(p, q, t)[names]).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_target_row_that_is_no_law_never_becomes_one(rule):
    p, q = np.array([np.nan, 0.5]), np.array([0.5, 0.5])
    assert np.isnan(getattr(cascade, rule)(p, q, 0.25)).any()


# Rows of a batch


@given(rules, st.integers(1, 9), seeds, dtypes(), st.booleans(), st.sampled_from(["contiguous", "sliced", "offset"]))
def test_rows_are_the_specs_where_arithmetic_is_exact(fast, rule, V, seed, dtype, each, layout):
    """Probabilities and prices in eighths: products have six bits, and comparisons often meet their edge."""
    rng = np.random.default_rng(seed)
    p, q = (rng.multinomial(8, rng.dirichlet(np.ones(V)), (2, 3)) / 8 for _ in range(2))
    t = rng.integers(0, 9, (2, 3)) / 8
    rows = getattr(fast, rule)(tensor(p, dtype, layout), tensor(q, dtype, layout), tensor(t, "float32") if each else float(t[0, 0]))
    form, price = getattr(cascade, rule), lambda b, i: t[b, i] if each else t[0, 0]
    expected = np.array([[form(p[b, i], q[b, i], price(b, i)) for i in range(3)] for b in range(2)])
    assert rows.dtype == getattr(torch, dtype)
    exactly(array(rows), expected, "rows")


def unsure(rule, p, q, t):
    """Whether float32 could decide otherwise: a sum of V numbers below 1 is off by at most V units of roundoff, the rest by three more."""
    p, q, t = exact(p), exact(q), F(t)
    edges = {
        "chow": [max(q) - 1 + t], "opt": [max(q) - max(p) + t * np.maximum(p - q, 0).sum()], "token_specific": list(p - max(p) + t)
    }[rule]  # fmt: skip
    return any(abs(edge) <= F(len(p) + 3, 2**24) for edge in edges if not (rule == "token_specific" and t == 0))


@given(rules, st.integers(2, 40), seeds, dtypes())
def test_rows_agree_with_the_definition(fast, rule, V, seed, dtype):
    rng = np.random.default_rng(seed)
    p, q = (rounded(rng.dirichlet(np.full(V, 0.5), 4), dtype) for _ in range(2))
    t = float(rounded(rng.random(1), "float32")[0])
    rows = getattr(fast, rule)(tensor(p, dtype), tensor(q, dtype), t)
    for b in range(4):
        if not unsure(rule, p[b], q[b], t):
            if rule == "token_specific":
                agree(rows[b], bounded(cascade.token_specific, p[b], q[b], t, precision=Precision(dtype), outputs=dtype), "rows")
            else:
                exactly(array(rows[b]), getattr(cascade, rule)(p[b], q[b], t), "rows")


@pytest.mark.parametrize("rule", RULES)
def test_rows_without_a_law_stay_without_one_and_alone(fast, rule):
    p, q = torch.full((3, 2), 0.5), torch.tensor([[0.75, 0.25]] * 3)
    p[1, 0] = torch.nan
    rows = getattr(fast, rule)(p, q, 0.125)
    assert rows[1].isnan().any() and not rows[0::2].isnan().any()
    assert getattr(fast, rule)(p[:0], q[:0], 0.5).shape == (0, 2)
    exactly(array(getattr(fast, rule)(p[2:], q[2:], 0.125)), array(rows[2:]), "a row alone")


def test_seeded_text_follows_the_law_that_the_rule_names(fast):
    B = 20_000 if fast.side == "torch" else 20  # the interpreter takes a millisecond per program
    rows = lambda model: tensor(np.array([model(()), *(model((x,)) for x in range(3))], dtype=float), "float32")
    batched = lambda rows: lambda tokens, ends: rows[torch.where(ends > 0, 1 + tokens.gather(1, (ends - 1).clamp(min=0)), 0)]
    large, small = batched(rows(TARGET)), batched(rows(DRAFT))
    wanted = lambda tokens, ends: fast.token_specific(large(tokens, ends), small(tokens, ends), 0.2)
    emitted, count = fast_sampling.step(wanted, small, torch.zeros(B, 0, dtype=torch.int64), 2, seed=6)
    texts = [tuple(text[:n]) for text, n in zip(emitted.tolist(), count.tolist(), strict=True)]
    consistent(texts, law(rounds.chain(mixture("token_specific", TARGET, DRAFT, F(1, 5)), DRAFT, 2, chain.verify)))
    if B >= 20_000:
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(texts, law(rounds.chain(TARGET, DRAFT, 2, chain.verify)))


HALF = torch.full((2, 2), 0.5)
WRONG = {
    "p must be a tensor": dict(p=[0.5]), "q must be a tensor": dict(q=0.5), "one shape": dict(q=HALF[:1]),
    "dtype of p": dict(q=HALF.half()), "p must have dtype": dict(p=HALF.double(), q=HALF.double()),
    "t must be at least 0": dict(t=-0.5), "shape of the rows": dict(t=torch.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("rule", RULES)
def test_wrong_arguments_are_named(fast, rule, message):
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(fast, rule)(**dict(p=HALF, q=HALF, t=0.5) | WRONG[message])


@pytest.mark.parametrize("rule", RULES)
def test_it_compiles_and_leaves_its_inputs(fast, rule):
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, 0.5]])
    compiled = torch.compile(getattr(fast, rule), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(p, q, 0.25), getattr(fast, rule)(p, q, 0.25))
    assert p.tolist() == [[0.75, 0.25]] and q.tolist() == [[0.5, 0.5]]
