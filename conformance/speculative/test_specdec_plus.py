"""Adaptive draft lengths: which rules keep the law of the text, and which one is best."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.law import DRAFT, TARGET, autoregressive, completed, law, models, total_variation
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import block, chain, match, specdec_plus

F = Fraction
levels = st.sampled_from([F(0), F(1, 4), F(1, 2), F(3, 4), F(1)])


def adaptive(target, drafter, gamma, length, verify=chain.verify):
    """Draft gamma tokens, keep the first `length(draft)` of them as the draft, verify, emit."""

    def program(rng):
        draft = ()
        for _ in range(gamma):
            draft += (rng.categorical(drafter(draft)),)
        draft = draft[: length(draft)]
        p, q = [target(draft[:i]) for i in range(len(draft) + 1)], [drafter(draft[:i]) for i in range(len(draft))]
        kept, token = verify(p, q, draft, rng)
        return (*draft[:kept], token)

    return program


def stopping(head, h):
    """The rule under a head that has seen each token: `head(context)[token]` is the token's confidence."""
    return lambda draft: specdec_plus.stop([head(draft[:i])[x] for i, x in enumerate(draft)], h)


def measurable(length, V, gamma):
    """Whether position i belongs to the draft is decided by the tokens before i, for every draft and every i."""
    drafts = list(product(range(V), repeat=gamma))
    included = lambda i, before: {length(draft) > i for draft in drafts if draft[:i] == before}
    return all(len(included(i, before)) == 1 for i in range(gamma) for before in product(range(V), repeat=i))


def dropping(drafter):
    """A bug: a token of low confidence is taken out of the draft, by its own probability."""
    low = lambda draft: [i for i, x in enumerate(draft) if drafter(draft[:i])[x] < F(1, 2)]
    return lambda draft: min([*low(draft), len(draft)])


def steepest(drafter, cost=(1, 2, 2)):
    """A bug: the length of the best estimated tokens per cost among *all* lengths, the confidences of tokens already drawn included."""

    def length(draft):
        confidences = [max(drafter(draft[:i])) for i in range(len(draft))]
        tokens = [1 + sum(np.prod(confidences[:i]) for i in range(1, n + 1)) for n in range(len(draft) + 1)]
        return max(range(len(draft) + 1), key=lambda n: (tokens[n] / cost[n], -n))

    return length


sure_of = lambda drafter: lambda context: [max(drafter(context))] * 3  # a confidence that knows the row and not the token
CLAIMS = [
    Claim("two drafted, by the row", lambda p, q: adaptive(p, q, 2, stopping(sure_of(q), F(1, 2))), 3, reference=True),
    Claim("two drafted, by the token", lambda p, q: adaptive(p, q, 2, stopping(q, F(1, 2))), 3, reference=True),
]


@given(models(3, 3), models(3, 3), models(3, 2), levels, st.integers(0, 2))
@example(TARGET, DRAFT, DRAFT, F(1, 2), 2)  # two tokens of three are doubtful at the first place
def test_stopping_after_a_token_loses_nothing(target, drafter, head, h, gamma):
    for verify in (chain.verify, block.verify):
        rounds.lossless(adaptive(target, drafter, gamma, stopping(head, h), verify), target, gamma + 1)


@given(models(2, 4), models(2, 4), models(2, 3), levels)
def test_stopping_after_a_token_loses_nothing_in_longer_drafts(target, drafter, head, h):
    rounds.lossless(adaptive(target, drafter, 3, stopping(head, h)), target, 4)


@given(models(3, 3), models(3, 3), models(3, 2), levels)
def test_exact_match_keeps_the_law_under_any_rule(target, drafter, head, h):
    exact_match = lambda p, q, draft, rng: match.verify(p, draft, rng)
    for length in (stopping(head, h), dropping(drafter), steepest(drafter)):
        rounds.lossless(adaptive(target, drafter, 2, length, exact_match), target, 3)


@given(models(3, 2), levels)
def test_no_token_decides_whether_it_is_verified(head, h):
    assert measurable(stopping(head, h), 3, 2)


@pytest.mark.parametrize(("leak", "bias"), [(dropping, F(1, 9)), (steepest, F(1, 12))])
def test_a_rule_by_which_a_token_decides_about_itself_is_told_and_biased(leak, bias):
    length = leak(DRAFT)
    assert not measurable(length, 3, 2)
    outputs = law(adaptive(TARGET, DRAFT, 2, length))
    assert total_variation(completed(outputs, TARGET, 3), autoregressive(TARGET, 3)) == bias
    assert total_variation(completed(outputs, TARGET, 1), autoregressive(TARGET, 1)) == bias


