"""Coupled draws on a batch: the spec's tokens on the same noise, one text for every drafter, and noise that is fine where it must be."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, layouts, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_coupled import joint, shared
from twofold.conformance.speculative.test_sampling import batched
from twofold.fast.kernels import gumbel_argmax, philox
from twofold.spec.speculative import coupled, match

MARGIN = 2.0**-18  # of two float32 times, each within 32 roundings of 2^-24


def noise(seed, request, position, tokens):
    """Gumbel noise of the contract in float64, from the counters' words: position, request, ordinal."""
    words = philox.philox(seed, *(torch.tensor(x) for x in (position, request, request >> 32)), philox.NOISE + (torch.tensor(tokens) << 8))
    high, low = (word.double().numpy() for word in words[:2])
    return -np.log(-np.log1p(-(high + (low + 0.5) / 2**32) / 2**32))


def sparse(rng, *shape, nonzero=12):
    """Rows with few tokens of positive probability, as after top-k."""
    rows = np.zeros(shape).reshape(-1, shape[-1])
    for row in rows:
        row[rng.choice(shape[-1], min(nonzero, shape[-1]), replace=False)] = rng.dirichlet(np.full(min(nonzero, shape[-1]), 0.5))
    return rows.reshape(shape)


def winner(row, seed, request, position):
    """The token that the spec names on the contract's noise, and whether float32 must name it too."""
    tokens = np.flatnonzero(row > 0)
    gumbel = noise(seed, request, position, tokens)
    scores = np.sort(np.log(row[tokens]) + gumbel)
    return tokens[coupled.verify(row[None, tokens], gumbel[None], [])[1]], len(scores) == 1 or scores[-1] - scores[-2] > MARGIN


@given(st.sampled_from([1, 2, 17, 2047, 2048, 2049, 4097]), st.sampled_from([3, 12, 5000]), seeds, dtypes(), layouts)
@example(4097, 5000, 1, "float32", "sliced")
def test_seeded_tokens_are_the_specs_on_the_noise_of_position_request_and_id(fast, V, nonzero, seed, dtype, layout):
    rng, request, position = np.random.default_rng(seed), np.array([7, 2**40 + 3]), np.array([0, 2**31])
    p = rounded(sparse(rng, 2, 2, V, nonzero=nonzero), dtype)
    named = [[winner(p[b, i], seed, int(request[b]), int(position[b]) + i) for i in range(2)] for b in range(2)]
    draft = np.array([[named[b][0][0]] for b in range(2)])
    keywords = {"seed": seed, "request": tensor(request), "position": tensor(position)}
    kept, token = fast.verify(tensor(p, dtype, layout), None, tensor(draft), **keywords)
    refused = fast.verify(tensor(p, dtype, layout), None, tensor(draft) - 1, **keywords)
    for b in range(2):
        if named[b][0][1]:
            assert (int(refused[0][b]), int(refused[1][b])) == (0, named[b][0][0])
            assert int(kept[b]) == 1 and (int(token[b]) == named[b][1][0] or not named[b][1][1])


@given(st.integers(0, 3), st.sampled_from([2, 17]), seeds, st.booleans())
def test_tokens_on_given_noise_are_the_specs(fast, gamma, V, seed, exact):
    """Where all probabilities are equal only the noise counts, and integers tie: no margin is needed."""
    rng, B = np.random.default_rng(seed), 4
    p, gumbel = rng.dirichlet(np.full(V, 0.5), (B, gamma + 1)), rng.gumbel(size=(B, gamma + 1, V))
    if exact:
        p, gumbel = np.where(rng.random(p.shape) < 0.7, 0.25, 0.0), rng.integers(-2, 3, gumbel.shape)
        p[..., 0] = 0.25
    p, gumbel = rounded(p, "float32"), rounded(gumbel, "float32")
    lengths = rng.integers(0, gamma + 1, B)
    with np.errstate(divide="ignore"):
        scores = np.sort(np.log(p) + gumbel)[..., -2:]
    sure = exact | np.all(scores[..., 1] - scores[..., 0] > MARGIN, 1)
    draft = np.array([coupled.draft(lambda context, p=p[b]: p[len(context)], [], gumbel[b, :gamma]) for b in range(B)]).reshape(B, gamma)
    drafter = lambda tokens, ends: tensor(p, "float32")[:, int(ends[0])][:, None]
    by_fast = fast.draft(drafter, torch.zeros(B, 0, dtype=torch.int64), tensor(gumbel[:, :gamma], "float32"))
    exactly(array(by_fast)[sure], draft[sure].astype(int), "draft")
    draft = np.where(rng.random(draft.shape) < 0.3, (draft + 1) % V, draft).astype(int)
    kept, token = fast.verify(tensor(p, "float32"), tensor(gumbel, "float32"), tensor(draft), lengths=tensor(lengths))
    for b in np.flatnonzero(sure):
        expected = coupled.verify(p[b], gumbel[b], draft[b, : lengths[b]])
        assert (int(kept[b]), int(token[b])) == expected


