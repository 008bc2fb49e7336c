r"""Laws of Gumbel coupling. The joint law of two races that share their noise is rational where p and q are, so it is known exactly.

Let token $i$ have the least $E_v / p_v$ and $j \ne i$ the least $E_v / q_v$, and let $t = E_j / E_i$. Then $p_j/p_i < t < q_j/q_i$, and
given $E_i = a$ no other token may come before $a \max(p_k/p_i,\, t\,q_k/q_j)$. Integrating over $a$,

$$\Pr(y = i, x = j) = \int_{p_j/p_i}^{q_j/q_i} \frac{\mathrm dt}{S(t)^2}, \qquad
S(t) = 1 + t + \sum_{k \ne i,j} \max(p_k/p_i,\, t\,q_k/q_j),$$

and $S$ is piecewise linear: between two corners $\int \mathrm dt / S^2 = (t_2 - t_1) / (S(t_1) S(t_2))$.
"""

from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import seeds
from twofold.conformance.law import DRAFT, TARGET, law, models, total_variation
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import coupled

F = Fraction
rows = models(4, 1).map(lambda model: model(()))


def disagreement(p, q, i, j):
    """Pr(y = i, x = j) for two different tokens."""
    if not (p[i] and q[j] and p[j] * q[i] < q[j] * p[i]):
        return F(0)
    others = [k for k in range(len(p)) if k not in (i, j)]
    S = lambda t: 1 + t + sum(max(p[k] / p[i], t * q[k] / q[j]) for k in others)
    start, end = p[j] / p[i], q[j] / q[i] if q[i] else None  # without an end, t grows for ever
    corners = sorted({p[k] * q[j] / (p[i] * q[k]) for k in others if q[k]})
    inside = [t for t in corners if start < t and (end is None or t < end)]
    points = [start, *inside] + ([end] if end is not None else [])
    mass = sum((t2 - t1) / (S(t1) * S(t2)) for t1, t2 in pairwise(points))
    if end is None:  # the last piece has slope S(t + 1) - S(t)
        mass += 1 / ((S(points[-1] + 1) - S(points[-1])) * S(points[-1]))
    return F(mass)


def joint(p, q):
    """The exact law of (y, x), as a matrix `(V, V)`; the diagonal is what disagreement leaves of p."""
    matrix = np.array([[disagreement(p, q, i, j) if i != j else F(0) for j in range(len(q))] for i in range(len(p))], dtype=object)
    return matrix + np.diag(p - matrix.sum(1))


@given(rows, rows)
def test_the_closed_form_of_a_match_is_what_disagreement_leaves(p, q):
    matrix = joint(p, q)
    assert np.all(matrix >= 0) and np.array_equal(matrix.sum(0), q), "the referee's own law: q on the other side"
    assert np.trace(matrix) == coupled.match_probability(p, q)


@given(rows, rows)
def test_the_chance_of_a_match_lies_between_its_bounds(p, q):
    distance, chance = abs(p - q).sum() / 2, coupled.match_probability(p, q)
    assert (1 - distance) / (1 + distance) <= chance <= 1 - distance
    assert (chance == 1) == np.array_equal(p, q)
    assert chance == coupled.match_probability(q, p) == coupled.match_probability(3 * p[::-1], 5 * q[::-1])


def test_on_the_reference_pair_five_of_eight_first_tokens_match():
    assert coupled.match_probability(TARGET(()), DRAFT(())) == F(5, 8)


def shared(p, q, draft, rng):
    """A round as the exact law tells it: the drafted token x comes with the target's y, given x, and stays where they are equal."""
    for i, x in enumerate(draft):
        token = rng.categorical(joint(p[i], q[i])[:, x] / q[i][x])
        if token != x:
            return i, token
    return len(draft), rng.categorical(p[len(draft)])


def race(p, q, i, j):
    """Noise (V,) with which p's race is won by i and q's by j: one of all that do, as good as any to whoever looks at winners only."""
    others = [k for k in range(len(p)) if k not in (i, j)]
    times = {i: F(1)}
    if i != j:
        start, end = p[j] / p[i], q[j] / q[i] if q[i] else None
        times[j] = start + 1 if end is None else (start + end) / 2
    for k in others:
        times[k] = 2 * max(p[k] / p[i], times[j] * q[k] / q[j]) + 1
    return -np.log([float(times[k]) for k in range(len(p))])


