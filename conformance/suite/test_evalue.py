"""The e-value: a martingale under the law, and strong evidence against every other one."""

from fractions import Fraction
from math import exp, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.evalue import ALPHA, LIMIT, consistent, log_evalue
from twofold.conformance.inputs import seeds

LAW = {"a": Fraction(1, 2), "b": Fraction(1, 3), "c": Fraction(1, 6), "never": Fraction(0)}


@given(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)))
def test_one_more_sample_leaves_the_mean_evalue_unchanged(counts):
    before = dict(zip("abc", counts, strict=True))
    now = exp(log_evalue(before, LAW))
    later = sum(float(LAW[x]) * exp(log_evalue(before | {x: before[x] + 1}, LAW)) for x in "abc")
    assert abs(later - now) < 1e-9 * now  # a martingale: looking after every sample costs nothing


def test_no_samples_are_no_evidence():
    assert log_evalue([], LAW) == 0


def test_an_impossible_outcome_is_final():
    assert log_evalue(["a", "never"], LAW) == inf
    with pytest.raises(AssertionError, match="do not follow the law"):
        consistent(["a", "never"], LAW)


@given(seeds)
def test_right_samples_stay_far_below_the_limit_at_every_look(seed):
    rng = np.random.default_rng(seed)
    samples = rng.choice(list("abc"), 2000, p=[1 / 2, 1 / 3, 1 / 6])
    assert max(log_evalue(samples[:n], LAW) for n in range(0, 2001, 50)) < LIMIT


@pytest.mark.parametrize(("epsilon", "samples"), [(0.2, 600), (0.1, 2500), (0.05, 10_000), (0.02, 80_000)])
def test_a_bias_is_found_with_as_many_samples_as_its_divergence_asks_for(epsilon, samples):
    rng = np.random.default_rng(7)
    biased = {"a": 1 / 2 + epsilon, "b": 1 / 3 - epsilon, "c": 1 / 6}
    with pytest.raises(AssertionError, match="do not follow the law"):
        consistent(rng.choice(list(biased), samples, p=list(biased.values())), LAW)


def test_the_limit_is_the_shared_error_rate():
    assert exp(-LIMIT) * 1000 == pytest.approx(ALPHA)