@given(models(3, 3), models(3, 3))
def test_with_the_true_chances_the_rule_knows_the_risk(target, drafter):
    """One minus the product is the probability that verification refuses something."""

    def refusal(draft):
        p, q = [target(draft[:i]) for i in range(3)], [drafter(draft[:i]) for i in range(2)]
        chances = [min(p[i][x] / q[i][x], F(1)) for i, x in enumerate(draft)]
        return chances, 1 - law(lambda rng: chain.verify(p, q, draft, rng)[0]).get(2, F(0))

    for draft in product(range(3), repeat=2):
        if drafter(())[draft[0]] and drafter(draft[:1])[draft[1]]:
            chances, refused = refusal(draft)
            asked = [*chances, F(1)]  # of a third token, if it were drafted
            assert specdec_plus.stop(asked, refused) == 3
            assert refused == 0 or specdec_plus.stop(asked, refused - F(1, 10**9)) < 3


def best_rate(values, weights, cost, most):
    """Tokens per time of the best stopping policy for confidences drawn independently: value iteration, at a rate raised until it is met.

    A round that drafts n tokens takes the time 1 + n cost, and emits one token and the product of the first i confidences for each i.
    """

    def value(all_kept, drafted, rate):
        """(gain over stopping, expected tokens, expected time) of going on optimally from here."""
        if drafted == most:
            return F(0), F(0), F(0)
        gain, tokens, time = -rate * cost, F(0), cost
        for confidence, weight in zip(values, weights, strict=True):
            after = value(all_kept * confidence, drafted + 1, rate)
            gain += weight * (all_kept * confidence + after[0])
            tokens += weight * (all_kept * confidence + after[1])
            time += weight * after[2]
        return (gain, tokens, time) if gain > 0 or drafted == 0 else (F(0), F(0), F(0))

    rate, reached = None, F(0)
    while reached != rate:
        rate = reached
        _, tokens, time = value(F(1), 0, rate)
        reached = (1 + tokens) / (1 + time)
    return rate


@given(st.lists(st.integers(0, 8), min_size=2, max_size=2), st.integers(1, 7), st.integers(1, 12), st.integers(1, 5))
def test_a_threshold_is_the_best_of_all_policies(eighths, weight, cost, most):
    """At the rate r of the best policy, one more token is worth it while the chance that all is kept exceeds r cost / mean confidence."""
    values, weights, cost = [F(n, 8) for n in eighths], [F(weight, 8), 1 - F(weight, 8)], F(cost, 16)
    rate = best_rate(values, weights, cost, most)
    mean = sum(a * w for a, w in zip(values, weights, strict=True))
    h = 1 - rate * cost / mean if mean else F(0)
    tokens = time = F(1)
    for choice in product(range(2), repeat=most):
        chance = np.prod([weights[c] for c in choice])
        confidences = [values[c] for c in choice]
        length = specdec_plus.stop(confidences, h)
        tokens += chance * sum(np.prod(confidences[: i + 1]) for i in range(length))
        time += chance * length * cost
    assert tokens / time == rate


@given(st.lists(levels, max_size=5), levels, levels)
def test_more_tolerance_and_more_confidence_never_shorten_a_draft(confidences, h, more):
    raised = [max(c, more) for c in confidences]
    assert specdec_plus.stop(confidences, h) <= min(specdec_plus.stop(confidences, max(h, more)), specdec_plus.stop(raised, h))


@given(st.lists(levels, max_size=5))
def test_no_tolerance_stops_at_the_first_doubt_and_full_tolerance_never(confidences):
    doubts = [i for i, c in enumerate(confidences) if c < 1]
    assert specdec_plus.stop(confidences, 0) == min([i + 1 for i in doubts] + [len(confidences)])
    assert specdec_plus.stop(confidences, 1) == len(confidences)


@given(st.lists(levels, min_size=1, max_size=5), levels)
def test_asking_token_by_token_gives_the_same_draft(confidences, h):
    drafted = 0
    while drafted < len(confidences) and specdec_plus.stop([*confidences[:drafted], None], h) == drafted + 1:
        drafted += 1
    assert drafted == specdec_plus.stop(confidences, h)


@pytest.mark.parametrize("confidence", [-0.5, 1.5, float("nan")])
def test_a_confidence_that_is_no_chance_is_an_error(confidence):
    with pytest.raises(ValueError, match="confidences must lie in"):
        specdec_plus.stop([confidence, 1], 0.5)
