"""The law of a row in four numbers is the law that the pipeline gives: exactly, on logits that are logarithms of fractions."""

import math
from fractions import Fraction
from functools import total_ordering

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import regimes, seeds, values
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.speculative import cutoff, warp

F = Fraction


@total_ordering
class Log:
    """The logarithm of a fraction, with the arithmetic that a softmax needs, and no rounding: NumPy's exp asks objects for theirs."""

    def __init__(self, weight):
        self.weight = weight

    def exp(self):
        return self.weight

    def __sub__(self, other):
        return Log(self.weight / other.weight) if isinstance(other, Log) else self * (1 / math.exp(other))

    def __add__(self, other):
        return Log(self.weight * other.weight)

    def __neg__(self):
        return Log(1 / self.weight if self.weight else math.inf)

    def __truediv__(self, T):
        return Log(self.weight ** int(1 / T))  # T is 1, 1/2, 1/3

    def __mul__(self, one):
        assert one == 1
        return self

    def __eq__(self, other):
        return self.weight == _weight(other)

    def __lt__(self, other):
        return self.weight < _weight(other)


def _weight(other):
    return other.weight if isinstance(other, Log) else {-math.inf: 0, 0: 1, math.inf: math.inf}[float(other)]


def logs(weights):
    return np.array([*map(Log, map(F, weights)), None], dtype=object)[:-1]


rows = st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any).map(logs)  # zeros and ties abound
fractions = st.integers(0, 6).map(lambda n: F(n, 6))
settings = st.fixed_dictionaries(
    {"T": st.sampled_from([0, F(1, 3), F(1, 2), 1, 1]), "k": st.integers(0, 7), "mass": fractions, "ratio": fractions}
)
loose = {"T": 1, "k": 0, "mass": 1, "ratio": 0}
support = lambda p: set(np.flatnonzero(p))


@given(rows, settings)
@example(logs([1, 1, 1, 1]), loose | {"k": 3, "mass": F(2, 3)})  # top-p's share is of what top-k left: reached exactly, among ties
@example(logs([4, 2, 1, 1]), loose | {"mass": F(3, 4), "ratio": F(1, 2)})  # all three at one edge
@example(logs([0, 3, 0, 0]), loose | {"k": 3})  # tokens without probability fill the places
def test_the_numbers_give_back_the_law_of_the_pipeline(logits, setting):
    assert cutoff.restore(logits, cutoff.row(logits, **setting)).tolist() == warp.pipeline(logits, **setting).tolist()


@given(rows, settings)
def test_the_cut_is_the_last_token_kept(logits, setting):
    _, greatest, cut, last, total = cutoff.row(logits, **setting)
    p = warp.pipeline(logits, **setting)
    order = sorted(range(len(p)), key=lambda v: (-logits[v].weight, v))
    assert greatest == logits[order[0]]
    if cut == -math.inf and last == len(p) - 1:
        assert support(p) == support([each.weight for each in logits])  # nothing is cut
    else:
        assert cut == logits[last] and support(p) == {v for v in order[: order.index(last) + 1] if logits[v].weight}
    assert setting["T"] == 0 or total * max(p) == 1


@given(rows, settings, st.lists(st.integers(0, 5), max_size=4))
def test_a_tokens_probability_needs_its_own_logit_only(logits, setting, ids):
    ids = [v % len(logits) for v in ids]
    law = cutoff.row(logits, **setting)
    p = cutoff.restore(logits, law)
    hidden = np.array([each if v in ids else math.nan for v, each in enumerate(logits)] + [None], dtype=object)[:-1]
    assert cutoff.probability(hidden, law, np.array(ids, dtype=int)).tolist() == [p[v] for v in ids]


@given(rows, settings, st.integers(1, 5))
def test_a_common_shift_of_the_logits_moves_the_cut_and_nothing_else(logits, setting, shift):
    moved = logits + Log(F(shift))
    T, greatest, cut, last, total = cutoff.row(logits, **setting)
    there = cut if isinstance(cut, float) else cut + Log(F(shift))
    assert cutoff.row(moved, **setting) == (T, greatest + Log(F(shift)), there, last, total)


@given(st.permutations(range(1, 7)), settings, st.permutations(range(6)))
def test_renaming_tokens_that_do_not_tie_renames_the_law(weights, setting, names):
    logits, back = logs(weights), np.argsort(names)
    renamed = cutoff.restore(logits[back], cutoff.row(logits[back], **setting))
    assert renamed.tolist() == cutoff.restore(logits, cutoff.row(logits, **setting))[back].tolist()


@given(rows, st.integers(0, 7), fractions)
def test_top_k_and_min_p_cut_once(logits, k, ratio):
    for setting in ({"k": k}, {"ratio": ratio}):
        once = cutoff.restore(logits, cutoff.row(logits, **setting))
        assert cutoff.restore(logs(once), cutoff.row(logs(once), **setting)).tolist() == once.tolist()


@given(rows)
def test_greedy_is_the_first_place_of_the_order(logits):
    greedy = cutoff.restore(logits, cutoff.row(logits, T=0)).tolist()
    assert greedy == [v == int(np.argmax(logits)) for v in range(len(logits))]
    for setting in ({"k": 1}, {"mass": 0}, {"T": 0, "k": 5, "mass": F(1, 2), "ratio": F(1, 2)}):
        assert cutoff.restore(logits, cutoff.row(logits, **setting)).tolist() == greedy


def test_a_temperature_near_zero_loses_no_digit():
    logits = np.array([100.0, 100.0, 99.0])  # log Z of the bare logits would be 1e32 and swallow the logarithm of 2
    assert cutoff.restore(logits, cutoff.row(logits, T=1e-30)).tolist() == [0.5, 0.5, 0.0]


@given(regimes, seeds, st.sampled_from([1, 2, 40]))
def test_statistics_are_those_of_the_softmax(regime, seed, V):
    (logits,) = values(regime, [(V,)], seed)
    greatest, total, first, entropy = bounded(cutoff.statistics, logits, precision=Precision("float32"))
    p = warp.temperature(logits, 1)
    exactly(greatest.value, logits.max(), "greatest")
    exactly(first.value, logits.tolist().index(logits.max()), "first")
    agree(np.log(np.exp(logits - 50).sum()) + 50, total, "log-sum-exp")  # forms of their own, in float64
    agree(-sum(x * math.log(x) for x in p if x), entropy, "entropy")


def test_tokens_that_are_not_allowed_change_no_statistic():
    logits = np.array([0.0, 1.0, -2.0])
    masked = np.insert(logits, [0, 2], -np.inf)
    assert cutoff.statistics(masked)[2] == 2
    exactly(np.delete(cutoff.statistics(masked), 2), np.delete(cutoff.statistics(logits), 2))


@pytest.mark.parametrize("logits", [[np.nan, 0.0], [0.0, np.nan], [-np.inf, -np.inf], [np.inf, 0.0]])
@pytest.mark.parametrize("form", ["row", "statistics"])
def test_a_row_without_a_law_is_an_error(form, logits):
    with pytest.raises(ValueError, match="the greatest logit must be a finite number"):
        getattr(cutoff, form)(np.array(logits))
