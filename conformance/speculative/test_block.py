"""Laws of block verification: exact, on fractions. It writes the target's text and keeps as much of a draft as any verifier can."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, autoregressive, completed, law, models
from twofold.conformance.speculative import referees, rounds
from twofold.spec.rng import Tape
from twofold.spec.speculative import block, chain

F = Fraction

pairs = st.sampled_from([(1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1)]).flatmap(
    lambda size: st.tuples(models(size[0], size[1] + 1), models(size[0], size[1] + 1), st.just(size[1]))
)
short = st.sampled_from([(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]).flatmap(
    lambda size: st.tuples(models(size[0], size[1] + 1), models(size[0], size[1] + 1), st.just(size[1]))
)
EXAMPLE = (lambda context: np.array([F(1, 3), F(2, 3)])), (lambda context: np.array([F(2, 3), F(1, 3)]))  # the paper's two coins


def rows(model, draft, count):
    return [model(draft[:i]) for i in range(count)]


@given(pairs)
@example((TARGET, DRAFT, 2))
def test_text_has_the_targets_joint_law_and_every_conditional(pair):
    target, drafter, gamma = pair
    rounds.lossless(rounds.chain(target, drafter, gamma, block.verify), target, gamma + 1)


@given(short)
@example((*EXAMPLE, 2))
def test_a_drafted_prefix_is_kept_with_probability_reach(pair):
    target, drafter, gamma = pair
    for draft in product(range(len(target(()))), repeat=gamma):
        p, q = rows(target, draft, gamma + 1), rows(drafter, draft, gamma)
        if not all(row[x] for row, x in zip(q, draft)):
            continue
        chance, reach = F(1), F(1)
        for i, x in enumerate(draft):
            chance, reach = chance * q[i][x], min(F(1), reach * p[i][x] / q[i][x])
            assert prefix_kept(target, drafter, gamma, draft[: i + 1]) == chance * reach


def prefix_kept(target, drafter, gamma, prefix):
    """The probability that this prefix is drafted and kept."""

    def program(rng):
        draft = ()
        for _ in range(gamma):
            draft += (rng.categorical(drafter(draft)),)
        kept, _ = block.verify(rows(target, draft, gamma + 1), rows(drafter, draft, gamma), draft, rng)
        return kept >= len(prefix) and draft[: len(prefix)] == prefix

    return law(program).get(True, 0)


@given(short)
@example((*EXAMPLE, 2))
@example((TARGET, DRAFT, 3))
def test_no_lossless_verifier_of_a_draft_keeps_more(pair):
    target, drafter, gamma = pair
    kept = rounds.kept(rounds.chain(target, drafter, gamma, block.verify))
    best = referees.best_chain(target, drafter, gamma)
    assert F(best).limit_denominator(kept.denominator) == kept  # the referee solves in floating point: the nearest such fraction
    assert rounds.kept(rounds.chain(target, drafter, gamma, chain.verify)) <= kept <= referees.prefix_tv(target, drafter, gamma)


@given(models(4, 2), models(4, 2))
def test_one_drafted_token_is_verified_as_by_the_token_rule(target, drafter):
    one, other = (law(rounds.chain(target, drafter, 1, verify)) for verify in (block.verify, chain.verify))
    assert one == other


@given(models(3, 4, greatest=3), st.lists(st.integers(0, 2), max_size=3).map(tuple))
def test_a_certain_draft_is_verified_as_by_the_token_rule(target, draft):
    p = rows(target, draft, len(draft) + 1)
    q = [np.array([F(token == v) for v in range(3)], dtype=object) for token in draft]
    assert law(lambda rng: block.verify(p, q, draft, rng)) == law(lambda rng: chain.verify_onehot(p, draft, rng))


def test_the_two_rules_differ_from_two_tokens_on():
    """The paper's example. Both write the same text; the joint coins keep more of the draft."""
    kept = {verify: rounds.kept(rounds.chain(*EXAMPLE, 2, verify)) for verify in (block.verify, chain.verify)}
    assert kept == {block.verify: F(11, 9), chain.verify: F(10, 9)}


@pytest.mark.parametrize(("gamma", "kept"), [(0, F(0)), (1, F(2, 3)), (2, F(41, 36)), (3, F(311, 216))])
def test_tokens_kept_on_the_reference_pair(gamma, kept):
    assert rounds.kept(rounds.chain(TARGET, DRAFT, gamma, block.verify)) == kept


