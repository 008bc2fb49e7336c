"""The enumerating engine itself: its laws are laws, and it sees what a sampler does wrong."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, as_law, autoregressive, completed, conditionals, law, models, total_variation
from twofold.spec.rng import Sampler
from twofold.spec.speculative import sampling


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_a_categorical_draw_has_its_own_law(weights):
    row = np.array([Fraction(w, sum(weights)) for w in weights], dtype=object)
    assert law(lambda rng: rng.categorical(row)) == as_law(row)


def test_probabilities_above_one_and_below_zero_are_certain():
    assert law(lambda rng: rng.bernoulli(Fraction(7, 3))) == {True: 1}
    assert law(lambda rng: rng.bernoulli(Fraction(-1, 3))) == {False: 1}


@pytest.mark.parametrize("row", [[Fraction(1, 2), Fraction(1, 3)], [Fraction(3, 2), Fraction(-1, 2)], [Fraction(1), float("nan")]])
def test_rows_that_are_no_law_are_refused(row):
    with pytest.raises(ValueError, match="sum to exactly 1"):
        law(lambda rng: rng.categorical(row))


def test_a_program_without_choices_is_certain():
    assert law(lambda rng: "done") == {"done": 1}


@given(models(2, 3))
def test_drawing_token_by_token_is_the_autoregressive_law(target):
    def program(rng):
        text = ()
        while len(text) < 3:
            text += (rng.categorical(target(text)),)
        return text

    assert law(program) == autoregressive(target, 3)


@given(models(3, 2), models(3, 2))
def test_conditionals_recover_the_rows(target, other):
    outputs = autoregressive(target, 2)
    assert all(row == as_law(target(prefix)) for prefix, row in conditionals(outputs).items())
    assert total_variation(outputs, completed(autoregressive(target, 1), target, 2)) == 0
    assert (total_variation(outputs, autoregressive(other, 2)) == 0) == (outputs == autoregressive(other, 2))


def test_total_variation_of_the_reference_pair_at_the_start():
    assert total_variation(as_law(TARGET(())), as_law(DRAFT(()))) == Fraction(1, 3)


def test_sampled_frequencies_approach_the_exact_law():
    from twofold.conformance.evalue import consistent

    exact = law(lambda rng: tuple(sampling.step(TARGET, DRAFT, (), 2, rng)))
    floats = lambda model: lambda context: model(context).astype(float)
    rng = Sampler(np.random.default_rng(0))
    consistent([tuple(sampling.step(floats(TARGET), floats(DRAFT), (), 2, rng)) for _ in range(3000)], exact)
