"""Laws of speculative decoding. Every law here is exact; nothing is sampled and nothing is rounded."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, as_law, autoregressive, completed, conditionals, law, models
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain, cost

F = Fraction


def round_of(target, drafter, gamma, verify=chain.verify):
    """A program that drafts gamma tokens and verifies them; its outcome is what it emits."""

    def program(rng):
        draft = ()
        for _ in range(gamma):
            draft += (rng.categorical(drafter(draft)),)
        p = [target(draft[:i]) for i in range(gamma + 1)]
        q = [drafter(draft[:i]) for i in range(gamma)]
        kept, token = verify(p, q, draft, rng)
        return (*draft[:kept], token)

    return program


pairs = st.sampled_from([(1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1), (4, 2)]).flatmap(
    lambda size: st.tuples(models(size[0], size[1] + 1), models(size[0], size[1] + 1), st.just(size[1]))
)


@given(pairs)
def test_joint_law_is_the_targets(pair):
    target, drafter, gamma = pair
    outputs = law(round_of(target, drafter, gamma))
    assert completed(outputs, target, gamma + 1) == autoregressive(target, gamma + 1)


@given(models(3, 4, greatest=2), models(3, 4, greatest=2))
def test_after_every_prefix_the_next_token_has_the_targets_law(target, drafter):
    for prefix, row in conditionals(law(round_of(target, drafter, 3))).items():
        assert row == as_law(target(prefix)), prefix


@given(models(4, 2), models(4, 2))
def test_first_token_is_kept_with_probability_one_minus_total_variation(target, drafter):
    p, q = target(()), drafter(())
    kept = law(lambda rng: chain.verify([p, target((0,))], [q], (rng.categorical(q),), rng)[0])
    assert kept.get(1, 0) == np.minimum(p, q).sum() == 1 - abs(p - q).sum() / 2


@given(models(3, 3))
def test_a_drafter_equal_to_the_target_is_always_kept(target):
    assert {len(text) for text in law(round_of(target, target, 2))} == {3}


def test_a_drafter_on_other_tokens_is_never_kept():
    target, drafter = (lambda context: np.array([F(1, 3), F(2, 3), F(0)])), (lambda context: np.array([F(0), F(0), F(1)]))
    assert law(round_of(target, drafter, 2)) == {(0,): F(1, 3), (1,): F(2, 3)}


@given(models(3, 3), st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_a_certain_draft_is_one_with_one_hot_rows(target, draft):
    p = [target(draft[:i]) for i in range(3)]
    q = [np.array([F(token == v) for v in range(3)], dtype=object) for token in draft]
    assert law(lambda rng: chain.verify_onehot(p, draft, rng)) == law(lambda rng: chain.verify(p, q, draft, rng))


@given(models(3, 3))
def test_a_certain_draft_loses_nothing(target):
    greedy = lambda context: np.array([F(v == int(np.argmax(target(context)))) for v in range(3)], dtype=object)
    outputs = law(round_of(target, greedy, 2, lambda p, q, draft, rng: chain.verify_onehot(p, draft, rng)))
    assert completed(outputs, target, 3) == autoregressive(target, 3)


lenient = lambda lenience: lambda p, q, draft, rng: chain.verify_lenient(p, q, draft, lenience, rng)


@given(models(3, 3), models(3, 3), st.sampled_from([F(1, 3), F(1, 2), F(9, 10)]))
def test_lenience_bounds_every_tokens_probability(target, drafter, lenience):
    for prefix, row in conditionals(law(round_of(target, drafter, 2, lenient(lenience)))).items():
        p = target(prefix)
        assert all(weight <= p[token] / lenience for token, weight in row.items())
        if len(prefix) < 2:
            q = drafter(prefix)
            kept = np.minimum(q, p / lenience)
            left = np.maximum(p - lenience * q, 0)
            assert row == as_law(kept + (q - kept).sum() * left / (left.sum() or 1))


@given(models(3, 3), models(3, 3))
def test_lenience_one_is_the_strict_rule_and_less_keeps_more(target, drafter):
    strict, loose = (law(round_of(target, drafter, 2, lenient(F(x, 4)))) for x in (4, 3))
    assert strict == law(round_of(target, drafter, 2))
    mean = lambda outputs: sum(len(text) * weight for text, weight in outputs.items())
    assert mean(loose) >= mean(strict)


@pytest.mark.parametrize(("gamma", "kept"), [(0, F(0)), (1, F(2, 3)), (2, F(37, 36)), (3, F(133, 108))])
def test_tokens_kept_on_the_reference_pair(gamma, kept):
    outputs = law(round_of(TARGET, DRAFT, gamma))
    assert sum((len(text) - 1) * weight for text, weight in outputs.items()) == kept


@given(models(3, 1), models(3, 1), st.integers(0, 3))
def test_tokens_per_call_follow_the_closed_form_where_rows_do_not_depend_on_context(target, drafter, gamma):
    p, q = target(()), drafter(())
    outputs = law(round_of(lambda context: p, lambda context: q, gamma))
    assert sum(len(text) * weight for text, weight in outputs.items()) == cost.expected_tokens(np.minimum(p, q).sum(), gamma)


@given(models(3, 3), models(3, 3), st.permutations(range(3)))
def test_renaming_the_tokens_renames_the_outputs(target, drafter, names):
    back = np.argsort(names)
    renamed = lambda model: lambda context: model([back[token] for token in context])[back]
    plain, other = law(round_of(target, drafter, 2)), law(round_of(renamed(target), renamed(drafter), 2))
    assert other == {tuple(names[token] for token in text): weight for text, weight in plain.items()}


def test_a_token_that_was_not_drawn_from_q_is_an_error():
    with pytest.raises(ValueError, match="was not drawn from q"):
        chain.verify(np.full((2, 2), 0.5), np.array([[1.0, 0.0]]), [1], Tape([0.5], [0.5]))


@pytest.mark.parametrize("place", [(0, 0), (0, 1)])
def test_a_nan_is_an_error_and_never_a_token(place):
    p = np.full((2, 2), 0.5)
    p[place] = np.nan
    with pytest.raises(ValueError, match="NaN|numbers"):
        chain.verify(p, np.array([[0.9, 0.1]]), [0], Tape([0.9], [0.5]))
