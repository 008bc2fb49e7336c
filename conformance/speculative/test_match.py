"""Laws of exact match. Every law here is exact; nothing is sampled and nothing is rounded."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, law, models
from twofold.conformance.speculative import rounds
from twofold.spec.rng import Tape
from twofold.spec.speculative import match

F = Fraction

sizes = st.sampled_from([(1, 2), (2, 0), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 2)])  # (V, gamma)
pairs = sizes.flatmap(lambda size: st.tuples(models(size[0], size[1] + 1), models(size[0], size[1] + 1), st.just(size[1])))
rows = models(4, 1).map(lambda model: model(()))


@given(pairs)
def test_a_chain_has_the_targets_law(pair):
    target, drafter, gamma = pair
    rounds.lossless(rounds.chain(target, drafter, gamma, match.verify), target, gamma + 1)


@given(rounds.shapes, models(2, 6), models(2, 6))
def test_a_tree_of_any_shape_has_the_targets_law(parents, target, drafter):
    rounds.lossless(rounds.tree(target, drafter, parents, match.verify_tree), target, 6)


@given(models(3, 3), models(3, 3), st.sampled_from(["sorted", "pruned", "likeliest", "mixed"]))
def test_any_choice_of_drafts_that_is_blind_to_the_targets_coins_has_the_targets_law(target, drafter, choice):
    def sample(q, k, rng):
        if choice == "likeliest":
            return np.argsort(-q, kind="stable")[:k].tolist()
        drafts = rounds.independent(q, k, rng)
        if choice == "sorted":
            return sorted(drafts, key=lambda token: -q[token])
        if choice == "pruned":
            return [token for token in drafts if q[token] > F(1, 3)]
        return [int(np.argmax(q)), *drafts[1:]]

    rounds.lossless(rounds.tree(target, drafter, rounds.branching(2, 2), match.verify_tree, sample), target, 3)


@given(rows, rows, st.integers(0, 3), st.booleans())
def test_the_chance_of_a_match_is_that_of_the_targets_token_among_the_drafts(p, q, k, distinct):
    sample = rounds.distinct if distinct else rounds.independent
    among = law(lambda rng: frozenset(sample(q, k, rng)))
    program = rounds.tree(lambda context: p, lambda context: q, rounds.branching(k), match.verify_tree, sample)
    assert rounds.kept(program) == sum(sum(p[v] for v in drafts) * weight for drafts, weight in among.items())


@given(rows, rows)
def test_one_sampled_draft_is_kept_no_more_often_than_by_speculative_sampling(p, q):
    program = rounds.tree(lambda context: p, lambda context: q, [-1, 0], match.verify_tree)
    assert rounds.kept(program) == (p * q).sum() <= np.minimum(p, q).sum()


@given(models(3, 3), st.lists(st.integers(0, 2), max_size=2))
def test_a_tree_of_width_one_is_a_chain(target, draft):
    p = [target(draft[:i]) for i in range(len(draft) + 1)]
    parents = list(range(-1, len(draft)))

    def tree(rng):
        path, token = match.verify_tree(p, [-1, *draft], parents, rng)
        return len(path), token

    assert law(tree) == law(lambda rng: match.verify(p, draft, rng))


@given(rows, st.permutations(range(4)), st.integers(0, 4))
def test_trying_drafts_one_by_one_is_one_draw_and_a_look_whether_it_was_drafted(p, order, k):
    def one_draw(rng):
        token = rng.categorical(p)
        return token, token in order[:k]

    assert law(lambda rng: match.sequential(p, order[:k], rng)) == law(one_draw)


@given(models(4, 1), models(4, 1), st.integers(0, 4))
def test_sequential_has_the_targets_law_for_sampled_drafts(target, drafter, k):
    rounds.lossless(rounds.level(target, drafter, k, match.sequential), target, 1)


@given(rows)
def test_children_that_exhaust_the_support_are_always_matched(p):
    children = [v for v in range(4) if p[v]]
    tokens, parents = [-1, *children], [-1, *(0 for _ in children)]
    leaves = [p] * len(tokens)
    assert all(len(path) == 1 for path in law(lambda rng: tuple(match.verify_tree(leaves, tokens, parents, rng)[0])))
    assert all(accepted for _, accepted in law(lambda rng: match.sequential(p, children, rng)))


def test_of_equal_children_the_first_is_followed():
    p = [np.array([F(0), F(1)])] * 4
    assert law(lambda rng: tuple(match.verify_tree(p, [-1, 0, 1, 1], [-1, 0, 0, 0], rng)[0])) == {(2,): F(1)}


@pytest.mark.parametrize(("gamma", "kept"), [(0, F(0)), (1, F(1, 3)), (2, F(91, 216)), (3, F(385, 864))])
def test_tokens_kept_on_the_reference_pair(gamma, kept):
    assert rounds.kept(rounds.chain(TARGET, DRAFT, gamma, match.verify)) == kept


def test_repeated_drafts_are_an_error_one_by_one():
    with pytest.raises(ValueError, match="drafts must be distinct"):
        match.sequential(np.array([0.5, 0.5]), [1, 1], Tape([0.9], [0.5]))


@pytest.mark.parametrize("parents", [[0, 0], [-1, 1], [-1, -1], [-1, 2, 0], [-1]])
def test_a_tree_out_of_order_is_an_error(parents):
    with pytest.raises(ValueError, match="parents must be"):
        match.verify_tree(np.full((3, 2), 0.5), [-1, 0, 1][: max(2, len(parents))], parents, Tape(token=[0.5]))


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_is_an_error_and_never_a_token(place):
    p = np.full((1, 2), 0.5)
    p[0, place] = np.nan
    for ask in (
        lambda: match.verify(p, [], Tape(token=[0.9])),
        lambda: match.verify_tree(p, [-1], [-1], Tape(token=[0.9])),
        lambda: match.sequential(p[0], [0], Tape([0.9], [0.9])),
    ):
        with pytest.raises(ValueError, match="NaN|numbers"):
            ask()
