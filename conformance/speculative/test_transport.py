"""The optimum of several drafts: what bounds it, what it bounds, and that the fast side finds the same."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.inputs import array, tensor
from twofold.conformance.law import DRAFT, TARGET, law, models
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.referees import best_coupling, inside, min_cut
from twofold.spec.speculative import kseq, match, rsd, specinfer, transport

F = Fraction

rows = models(4, 1).map(lambda model: model(()))
P, Q = TARGET(()), DRAFT(())


def kept(select, sample, p, q, k):
    """The probability that a verifier of several drafts keeps one."""

    def program(rng):
        return select(p, q, tuple(sample(q, k, rng)), rng)[1]

    return law(program).get(True, F(0))


recursive = lambda p, q, drafts, rng: specinfer.select(p, [q] * len(drafts), drafts, rng)
by_match = lambda p, q, drafts, rng: (None, rng.categorical(p) in drafts)
certain = lambda p, q, drafts, rng: match.sequential(p, drafts, rng)
likeliest = lambda q, k, rng: np.argsort(-q, kind="stable")[:k].tolist()


@given(rows, rows, st.integers(0, 3))
def test_the_optimum_is_the_best_coupling(p, q, k):
    for optimum, sample in ((transport.optimum, rounds.independent), (transport.optimum_without_replacement, rsd.sample)):
        drafts, best = law(lambda rng, sample=sample: tuple(sample(q, k, rng))), optimum(p, q, k)
        assert best == min_cut(p, inside(drafts))
        assert F(best_coupling(p, drafts)).limit_denominator(best.denominator) == best  # it is solved in floating point


@given(rows, rows)
def test_one_draft_is_kept_with_one_minus_total_variation(p, q):
    assert transport.optimum(p, q, 1) == transport.optimum_without_replacement(p, q, 1) == np.minimum(p, q).sum()


@given(rows, rows, st.integers(0, 4))
def test_more_drafts_are_better_and_distinct_ones_best(p, q, k):
    independent, distinct = transport.optimum(p, q, k), transport.optimum_without_replacement(p, q, k)
    assert independent <= distinct <= 1
    assert independent <= transport.optimum(p, q, k + 1) and distinct <= transport.optimum_without_replacement(p, q, k + 1)


@given(rows, rows, st.integers(1, 3))
def test_no_verifier_keeps_more(p, q, k):
    best, distinct = transport.optimum(p, q, k), transport.optimum_without_replacement(p, q, k)
    for select in (recursive, by_match, kseq.select):
        assert kept(select, rounds.independent, p, q, k) <= best
    for select in (rsd.select, by_match):
        assert kept(select, rsd.sample, p, q, k) <= distinct


@given(rows, st.integers(1, 3))
def test_equal_laws_lose_nothing(p, k):
    assert transport.optimum(p, p, k) == transport.optimum_without_replacement(p, p, k) == 1


@given(rows, rows, st.integers(1, 4))
def test_the_least_cut_holds_the_tokens_that_q_overrates(p, q, k):
    """A prefix in order of p / q is enough: proved for independent drafts, observed without replacement."""
    order = sorted(range(4), key=lambda v: p[v] / q[v] if q[v] else F(10**9))
    prefixes = [order[:n] for n in range(5)]
    assert min(p[A].sum() + 1 - q[A].sum() ** k for A in prefixes) == transport.optimum(p, q, k)
    all_inside = inside(law(lambda rng: tuple(rsd.sample(q, k, rng))))
    assert min(p[A].sum() + 1 - all_inside(frozenset(A)) for A in prefixes) == transport.optimum_without_replacement(p, q, k)


def test_the_optimum_on_the_reference_pair():
    assert transport.optimum(P, Q, 2) == F(29, 36) and transport.optimum_without_replacement(P, Q, 2) == 1


def forty_pairs():
    chance, found = random.Random(5), []
    for s in range(40):
        pair = []
        while len(pair) < 2:
            weights = [chance.randint(0, 12) for _ in range(3 + s % 2)]
            if any(weights):
                pair.append(np.array([F(w, sum(weights)) for w in weights], dtype=object))
        found.append(pair)
    return found


def test_how_verifiers_compare_on_forty_pairs_with_two_drafts():
    """The numbers of the chapter's picture."""
    means = {
        "one draft": lambda p, q: transport.optimum(p, q, 1),
        "match": lambda p, q: kept(by_match, rounds.independent, p, q, 2),
        "likeliest": lambda p, q: kept(certain, likeliest, p, q, 2),
        "specinfer": lambda p, q: kept(recursive, rounds.independent, p, q, 2),
        "kseq": lambda p, q: kept(kseq.select, rounds.independent, p, q, 2),
        "rsd": lambda p, q: kept(rsd.select, rsd.sample, p, q, 2),
        "optimum": lambda p, q: transport.optimum(p, q, 2),
        "optimum without replacement": lambda p, q: transport.optimum_without_replacement(p, q, 2),
    }
    pairs = forty_pairs()
    found = {name: round(float(sum(mean(p, q) for p, q in pairs) / 40), 3) for name, mean in means.items()}
    expected = 0.674, 0.473, 0.611, 0.775, 0.794, 0.830, 0.838, 0.900
    assert found == dict(zip(means, expected, strict=True))