def round_on_noise(gamma, target, drafter):
    """The spec's own `draft` and `verify`, on noise whose winners have their exact joint law at every position."""

    def emitted(rng):
        context, noise = [], []
        for _ in range(gamma):
            p, q = target(context), drafter(context)
            i, j = divmod(rng.categorical(joint(p, q).ravel()), len(q))
            noise.append(race(p, q, i, j))
            context += coupled.draft(lambda text: drafter(text).astype(float), context, noise[-1:])
        p = target(context)
        noise.append(race(p, p, *[rng.categorical(p)] * 2))
        rows = np.array([target(context[:i]).astype(float) for i in range(gamma + 1)])
        kept, token = coupled.verify(rows, np.array(noise), context)
        return (*context[:kept], token)

    return emitted


CLAIMS = [
    Claim(f"{n} drafted with the target's noise", partial(round_on_noise, n), n + 1, 3 if n < 3 else 2, reference=n == 2) for n in (2, 1, 3)
]


@given(models(3, 3), models(3, 3))
def test_a_round_has_the_targets_law(target, drafter):
    """As the exact law tells it, and as the spec does with noise."""
    for program in (rounds.chain(target, drafter, 2, shared), round_on_noise(2, target, drafter)):
        rounds.lossless(program, target, 3)


def test_tokens_kept_on_the_reference_pair():
    """By hand: 5/8 for the first; then 37/57 after a 0, which both name with 1/6, and 19/39 after a 1 (1/8) or a 2 (1/3)."""
    assert rounds.kept(rounds.chain(TARGET, DRAFT, 1, shared)) == F(5, 8)
    chances = [coupled.match_probability(TARGET((x,)), DRAFT((x,))) for x in range(3)]
    assert chances == [F(37, 57), F(19, 39), F(19, 39)]
    second = np.dot([F(1, 6), F(1, 8), F(1, 3)], chances)
    assert rounds.kept(rounds.chain(TARGET, DRAFT, 2, shared)) == F(5, 8) + second == F(945, 988)


def test_rounds_follow_their_exact_law():
    """Noise in, text out: what draft and verify do with it has the law that the referee computes, and so the target's."""
    target, drafter = (lambda context, model=model: model(context).astype(float) for model in (TARGET, DRAFT))
    emitted = []
    for gumbel in np.random.default_rng(1).gumbel(size=(2000, 3, 3)):
        x = coupled.draft(drafter, [], gumbel[:2])
        kept, token = coupled.verify(np.array([target(x[:i]) for i in range(3)]), gumbel, x)
        emitted.append((*x[:kept], token))
    consistent(emitted, law(rounds.chain(TARGET, DRAFT, 2, shared)))


def test_races_follow_their_exact_joint_law():
    rng, p, q = np.random.default_rng(2), TARGET(()), DRAFT(())
    pairs = []
    for noise in rng.gumbel(size=(2000, 1, 3)):
        (x,) = coupled.draft(lambda context: q.astype(float), [], noise)
        pairs.append((coupled.verify(p.astype(float)[None], noise, [])[1], x))
    matrix = joint(p, q)
    consistent(pairs, {(i, j): matrix[i, j] for i in range(3) for j in range(3)})


def told(gumbel, drafter, lengths, total):
    """A text of rounds: drafts of these lengths, all noise by absolute position."""
    target, text, calls = lambda context: TARGET(context).astype(float), [], 0
    for gamma in lengths:
        if len(text) >= total:
            break
        here = gumbel[len(text) :]
        draft = coupled.draft(drafter, text, here[:gamma])
        p = np.array([target(text + draft[:i]) for i in range(gamma + 1)])
        kept, token = coupled.verify(p, here[: gamma + 1], draft)
        text, calls = text + draft[:kept] + [token], calls + 1
    return text[:total], calls


