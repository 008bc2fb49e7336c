"""Laws of staged speculation: what each stage hands on has the law of its model, and the text that of the target."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, as_law, autoregressive, law, models, total_variation
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import block, chain, match, staged

F = Fraction
THIRDS = lambda context: np.array([F(1, 3)] * 3, dtype=object)  # the smallest model of the reference chain
exact_match = lambda p, q, draft, rng: match.verify(p, draft, rng)
verifiers = st.sampled_from([chain.verify, block.verify, exact_match])


def round_of(target, drafters, lengths, verify=chain.verify, inner=chain.verify):
    """A staged draft, verified for the target; `lengths` may be a function of the rng."""

    def program(rng):
        draft, q = staged.draft(drafters, (), lengths(rng) if callable(lengths) else lengths, rng, inner)
        p = [target(draft[:i]) for i in range(len(draft) + 1)]
        kept, token = verify(p, q, draft, rng)
        return (*draft[:kept], token)

    return program


CLAIMS = [Claim("two drafted, one guessed for each", lambda p, q: round_of(p, [THIRDS, q], [1, 2]), 3, reference=True)]


def tables(V, *lengths):
    return st.tuples(*(models(V, length, greatest=2) for length in lengths))


def recent(*tables, memory=1):
    """The tables as models of any context, by its last tokens: a guess may reach past the end of the draft."""
    return [lambda context, table=table: table(context[-memory:]) for table in tables]


@given(tables(2, 3, 3), st.integers(0, 2), st.integers(0, 3), verifiers)
@example((THIRDS, DRAFT), 2, 2, chain.verify)
def test_a_draft_has_the_law_of_the_larger_model_and_its_rows(pair, inner, length, verify):
    drafters = recent(*pair, memory=2)

    def program(rng):
        tokens, rows = staged.draft(drafters, (), [inner, length], rng, verify)
        assert len(tokens) == len(rows) == length
        assert all(as_law(row) == as_law(drafters[-1](tokens[:i])) for i, row in enumerate(rows))
        return tuple(tokens)

    assert law(program) == autoregressive(drafters[-1], length)


@given(tables(2, 3, 3, 3), verifiers, verifiers)
@example((TARGET, THIRDS, DRAFT), chain.verify, chain.verify)
@example((TARGET, THIRDS, DRAFT), block.verify, block.verify)
def test_text_has_the_targets_law_whichever_lossless_rules_are_stacked(three, outer, inner):
    rounds.lossless(round_of(three[0], recent(*three[1:], memory=2), [1, 2], outer, inner), three[0], 3)


@given(tables(2, 3, 2, 2, 2))
def test_text_has_the_targets_law_over_three_stages(four):
    rounds.lossless(round_of(four[0], recent(*four[1:]), [1, 1, 2]), four[0], 3)


@given(tables(2, 3, 2, 2), verifiers)
def test_lengths_may_be_random(three, outer):
    half = np.array([F(1, 2)] * 2, dtype=object)
    lengths = lambda rng: [1 + rng.categorical(half), 1 + rng.categorical(half)]
    rounds.lossless(round_of(three[0], recent(*three[1:]), lengths, outer), three[0], 3)


@given(tables(3, 3, 1, 2))
def test_another_drafter_at_every_place_loses_nothing(three):
    """The horizontal cascade: the further ahead, the smaller the model; each row is the one drawn from."""
    target, near, far = three[0], three[2], three[1]
    ahead = lambda context: near(context) if len(context) == 0 else far(())
    for verify in (chain.verify, block.verify):
        rounds.lossless(rounds.chain(target, ahead, 2, verify), target, 3)


def test_the_rows_of_the_model_that_guessed_are_the_wrong_ones():
    """By hand at the first place: q2 = (1, 1, 4)/6 is drawn, a third each is claimed, p = (3, 1, 2)/6; refused mass goes to token 0."""

    def claimed(rng):
        draft, _ = staged.draft([THIRDS, DRAFT], (), [1, 1], rng)
        kept, token = chain.verify([TARGET(()), TARGET(draft)], [THIRDS(())], draft, rng)
        return draft[0] if kept else token

    assert law(claimed) == {0: F(1, 6) + F(1, 12), 1: F(1, 12), 2: F(4, 6)}
    assert total_variation(law(claimed), as_law(TARGET(()))) == F(1, 3)


def test_tokens_kept_on_the_reference_pair_do_not_depend_on_who_guessed():
    for drafters, lengths in (([DRAFT], [2]), ([THIRDS, DRAFT], [1, 2]), ([THIRDS, DRAFT], [2, 2]), ([TARGET, DRAFT], [1, 2])):
        assert rounds.kept(round_of(TARGET, drafters, lengths)) == F(37, 36)
        assert rounds.kept(round_of(TARGET, drafters, lengths, block.verify)) == F(41, 36)


@given(st.integers(1, 3), st.integers(0, 7))
def test_a_smaller_model_that_is_right_saves_calls_of_the_larger(inner, length):
    calls = []

    def counted(p, q, draft, rng):
        calls.append(len(draft))
        return chain.verify(p, q, draft, rng)

    counts = lambda context: np.array([F(len(context) % 3 == v) for v in range(3)], dtype=object)
    assert law(lambda rng: tuple(staged.draft([counts, counts], (), [inner, length], rng, counted)[0])) == {
        tuple(i % 3 for i in range(length)): F(1)
    }
    assert calls.count(inner) == -(-length // (inner + 1))  # each emits all its guesses and one more


@pytest.mark.parametrize("lengths", [[0], [0, 0], [3, 0]])
def test_nothing_asked_for_is_nothing_drawn(lengths):
    assert staged.draft([DRAFT] * len(lengths), (), lengths, None) == ([], [])