# The fast side


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=3), st.integers(0, 4), st.sampled_from(["float32", "float64"]))
def test_the_fast_side_finds_the_optimum(fast, pairs, k, dtype):
    """On sixteenths float64 holds every sum and power: the same number for independent drafts; else the fraction that is nearest."""
    p, q = (np.array([sixteenths(pair[i]) for pair in pairs]) for i in (0, 1))
    tensors = tensor(p, dtype), tensor(q, dtype)
    exact = [[np.array([F(x) for x in row], dtype=object) for row in side] for side in (p, q)]
    best = [transport.optimum(*pair, k) for pair in zip(*exact)]
    assert [F(x) for x in array(fast.optimum(*tensors, k)).tolist()] == best
    distinct = [transport.optimum_without_replacement(*pair, k) for pair in zip(*exact)]
    found = array(fast.optimum_without_replacement(*tensors, k)).tolist()
    assert [F(x).limit_denominator(best.denominator) for x, best in zip(found, distinct)] == distinct


def sixteenths(row):
    """The row on multiples of 1/16 that sum to 1, what is left over on its first greatest entry."""
    parts = [int(16 * x) for x in row]
    parts[int(np.argmax(row))] += 16 - sum(parts)
    return [x / 16 for x in parts]


def test_a_large_vocabulary_is_sorted_and_not_enumerated(fast):
    """Half of the tokens are drafted twice as often as they should be, the other half never: the cut holds the first half."""
    V = 50_000
    q = torch.zeros(1, V, dtype=torch.float64)
    q[:, ::2] = 2 / V
    p = torch.full((1, V), 1 / V, dtype=torch.float64)
    assert array(fast.optimum(p, q, 3)).round(9).tolist() == [0.5]


def test_inputs_stay_as_they_were_and_compilers_see_through(fast):
    p, q = tensor(np.array([[0.5, 0.25, 0.25]])), tensor(np.array([[0.25, 0.25, 0.5]]))
    for form in (fast.optimum, fast.optimum_without_replacement):
        compiled = torch.compile(lambda p, q, form=form: form(p, q, 2), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(p, q), form(p, q, 2)) and form(p[:0], q[:0], 2).shape == (0,)
    assert p.tolist() == [[0.5, 0.25, 0.25]] and q.tolist() == [[0.25, 0.25, 0.5]]


@pytest.mark.parametrize(("p", "q", "k", "message"), [
    (torch.ones(3), torch.ones(3), 1, "p must have shape"), (torch.ones(1, 3), torch.ones(1, 2), 1, "q must have shape"),
    (torch.ones(1, 3), torch.ones(1, 3), -1, "k must be at least 0"), (torch.ones(1, 0), torch.ones(1, 0), 1, "V at least 1"),
    (torch.ones(1, 3).half(), torch.ones(1, 3).half(), 1, "p must have dtype"),
    (torch.ones(1, 3), torch.ones(1, 3).double(), 1, "q must have the dtype"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, p, q, k, message):
    for form in (fast.optimum, fast.optimum_without_replacement):
        with pytest.raises((ValueError, TypeError), match=message):
            form(p, q, k)


def test_too_many_tokens_to_enumerate_are_an_error(fast):
    with pytest.raises(ValueError, match="at most 16 tokens"):
        fast.optimum_without_replacement(torch.ones(1, 17), torch.ones(1, 17), 2)