@given(seeds, st.lists(st.integers(0, 4), min_size=8, max_size=8))
def test_the_text_is_a_function_of_target_and_noise_whatever_is_drafted(seed, lengths):
    gumbel = np.random.default_rng(seed).gumbel(size=(20, 3))
    expected, calls = told(gumbel, None, [0] * 8, 8)
    assert calls == 8
    assert told(gumbel, lambda context: DRAFT(context).astype(float), lengths, 8)[0] == expected
    assert told(gumbel, lambda context: TARGET(context).astype(float), [3] * 8, 8) == (expected, 2), "an equal drafter is always right"


def test_a_residual_drawn_with_the_drafts_noise_has_the_law_of_a_known_bug():
    """Keep x with min(1, p/q), else let the same noise choose from the residual: the winner is then held to have lost against x."""
    p, q = (np.array([F(w, 10) for w in weights], dtype=object) for weights in ((1, 5, 4), (6, 1, 3)))
    residual = np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()
    kept = np.minimum(p / q, 1)  # (V,)
    recovered = joint(residual, q)  # of the token that the residual names, and of x
    wrong = q * kept + (recovered * (1 - kept)).sum(1)
    assert wrong.tolist() == [F(1, 10), F(58, 105), F(73, 210)]
    assert total_variation(dict(enumerate(wrong)), dict(enumerate(p))) == F(11, 210)
    independent = q * kept + residual * (q * (1 - kept)).sum()
    assert np.array_equal(independent, p), "with noise of its own the residual is right"


@given(rows, rows, st.integers(1, 4), seeds)
def test_a_list_of_one_is_the_plain_race_and_equal_laws_agree_in_every_list(p, q, K, seed):
    p, q, races = p.astype(float), q.astype(float), np.random.default_rng(seed).exponential(size=(K, 4))
    token, drafts = coupled.lists(p, q, races[:1])
    noise = -np.log(races[:1])
    assert token == coupled.verify(p[None], noise, [])[1] and drafts == coupled.draft(lambda context: q, [], noise)
    token, drafts = coupled.lists(p, p, races)
    assert token in drafts


def test_the_token_over_all_lists_has_law_p_and_each_draft_law_q():
    rng, p, q = np.random.default_rng(4), TARGET(()), DRAFT(())
    found = [coupled.lists(p.astype(float), q.astype(float), races) for races in rng.exponential(size=(2000, 3, 3))]
    consistent([token for token, _ in found], dict(enumerate(p)), "tokens")
    for k in range(3):
        consistent([drafts[k] for _, drafts in found], dict(enumerate(q)), f"drafts of list {k}")


def test_more_lists_are_met_more_often():
    """By hand: p = (1, 0), q = (1/2, 1/2). List k drafts token 0 with probability 1/2, so K lists miss it with probability 2^-K."""
    races = np.random.default_rng(3).exponential(size=(4000, 3, 2))
    for K in (1, 2, 3):
        met = [0 in coupled.lists(np.array([1.0, 0.0]), np.array([0.5, 0.5]), each[:K])[1] for each in races]
        consistent(met, {True: 1 - F(1, 2**K), False: F(1, 2**K)})


def test_tokens_of_probability_zero_never_win_and_equals_go_to_the_lowest_id():
    noise = np.array([[9.0, 1.0, 1.0]])
    assert coupled.verify(np.array([[0.0, 0.5, 0.5]]), noise, [])[1] == 1
    assert coupled.lists(np.array([0.0, 0.5, 0.5]), np.array([0.0, 0.0, 1.0]), np.array([[0.0, 1.0, 1.0]])) == (1, [2])
    assert coupled.match_probability(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 0


@pytest.mark.parametrize("row", [[np.nan, 0.5], [0.5, np.nan], [0.0, 0.0], [-0.5, 1.5]])
def test_a_row_without_a_law_is_an_error(row):
    row = np.array(row)
    for call in (lambda: coupled.verify(row[None], np.zeros((1, 2)), []), lambda: coupled.draft(lambda context: row, [], np.zeros((1, 2))),
                 lambda: coupled.lists(row, np.array([0.5, 0.5]), np.ones((1, 2)))):  # fmt: skip
        with pytest.raises(ValueError, match="probabilities must be numbers of at least 0"):
            call()
