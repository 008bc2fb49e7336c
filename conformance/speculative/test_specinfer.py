"""Laws of recursive rejection. Every law here is exact; nothing is sampled and nothing is rounded."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, as_law, law, models, total_variation
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.referees import inside, min_cut
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain, specinfer

F = Fraction

rows = models(3, 1).map(lambda model: model(()))
P, Q = TARGET(()), DRAFT(())


def level(p, qs, select=specinfer.select):
    """A program that draws one draft from each law: the drafts, the token, and whether it was drafted."""

    def program(rng):
        drafts = tuple(rng.categorical(q) for q in qs)
        return drafts, *select(p, qs, drafts, rng)

    return program


def acceptance(p, qs):
    return sum(weight for (_, _, accepted), weight in law(level(p, qs)).items() if accepted)


def marginal(outcomes):
    found = {}
    for (_, token, _), weight in outcomes.items():
        found[token] = found.get(token, 0) + weight
    return found


@given(rows, st.lists(rows, max_size=4))
def test_the_token_has_the_targets_law_whatever_each_draft_was_drawn_from(p, qs):
    assert marginal(law(level(p, qs))) == as_law(p)


def test_drafts_on_disjoint_supports_have_the_targets_law():
    qs = [np.array([F(1), F(0), F(0)]), np.array([F(0), F(1), F(0)]), np.array([F(0), F(0), F(1)])]
    assert marginal(law(level(P, qs))) == as_law(P) and acceptance(P, qs) == 1


@given(rounds.shapes, models(2, 6), models(2, 6))
def test_a_tree_of_any_shape_has_the_targets_law(parents, target, drafter):
    rounds.lossless(rounds.tree(target, drafter, parents, specinfer.verify_tree), target, 6)


@given(models(3, 3), models(3, 3))
def test_a_tree_of_three_tokens_has_the_targets_law(target, drafter):
    rounds.lossless(rounds.tree(target, drafter, rounds.branching(2, 1), specinfer.verify_tree), target, 3)


@given(rows, st.lists(rows, max_size=3))
def test_what_was_refused_never_comes_back(p, qs):
    for drafts, token, accepted in law(level(p, qs)):
        assert accepted == (token in drafts)


@given(rows, rows, st.integers(0, 4))
def test_acceptance_grows_with_every_draft_and_stays_below_the_least_cut(p, q, k):
    drafts = law(lambda rng: tuple(rounds.independent(q, k, rng)))
    assert acceptance(p, [q] * k) <= min_cut(p, inside(drafts))
    assert acceptance(p, [q] * k) <= acceptance(p, [q] * (k + 1))


@given(rows, rows)
def test_one_draft_is_speculative_sampling(p, q):
    def one(rng):
        draft = (rng.categorical(q),)
        kept, token = chain.verify([p, as_onehot(draft[0])], [q], draft, rng)
        return draft, draft[0] if kept else token, kept == 1

    assert law(level(p, [q])) == law(one)


def as_onehot(token):
    return np.array([F(v == token) for v in range(3)], dtype=object)


@given(models(3, 3), models(3, 3))
def test_a_tree_of_width_one_is_a_chain(target, drafter):
    tree = rounds.tree(target, drafter, rounds.branching(1, 1), specinfer.verify_tree)
    assert law(tree) == law(rounds.chain(target, drafter, 2, chain.verify))


@given(rows, rows)
def test_an_order_that_is_blind_to_the_values_loses_nothing(p, q):
    """The order is drawn first: three drafts, tried as 2, 0, 1 or as 1, 2, 0."""

    def shuffled(rng):
        order = (2, 0, 1) if rng.bernoulli(F(1, 3)) else (1, 2, 0)
        drafts = rounds.independent(q, 3, rng)
        return specinfer.select(p, [q] * 3, [drafts[i] for i in order], rng)[0]

    assert law(shuffled) == as_law(p)


def test_sampled_drafts_that_are_sorted_by_probability_lose_the_law():
    ordered = lambda q, k, rng: sorted(rounds.independent(q, k, rng), key=lambda token: (-q[token], token))
    assert total_variation(law(rounds.level(TARGET, DRAFT, 2, specinfer.select, ordered)), as_level(P)) == F(5, 36)


def test_the_likeliest_tokens_are_certain_drafts_and_lose_the_law_if_scored_as_samples():
    top = lambda q, k, rng: np.argsort(-q, kind="stable")[:k].tolist()
    assert total_variation(law(rounds.level(TARGET, DRAFT, 2, specinfer.select, top)), as_level(P)) == F(1, 6)

    def certain(rng):
        drafts = top(Q, 2, rng)
        return (specinfer.select(P, [as_onehot(token) for token in drafts], drafts, rng)[0],)

    assert law(certain) == as_level(P)


def as_level(p):
    return {(token,): weight for token, weight in as_law(p).items()}


def test_acceptance_on_the_reference_pair():
    assert acceptance(P, [Q]) == F(2, 3)
    assert acceptance(P, [Q, Q]) == F(13, 18) < F(29, 36) == min_cut(P, inside(law(lambda rng: tuple(rounds.independent(Q, 2, rng)))))


@pytest.mark.parametrize(("widths", "kept"), [((), F(0)), ((1, 1), F(37, 36)), ((2, 1), F(121, 108)), ((2, 2), F(197, 162))])
def test_tokens_kept_on_the_reference_pair(widths, kept):
    assert rounds.kept(rounds.tree(TARGET, DRAFT, rounds.branching(*widths), specinfer.verify_tree)) == kept


def test_a_residual_that_rounding_exhausts_stays_what_it_was():
    p, q = np.array([0.5, 0.5]), np.array([0.5, 0.5 + 2.0**-52])  # refused by a coin that no generator gives
    assert specinfer.select(p, [q, q], [1, 1], Tape(accept=[1.0, 1.0], token=[0.2])) == (0, False)


def test_a_token_that_was_not_drawn_from_its_law_is_an_error():
    with pytest.raises(ValueError, match=r"drafts\[1\] = 1 has probability 0"):
        specinfer.select(np.array([0.0, 1.0]), [np.array([1.0, 0.0])] * 2, [0, 1], Tape([0.5, 0.5], [0.5]))


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_is_an_error_and_never_a_token(place):
    p = np.full(2, 0.5)
    p[place] = np.nan
    with pytest.raises(ValueError, match="NaN|numbers"):
        specinfer.select(p, [np.array([0.9, 0.1])], [0], Tape([0.9], [0.5]))