def written(fast, drafter, gammas, total, seed, request):
    """A batch of texts, the drafts as long as `gammas` says round by round and request by request."""
    B = len(request)
    text, ends = torch.zeros(B, total + 8, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    for gamma in gammas:
        draft = fast.draft(drafter, text, gamma=int(gamma), lengths=ends, seed=seed, request=request)
        text_and_draft = text.scatter(1, ends[:, None] + torch.arange(int(gamma)), draft)
        p = batched(TARGET)(text_and_draft, ends[:, None] + torch.arange(int(gamma) + 1))
        kept, token = fast.verify(p, None, draft, seed=seed, request=request, position=ends)
        text = text_and_draft.scatter(1, (ends + kept)[:, None], token[:, None])
        ends = torch.minimum(ends + kept + 1, torch.tensor(total))
    return text[:, :total]


@pytest.mark.parametrize(("seed", "gammas"), [(0, [2, 0, 1]), (2**63 + 1, [1, 1, 1]), (3, [0, 2, 2])])
def test_the_text_depends_on_no_drafter_and_no_draft_length(fast, seed, gammas):
    request = torch.tensor([3, 2**40])
    expected = written(fast, None, [0] * 3, 3, seed, request)
    exactly(array(written(fast, batched(DRAFT), gammas, 3, seed, request)), array(expected), "text")
    exactly(array(written(fast, batched(TARGET), gammas, 3, seed, request[1:])), array(expected[1:]), "the second request alone")


def test_seeded_rounds_follow_their_exact_law(fast):
    B = 8_000 if fast.side == "torch" else 40  # the interpreter takes a millisecond per program
    context = torch.zeros(B, 0, dtype=torch.int64)
    draft = fast.draft(batched(DRAFT), context, gamma=2, seed=5)
    p = batched(TARGET)(draft, torch.arange(3).expand(B, 3))
    kept, token = fast.verify(p, None, draft, seed=5)
    emitted = [(*x[:k], y) for x, k, y in zip(draft.tolist(), kept.tolist(), token.tolist())]
    consistent(emitted, law(rounds.chain(TARGET, DRAFT, 2, shared)))
    if B >= 8_000:  # a drafter with noise of its own matches less often: the same samples refute its law
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(emitted, law(rounds.chain(TARGET, DRAFT, 2, match.verify)))


def test_a_refused_draft_leaves_the_targets_law_and_not_that_of_a_known_bug(fast):
    B = 8_000 if fast.side == "torch" else 40
    p, q = torch.tensor([0.1, 0.5, 0.4]), torch.tensor([0.6, 0.1, 0.3])
    draft = fast.draft(lambda tokens, ends: q.expand(len(tokens), 1, 3), torch.zeros(B, 0, dtype=torch.int64), gamma=1, seed=9)
    kept, token = fast.verify(p.expand(B, 2, 3), None, draft, seed=9)
    first = torch.where(kept > 0, draft[:, 0], token).tolist()
    consistent(first, {0: 0.1, 1: 0.5, 2: 0.4})
    if B >= 8_000:
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(first, {0: 1 / 10, 1: 58 / 105, 2: 73 / 210})


def test_lists_follow_their_laws_and_the_first_is_the_plain_race(fast):
    B = 10_000 if fast.side == "torch" else 20
    p, q = (torch.tensor(model(()).astype(float), dtype=torch.float32).expand(B, 3) for model in (TARGET, DRAFT))
    token, drafts = fast.lists(p, q, k=2, seed=6)
    consistent(token.tolist(), dict(enumerate(TARGET(()))), "tokens")
    for each in range(2):
        consistent(drafts[:, each].tolist(), dict(enumerate(DRAFT(()))), "drafts")
    alone = fast.lists(p, q, k=1, seed=6)
    assert torch.equal(alone[1][:, 0], drafts[:, 0])
    matrix = joint(TARGET(()), DRAFT(()))
    pairs = list(zip(alone[0].tolist(), alone[1][:, 0].tolist()))
    consistent(pairs, {(i, j): matrix[i, j] for i in range(3) for j in range(3)}, "a list of one")
    empty = torch.zeros(B, 0, dtype=torch.int64)
    assert torch.equal(alone[0], fast.verify(p[:, None], None, empty, seed=6)[1]), "its noise is that of verify"


@given(st.integers(1, 4), st.sampled_from([2, 17]), seeds)
def test_lists_over_given_races_are_the_specs(fast, K, V, seed):
    """Small integers over powers of two: quotients are exact, and equal times come up."""
    rng, B = np.random.default_rng(seed), 4
    p, q = (np.where(rng.random((B, V)) < 0.7, 2.0 ** -rng.integers(0, 4, (B, V)), 0) for _ in range(2))
    p[:, 0] = q[:, 0] = 0.5
    races = rng.integers(1, 9, (B, K, V)).astype(float)
    token, drafts = fast.lists(*(tensor(x, "float32") for x in (p, q, races)))
    expected = [coupled.lists(p[b], q[b], races[b]) for b in range(B)]
    exactly(token, np.array([each for each, _ in expected]), "token")
    exactly(drafts, np.array([each for _, each in expected]), "drafts")


@given(st.sampled_from([1, 2, 5, 40]), seeds)
@example(5, 0)
def test_the_chance_of_a_match_agrees_with_the_spec(fast, V, seed):
    rng = np.random.default_rng(seed)
    p, q = (rounded(rng.dirichlet(np.full(V, 0.5), 3) * (rng.random((3, V)) < 0.8), "float32") for _ in range(2))
    p[0], p[:, 0] = q[0], 0.5
    chance = fast.match_probability(*(tensor(x, "float32") for x in (p, q)))
    for b in range(3):
        agree(chance[b], bounded(coupled.match_probability, p[b], q[b], precision=Precision("float32")), "chance")


def test_small_times_are_resolved_relatively():
    """Words in, times out: the second word speaks where the first is silent, and no time is 0 or infinite."""
    words = torch.tensor([0, 0, 0, 1, 2**31, 2**32 - 1]), torch.tensor([0, 1, 2**31, 0, 0, 2**32 - 1])
    u = (words[0].double() + (words[1].double() + 0.5) / 2**32) / 2**32
    exact = -torch.log1p(-u.clamp(max=1 - 2.0**-24))
    found = gumbel_argmax.arrival(*words).double()
    assert ((found - exact).abs() <= 2.0**-19 * exact).all() and (found > 0).all() and (found < 17).all()
