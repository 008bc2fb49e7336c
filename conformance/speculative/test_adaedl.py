"""Stopping before a token is drawn keeps the law; what the entropy bounds and what it does not; the batched rule is the spec's."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, autoregressive, completed, law, models, total_variation
from twofold.conformance.prove import Claim
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_specdec_plus import measurable
from twofold.conformance.speculative.test_tli import round_of
from twofold.fast.speculative import sampling as fast_sampling
from twofold.spec.speculative import adaedl, block, chain

F = Fraction
numbers = st.sampled_from([0.0, 0.2, 0.5, 1.0])


def stopping(drafter, c, threshold):
    """The drafter's rows, None where the draft ends."""

    def rows(draft):
        q = drafter(draft)
        return None if adaedl.stop(q.astype(float), c, threshold) else q

    return rows


CLAIMS = [Claim("two drafted at most", lambda p, q: round_of(p, stopping(q, 0.2, 0.5), 2), 3, reference=True)]


@given(models(3, 3), models(3, 3), numbers, numbers, st.integers(0, 2))
def test_stopping_before_a_token_loses_nothing(target, drafter, c, threshold, gamma):
    for verify in (chain.verify, block.verify):
        rounds.lossless(round_of(target, stopping(drafter, c, threshold), gamma, verify), target, gamma + 1)


@given(models(3, 2), numbers, numbers)
def test_no_token_decides_whether_it_is_verified(drafter, c, threshold):
    rows = stopping(drafter, c, threshold)
    length = lambda draft: next((i for i in range(2) if rows(draft[:i]) is None), 2)
    assert measurable(length, 3, 2)


def test_looking_at_the_row_behind_a_token_and_dropping_it_is_wrong():
    """The same rule one place late: the row that x leads to decides whether x is verified. After token 0 the drafter is undecided."""
    rows = stopping(DRAFT, 0.2, 0.56)
    late = lambda draft: next((i for i in range(len(draft)) if rows(draft[: i + 1]) is None), len(draft))
    assert [rows(context) is None for context in [(), (0,), (1,), (2,)]] == [False, True, False, False]
    assert not measurable(late, 3, 1)

    def program(rng):
        draft = [rng.categorical(DRAFT(()))]
        draft = draft[: late(tuple(draft))]
        kept, token = chain.verify([TARGET(draft[:i]) for i in range(len(draft) + 1)], [DRAFT(())] * len(draft), draft, rng)
        return (*draft[:kept], token)

    outputs = completed(law(program), TARGET, 1)  # by hand: token 0 is drawn a sixth of the time, and then the target draws instead
    assert outputs == {(0,): F(1, 12) + F(1, 3), (1,): F(1, 36) + F(1, 6), (2,): F(1, 18) + F(1, 3)}
    assert total_variation(outputs, autoregressive(TARGET, 1)) == F(1, 12)


@given(st.integers(1, 64), st.sampled_from([0.0, 0.25, 1.0]))
def test_values_of_certain_and_undecided_rows(V, c):
    assert adaedl.bound(np.eye(V)[0], c) == 1
    assert abs(adaedl.bound(np.full(V, 1 / V), c) - (1 - np.sqrt(c * np.log(V)))) < 1e-12
    assert abs(adaedl.bound(np.array([0.5, 0.25, 0, 0.25]), c) - (1 - np.sqrt(c * 1.5 * np.log(2)))) < 1e-12


def test_a_certain_drafter_may_be_wrong():
    """The estimate is 1, and nothing is ever kept: it is a bound for some targets only."""
    p, q = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    assert adaedl.bound(q, 0.5) == 1 and np.minimum(p, q).sum() == 0


@given(st.lists(st.integers(1, 8), min_size=2, max_size=5), numbers)
def test_a_row_mixed_with_the_uniform_one_is_estimated_lower(weights, c):
    q = np.array(weights) / sum(weights)
    mixed = [adaedl.bound((1 - share) * q + share / len(q), c) for share in (0, 0.25, 0.5, 1)]
    assert all(more <= less + 1e-12 for less, more in zip(mixed, mixed[1:]))


