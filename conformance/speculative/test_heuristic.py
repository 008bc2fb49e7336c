"""A schedule that looks back only: the law of texts over several rounds, where it settles, and the batched form."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, tensor
from twofold.conformance.law import DRAFT, TARGET, autoregressive, completed, law, models
from twofold.conformance.prove import Claim
from twofold.spec.speculative import block, chain, heuristic, sampling

F = Fraction
outcomes = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: (pair[0], min(pair))), max_size=6)


def text_of(target, drafter, gamma, most, verify=chain.verify):
    """A program that writes `most` tokens, each round as long as the schedule says."""

    def program(rng):
        text, length = [], gamma
        while len(text) < most:
            drafted = min(length, most - len(text) - 1)
            emitted = sampling.step(target, drafter, text, drafted, rng, verify)
            text, length = text + emitted, heuristic.update(length, len(emitted) - 1)
        return tuple(text)

    return program


CLAIMS = [Claim("three tokens, draft lengths by the schedule", lambda p, q: text_of(p, q, 1, 3), 3, reference=True)]


@given(models(2, 4), models(2, 4), st.integers(1, 2))
def test_text_over_several_rounds_has_the_targets_law(target, drafter, gamma):
    for verify in (chain.verify, block.verify):
        assert law(text_of(target, drafter, gamma, 4, verify)) == autoregressive(target, 4)


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 6))
def test_ups_and_downs_balance(tried, gamma):
    """Three times the full successes are the rounds, but for those that could not go down and for how far the length has come."""
    full = held = 0
    length = gamma
    for most in tried:
        kept = min(most, length)
        full += kept == length
        held += kept < length == 1
        length = heuristic.update(length, kept)
    assert 3 * full == len(tried) - held + length - gamma and length >= 1


@pytest.mark.parametrize("gamma", [1, 2, 3])
def test_the_mean_step_on_the_reference_pair(gamma):
    """Three times the chance that all of a draft are kept, less one; from 1 there is no way down."""
    outputs = law(lambda rng: tuple(sampling.step(TARGET, DRAFT, (), gamma, rng)))
    full = sum((weight for text, weight in outputs.items() if len(text) == gamma + 1), F(0))
    mean = sum((weight * heuristic.update(gamma, len(text) - 1) for text, weight in outputs.items()), F(0)) - gamma
    assert mean == (3 * full - 1 if gamma > 1 else 2 * full)


def test_choosing_the_length_after_looking_at_the_draft_is_another_matter():
    """The same step applied to the draft at hand, by what would be kept of it: the text is no longer the target's."""

    def program(rng):
        draft = [rng.categorical(DRAFT(()))]
        draft = draft if TARGET(())[draft[0]] >= DRAFT(())[draft[0]] else []
        kept, token = chain.verify([TARGET(draft[:i]) for i in range(len(draft) + 1)], [DRAFT(())] * len(draft), draft, rng)
        return (*draft[:kept], token)

    assert completed(law(program), TARGET, 1) != autoregressive(TARGET, 1)


@given(outcomes, st.sampled_from(["int64", "int32"]), st.sampled_from([None, 1, 4, 8]))
def test_a_batch_is_its_requests(fast, rounds, dtype, most):
    gamma, kept = (np.array([pair[i] for pair in rounds], dtype=dtype) for i in range(2))
    expected = [min(heuristic.update(*pair), most or 99) for pair in rounds]
    lengths = fast.update(tensor(gamma), tensor(kept), most=most)
    assert lengths.dtype == getattr(torch, dtype)
    exactly(array(lengths), np.array(expected, dtype=dtype), "lengths")


FIVE = torch.tensor([5, 5])
WRONG = {
    "gamma must be a torch.Tensor": dict(gamma=5), "kept must have shape": dict(kept=FIVE[:1]),
    "kept must have dtype": dict(kept=FIVE.float()), "most must be at least 1": dict(most=0),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.update(**dict(gamma=FIVE, kept=FIVE) | WRONG[message])


def test_it_compiles_and_leaves_its_inputs(fast):
    compiled = torch.compile(fast.update, fullgraph=True, backend="aot_eager")
    assert compiled(FIVE, torch.tensor([5, 2])).tolist() == [7, 4] and FIVE.tolist() == [5, 5]