@given(models(3, 3), models(3, 3), st.sampled_from([F(1, 2), F(3, 4), F(1)]))
def test_a_draft_that_stops_before_an_uncertain_token_loses_nothing(target, drafter, certain):
    """The decision to stop looks at the row that the next token would be drawn from, never at that token."""

    def program(rng):
        draft = ()
        while len(draft) < 2 and drafter(draft).max() >= certain:
            draft += (rng.categorical(drafter(draft)),)
        kept, token = block.verify(rows(target, draft, len(draft) + 1), rows(drafter, draft, len(draft)), draft, rng)
        return (*draft[:kept], token)

    rounds.lossless(program, target, 3)


def test_a_draft_that_drops_an_unlikely_token_loses_the_law():
    def program(rng):
        draft = ()
        while len(draft) < 2:
            token = rng.categorical(DRAFT(draft))
            if DRAFT(draft)[token] < F(1, 2):
                break
            draft += (token,)
        kept, token = block.verify(rows(TARGET, draft, len(draft) + 1), rows(DRAFT, draft, len(draft)), draft, rng)
        return (*draft[:kept], token)

    assert completed(law(program), TARGET, 3) != autoregressive(TARGET, 3)


@given(models(3, 3))
def test_a_drafter_equal_to_the_target_is_always_kept(target):
    """Every reach is 1 and nothing is left over: 0 / 0, a coin that succeeds."""
    assert {len(text) for text in law(rounds.chain(target, target, 2, block.verify))} == {3}


def test_a_drafter_on_other_tokens_is_never_kept():
    target, drafter = (lambda context: np.array([F(1, 3), F(2, 3), F(0)])), (lambda context: np.array([F(0), F(0), F(1)]))
    assert law(rounds.chain(target, drafter, 2, block.verify)) == {(0,): F(1, 3), (1,): F(2, 3)}


def test_nothing_is_kept_beyond_a_token_that_the_target_excludes():
    p = [np.array([F(0), F(1)]), np.array([F(1), F(0)]), np.array([F(1), F(0)])]
    q = [np.array([F(1, 2), F(1, 2)])] * 2
    assert law(lambda rng: block.verify(p, q, [0, 0], rng)) == {(0, 1): 1}


@given(models(3, 3), models(3, 3), st.permutations(range(3)))
def test_renaming_the_tokens_renames_the_outputs(target, drafter, names):
    back = np.argsort(names)
    renamed = lambda model: lambda context: model([back[token] for token in context])[back]
    plain = law(rounds.chain(target, drafter, 2, block.verify))
    other = law(rounds.chain(renamed(target), renamed(drafter), 2, block.verify))
    assert other == {tuple(names[token] for token in text): weight for text, weight in plain.items()}


def test_all_coins_are_drawn_the_shortest_prefix_first():
    p, q = np.array([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.75, 0.25]])
    chances = []

    class Recorded(Tape):
        def bernoulli(self, probability):
            chances.append(float(probability))
            return super().bernoulli(probability)

    assert block.verify(p, q, [0, 0], Recorded([0.9, 0.9], [0.0])) == (0, 1)
    assert chances == [0.0, 0.5]  # half of p[1] lies below q[1] everywhere: Z = 0; the whole draft's reach is a half


def test_a_token_that_was_not_drawn_from_q_is_an_error():
    with pytest.raises(ValueError, match="was not drawn from q"):
        block.verify(np.full((3, 2), 0.5), np.array([[0.5, 0.5], [1.0, 0.0]]), [0, 1], Tape([0.5, 0.5], [0.5]))


@pytest.mark.parametrize(("side", "place"), [("p", (0, 0)), ("p", (0, 1)), ("p", (1, 0)), ("p", (1, 1)), ("q", (0, 0)), ("q", (1, 1))])
def test_a_nan_is_an_error_and_never_a_token(side, place):
    rows = {"p": np.full((3, 2), 0.5), "q": np.array([[0.9, 0.1], [0.5, 0.5]])}
    rows[side][place] = np.nan
    with pytest.raises(ValueError, match="NaN|numbers"):
        block.verify(rows["p"], rows["q"], [0, 0], Tape([0.99, 0.99], [0.5]))