def test_a_row_that_is_no_law_is_an_error():
    with pytest.raises(ValueError, match="must be numbers"):
        adaedl.stop(np.array([np.nan, 0.5]), 0.5, 0.5)


# Rows of a batch


@given(st.sampled_from([2, 5, 300, 2049]), seeds, dtypes(), st.sampled_from(["contiguous", "sliced", "offset"]))
def test_estimates_agree_and_decisions_are_the_specs_outside_the_bound(fast, V, seed, dtype, layout):
    rng = np.random.default_rng(seed)
    q, c = rounded(rng.dirichlet(np.full(V, 0.5), (2, 3)), dtype), 0.125
    found, stops = fast.bound(tensor(q, dtype, layout), c), array(fast.stop(tensor(q, dtype, layout), c, 0.75))
    for b, i in product(range(2), range(3)):
        expected = bounded(adaedl.bound, q[b, i], c, precision=Precision("float32"))
        agree(found[b, i], expected, "estimate")
        if abs(expected.value - 0.75) > expected.error:
            assert stops[b, i] == adaedl.stop(q[b, i], c, 0.75)


def test_a_certain_row_is_estimated_at_one_and_a_broken_one_ends_the_draft(fast):
    q = torch.tensor([[[1.0, 0.0, 0.0], [0.0, torch.nan, 0.5]], [[0.0, 0.0, 1.0], [0.25, 0.5, 0.25]]])
    assert fast.bound(q, 0.5)[:, 0].tolist() == [1.0, 1.0]
    assert fast.stop(q, 0.5, 1.0).tolist() == [[False, True], [False, True]]
    assert fast.stop(q, 0.5, torch.tensor([0.0, 0.0])).tolist() == [[False, True], [False, False]]
    assert fast.stop(q[:0], 0.5, 0.5).shape == (0, 2) and fast.stop(q[:, :0], 0.5, 0.5).shape == (2, 0)


@given(seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, seed):
    rng = np.random.default_rng(seed)
    q, threshold = tensor(rng.dirichlet(np.full(50, 0.5), (3, 2)), "float32"), tensor(rng.random(3), "float32")
    for b in range(3):
        exactly(array(fast.stop(q[b : b + 1], 0.2, threshold[b : b + 1])[0]), array(fast.stop(q, 0.2, threshold)[b]), f"request {b}")


def test_drafts_that_end_on_the_device_keep_the_law(fast):
    """A row of zeros where the draft has ended: the verifier refuses what stands there, and draws from the target's own row."""
    B = 20_000 if fast.side == "torch" else 20  # the interpreter takes a millisecond per program
    rows = lambda model: tensor(np.array([model(()), *(model((x,)) for x in range(3))], dtype=float), "float32")
    batched = lambda rows: lambda tokens, ends: rows[torch.where(ends > 0, 1 + tokens.gather(1, (ends - 1).clamp(min=0)), 0)]
    small = batched(rows(DRAFT))

    def drafter(tokens, ends):
        q = small(tokens, ends)
        return q.masked_fill(fast.stop(q, 0.2, 0.56)[:, :, None], 0)

    emitted, count = fast_sampling.step(batched(rows(TARGET)), drafter, torch.zeros(B, 0, dtype=torch.int64), 2, seed=9)
    texts = [tuple(text[:n]) for text, n in zip(emitted.tolist(), count.tolist(), strict=True)]
    consistent(texts, law(round_of(TARGET, stopping(DRAFT, 0.2, 0.56), 2)))


Q = torch.full((2, 3, 4), 0.25)
WRONG = {
    "q must have shape": dict(q=Q[0]), "q must have dtype": dict(q=Q.double()), "c must be at least 0": dict(c=-1.0),
    "a token at least": dict(q=Q[..., :0]), "contiguous along V": dict(q=Q.transpose(1, 2)),
    "threshold must have shape": dict(threshold=torch.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.stop(**dict(q=Q, c=0.5, threshold=0.5) | WRONG[message])


def test_it_compiles(fast):
    compiled = torch.compile(lambda q: fast.stop(q, 0.2, 0.5), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(Q), fast.stop(Q, 0.2, 0.5)) and Q.tolist() == [[[0.25] * 4] * 3] * 2
