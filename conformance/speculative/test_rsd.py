"""Laws of recursive rejection without replacement. Every law here is exact; nothing is sampled and nothing is rounded."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, as_law, law, models, total_variation
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.referees import inside, min_cut
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain, match, rsd, specinfer

F = Fraction

weights = st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(any)
rows = models(3, 1).map(lambda model: model(()))
P, Q = TARGET(()), DRAFT(())


def level(p, q, k, select=rsd.select):
    """A program that draws k drafts: the drafts, the token, and whether it was drafted."""

    def program(rng):
        drafts = tuple(rsd.sample(q, k, rng))
        return drafts, *select(p, q, drafts, rng)

    return program


def acceptance(p, q, k):
    return sum(weight for (_, _, accepted), weight in law(level(p, q, k)).items() if accepted)


def marginal(outcomes):
    found = {}
    for (_, token, _), weight in outcomes.items():
        found[token] = found.get(token, 0) + weight
    return found


@given(rows, rows, st.integers(0, 4))
def test_the_token_has_the_targets_law(p, q, k):
    assert marginal(law(level(p, q, k))) == as_law(p)


@given(rounds.shapes, models(2, 6), models(2, 6))
def test_a_tree_of_any_shape_has_the_targets_law(parents, target, drafter):
    rounds.lossless(rounds.tree(target, drafter, parents, rsd.verify_tree), target, 6)


@given(models(3, 3), models(3, 3))
def test_a_tree_of_three_tokens_has_the_targets_law(target, drafter):
    rounds.lossless(rounds.tree(target, drafter, rounds.branching(2, 1), rsd.verify_tree), target, 3)


@given(rows, st.integers(0, 4))
def test_drafts_are_distinct_and_exhaust_the_support(q, k):
    for drafts in law(lambda rng: tuple(rsd.sample(q, k, rng))):
        assert len(set(drafts)) == len(drafts) == min(k, np.count_nonzero(q)) and all(q[v] > 0 for v in drafts)


@given(weights, st.integers(0, 4))
def test_the_race_draws_as_one_after_another_does(weights, k):
    """exp(-E) to the power 1/q has distribution function s^q, so for integer rates the chance of an order is an integral of monomials."""
    q = np.array([F(w, sum(weights)) for w in weights], dtype=object)
    runners = [v for v in range(4) if weights[v]]
    orders = {}
    for order in permutations(runners, min(k, len(runners))):
        power, chance = sum(weights[v] for v in runners if v not in order), F(1)  # all the others arrive later: s^power
        for v in reversed(order):
            chance *= F(weights[v], weights[v] + power)  # the integral of w t^(w - 1) t^power up to s
            power += weights[v]
        orders[order] = chance
    assert law(lambda rng: tuple(rsd.sample(q, k, rng))) == orders


@given(weights, st.permutations(range(4)), st.integers(0, 5))
def test_a_race_is_won_by_the_shortest_times_and_ties_by_id(weights, times, k):
    q = np.array([F(w, sum(weights)) for w in weights], dtype=object)
    finish = np.array([F(t // 2) for t in times], dtype=object)  # pairs of equal times
    expected = sorted((v for v in range(4) if q[v]), key=lambda v: (finish[v], v))[:k]
    assert rsd.race(q, k, finish * q) == expected


@given(rows, rows)
def test_drafts_that_cover_the_target_are_always_kept(p, q):
    for drafts, token, accepted in law(level(p, q, 3)):
        assert accepted == (token in drafts)
        assert accepted or not set(np.flatnonzero(p)) <= set(drafts)


@given(rows, rows, st.integers(0, 3))
def test_acceptance_grows_with_every_draft_and_stays_below_the_least_cut(p, q, k):
    drafts = law(lambda rng: tuple(rsd.sample(q, k, rng)))
    assert acceptance(p, q, k) <= min_cut(p, inside(drafts))
    assert acceptance(p, q, k) <= acceptance(p, q, k + 1)


@given(rows, rows)
def test_one_draft_is_speculative_sampling(p, q):
    one = law(lambda rng: specinfer.select(p, [q], (rng.categorical(q),), rng))
    assert law(lambda rng: rsd.select(p, q, rsd.sample(q, 1, rng), rng)) == one


@given(models(3, 3), models(3, 3))
def test_a_tree_of_width_one_is_a_chain(target, drafter):
    tree = rounds.tree(target, drafter, rounds.branching(1, 1), rsd.verify_tree)
    assert law(tree) == law(rounds.chain(target, drafter, 2, chain.verify))


@given(rows, st.permutations(range(3)))
def test_a_certain_order_is_exact_match(p, order):
    """Where each draft was certain, given those before it, recursive rejection is `match.sequential`."""
    onehot = [np.array([F(v == token) for v in range(3)], dtype=object) for token in order]
    assert law(lambda rng: specinfer.select(p, onehot, order, rng)) == law(lambda rng: match.sequential(p, order, rng))


@pytest.mark.parametrize(("sort", "bias"), [(True, F(1, 6)), (False, F(0))])
def test_drafts_that_are_sorted_by_probability_lose_the_law(sort, bias):
    ordered = lambda q, k, rng: sorted(rsd.sample(q, k, rng), key=lambda token: (-q[token], token) if sort else 0)
    found = law(rounds.level(TARGET, DRAFT, 2, rsd.select, ordered))
    assert total_variation(found, {(token,): weight for token, weight in as_law(P).items()}) == bias


def test_acceptance_on_the_reference_pair():
    assert acceptance(P, Q, 2) == F(5, 6) and acceptance(P, Q, 3) == 1


@pytest.mark.parametrize(("widths", "kept"), [((1, 1), F(37, 36)), ((2, 1), F(47, 36)), ((2, 2), F(167, 108))])
def test_tokens_kept_on_the_reference_pair(widths, kept):
    assert rounds.kept(rounds.tree(TARGET, DRAFT, rounds.branching(*widths), rsd.verify_tree)) == kept


def test_both_taking_out_and_renormalizing_are_needed():
    """The reference pair is blind to it; this one is not."""
    p, q = (np.array([F(w, 6) for w in row], dtype=object) for row in ((0, 2, 4), (4, 1, 1)))
    assert marginal(law(level(p, q, 2))) == as_law(p)
    out = lambda q, token: np.where(np.arange(3) == token, 0, q)
    for forgetful in (lambda q, drafts: [q, q], lambda q, drafts: [q, out(q, drafts[0])]):
        select = lambda p, q, drafts, rng, laws=forgetful: specinfer.select(p, laws(q, drafts), drafts, rng)
        assert total_variation(marginal(law(level(p, q, 2, select))), as_law(p)) == F(1, 6)


@pytest.mark.parametrize("drafts", [[0, 0], [2]])
def test_a_token_that_was_not_drawn_without_replacement_is_an_error(drafts):
    with pytest.raises(ValueError, match="has probability 0"):
        rsd.select(np.array([0.0, 0.5, 0.5]), np.array([0.5, 0.5, 0.0]), drafts, Tape([0.5, 0.5], [0.5]))


def test_a_nan_is_an_error_and_never_a_token():
    with pytest.raises(ValueError, match="NaN|numbers"):
        rsd.select(np.array([0.5, np.nan]), np.array([0.9, 0.1]), [0], Tape([0.9], [0.5]))
