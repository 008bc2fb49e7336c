"""`exactly` and `agree` say what differs and where; agreement with wrong outputs is toothless."""

import numpy as np
import pytest
import torch

from twofold.conformance import compare
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, Rounded


def expected(value):
    return Rounded(np.asarray(value, float), precision=Precision("bfloat16")).rounded_to("bfloat16")


def test_exactly_accepts_the_same_bits_and_any_nan():
    exactly(torch.tensor([1.0, float("nan"), float("inf")]), np.array([1.0, np.nan, np.inf]))
    exactly(torch.zeros(0, 3), np.zeros((0, 3)))


@pytest.mark.parametrize("wrong", [[1.0, 2.0000002], [1.0, np.nan], [1.0], [[1.0, 2.0]]])
def test_exactly_names_the_first_difference(wrong):
    with pytest.raises(AssertionError, match=r"codes: (1 of 2 elements differ, first at \(1,\)|shape)"):
        exactly(np.array(wrong), np.array([1.0, 2.0]), "codes")


@pytest.mark.parametrize("wrong", [[1.0, 2.02], [1.0, np.nan], [1.0, np.inf], [1.0, 2.0, 3.0]])
def test_agree_flags_one_element(wrong):
    with pytest.raises(AssertionError, match="output"):
        agree(np.array(wrong), expected([1.0, 2.0]))


def test_infinite_and_nan_values_are_semantic():
    agree(np.array([-np.inf, np.nan, 1.0]), expected([-np.inf, np.nan, 1.0]))
    for wrong in ([np.inf, np.nan, 1.0], [-1e38, np.nan, 1.0], [-np.inf, 0.0, 1.0], [-np.inf, np.nan, np.nan]):
        with pytest.raises(AssertionError):
            agree(np.array(wrong), expected([-np.inf, np.nan, 1.0]))
    compare.observed.clear()


def test_agreement_with_a_bound_that_accepts_zeros_is_toothless():
    wide = Rounded(np.array([1e-3, 2e-3]), np.ones(2), precision=Precision("float32"))
    agree(np.array([1e-3, 2e-3]), wide)
    with pytest.raises(AssertionError, match="toothless: .*all zero"):
        compare.observed.demand_teeth()
    agree(np.array([1.0, 2.0]), expected([1.0, 2.0]))  # one example that can tell is enough
    compare.observed.demand_teeth()


def test_a_number_is_an_output_too():
    agree(np.array(1.0), expected(1.0))
    with pytest.raises(AssertionError, match="output"):
        agree(np.array(1.01), expected(1.0))


def test_error_over_bound_is_recorded():
    compare.observed.clear()
    agree(np.array([1.0, 2.0 + 2.0**-8]), expected([1.0, 2.0]), "output")
    assert compare.observed.ratios["bfloat16", "output"] == pytest.approx(0.5, rel=1e-6)
