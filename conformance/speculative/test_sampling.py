"""The speculative loop: the text has the target's law over any number of rounds, and a request's text does not depend on its batch."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, seeds
from twofold.conformance.law import DRAFT, TARGET, Model, autoregressive, completed, conditionals, law, models
from twofold.conformance.prove import Claim
from twofold.fast import backend
from twofold.fast.kernels import philox
from twofold.fast.speculative import chain as fast_chain
from twofold.spec.rng import Sampler, Tape
from twofold.spec.speculative import sampling


def one_round(target, drafter):
    return lambda rng: tuple(sampling.step(target, drafter, (), 2, rng))


def several_rounds(target, drafter):
    return lambda rng: tuple(sampling.generate(target, drafter, [], 1, 3, rng)[0])


CLAIMS = [Claim("step, 2 drafted", one_round, 3, reference=True), Claim("generate, 3 tokens, 1 drafted per round", several_rounds, 3)]


@given(models(2, 4), models(2, 4), st.integers(0, 3))
def test_text_over_several_rounds_has_the_targets_law(target, drafter, gamma):
    outputs = law(lambda rng: tuple(sampling.generate(target, drafter, [], gamma, 4, rng)[0]))
    assert outputs == autoregressive(target, 4)


@given(models(3, 3), models(3, 3), st.integers(0, 2))
def test_text_that_may_end_early_has_the_targets_law(target, drafter, gamma):
    outputs = law(lambda rng: tuple(sampling.generate(target, drafter, [], gamma, 3, rng, eos=1)[0]))
    expected = {}
    for text, weight in autoregressive(target, 3).items():
        cut = text[: text.index(1) + 1] if 1 in text else text
        expected[cut] = expected.get(cut, 0) + weight
    assert outputs == expected


def test_one_round_on_the_reference_pair():
    outputs = law(lambda rng: tuple(sampling.step(TARGET, DRAFT, (), 2, rng)))
    assert completed(outputs, TARGET, 3) == autoregressive(TARGET, 3)
    assert sum(len(text) * weight for text, weight in outputs.items()) == 1 + Fraction(37, 36)
    for prefix, row in conditionals(outputs).items():
        assert row == {v: w for v, w in enumerate(TARGET(prefix)) if w}


@given(seeds, st.integers(0, 4), st.integers(0, 12), st.integers(0, 3))
def test_rounds_emit_between_one_and_gamma_plus_one(seed, gamma, max_new, start):
    floats = lambda model: lambda context: model(context).astype(float)
    new, calls = sampling.generate(floats(TARGET), floats(DRAFT), [0] * start, gamma, max_new, Sampler(np.random.default_rng(seed)))
    assert len(new) == max_new and calls <= max_new <= calls * (gamma + 1)


def rows(model):
    """The reference models as tables: the row after nothing, then after each last token."""
    return np.array([model(()), *(model((x,)) for x in range(3))], dtype=float)


def batched(model, dtype=torch.float32):
    """The same models in the form that `fast` calls: rows after `tokens[b, : ends[b, i]]`."""
    table = torch.tensor(rows(model), dtype=dtype)

    def call(tokens, ends):
        last = torch.where(ends > 0, 1 + tokens.gather(1, (ends - 1).clamp(min=0)), 0)
        return table[last]

    return call


@given(seeds, st.integers(0, 2), st.integers(1, 3))
def test_text_is_the_specs_under_the_contract_of_counters(fast, seed, gamma, max_new):
    """One round of the spec after another, each on the uniforms that role, request, position and ordinal own; none is used twice."""
    requests, prompts = [3, 2**35], [[0, 1], []]
    tokens = torch.zeros(2, 2, dtype=torch.int64)
    for b, prompt in enumerate(prompts):
        tokens[b, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    new, calls = fast.generate(
        batched(TARGET), batched(DRAFT), tokens, gamma, max_new, lengths=lengths, seed=seed, request=torch.tensor(requests)
    )
    floats = lambda model: lambda context: rows(model)[context[-1] + 1 if len(context) else 0]
    for b, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        text, rounds, ledger = list(prompt), 0, set()

        def uniform(role, position, ordinal, request=request, ledger=ledger):
            assert (role, position, ordinal) not in ledger, "a uniform was used twice"
            ledger.add((role, position, ordinal))
            with backend.use("torch"):  # one number at a time is a slow way to launch a kernel
                return float(philox.uniform(seed, role, torch.tensor([request]), torch.tensor([position]), ordinal + 1)[0, ordinal])

        while len(text) - len(prompt) < max_new:
            at, useful = len(text), min(gamma, max_new - (len(text) - len(prompt)) - 1)
            accept = (uniform(philox.ACCEPT, at, i) for i in range(useful))
            token = (uniform(role, at, i) for role, i in [(philox.DRAFT, i) for i in range(useful)] + [(philox.TOKEN, 0)])
            text += sampling.step(floats(TARGET), floats(DRAFT), text, useful, Tape(accept, token))
            rounds += 1
        exactly(array(new[b]), np.array(text[len(prompt) :]), "text")
        assert int(calls[b]) == rounds


@given(seeds, st.integers(0, 2))
def test_a_request_alone_is_the_request_in_a_batch(fast, seed, gamma):
    prompt, request = torch.tensor([[0], [1]]), torch.tensor([5, 2**40])
    run = lambda b: fast.generate(batched(TARGET), batched(DRAFT), prompt[b], gamma, 3, eos=2, seed=seed, request=request[b])
    new, calls = run(slice(None))
    for b in range(2):
        alone = run(slice(b, b + 1))
        exactly(array(alone[0][0]), array(new[b]), "text")
        exactly(array(alone[1][0]), array(calls[b]), "calls")


def test_text_ends_at_eos_and_padding_follows(fast):
    cycle = lambda tokens, ends: torch.eye(3)[(tokens.gather(1, ends - 1) + 1) % 3]
    new, calls = fast.generate(cycle, cycle, torch.tensor([[0], [1], [2]]), 2, 7, eos=2, seed=1)
    assert new.tolist() == [[1, 2, -1, -1, -1, -1, -1], [2] + [-1] * 6, [0, 1, 2, -1, -1, -1, -1]]
    assert calls.tolist() == [1, 1, 1]
    new, calls = fast.generate(cycle, cycle, torch.tensor([[0]]), 2, 7, seed=1)
    assert new.tolist() == [[1, 2, 0, 1, 2, 0, 1]] and calls.tolist() == [3]
    assert fast.generate(cycle, cycle, torch.tensor([[0]]), 2, 0, seed=1)[0].shape == (1, 0)
    emitted, count = fast.step(cycle, cycle, torch.tensor([[0], [1]]), 3, drafted=torch.tensor([3, 1]), seed=1)
    assert emitted.tolist() == [[1, 2, 0, 1], [2, 0, -1, -1]] and count.tolist() == [4, 2]


def test_seeded_text_follows_the_exact_law(fast):
    B = 20_000 if fast.side == "torch" else 20  # the interpreter takes a millisecond per program
    new, _ = fast.generate(batched(TARGET), batched(DRAFT), torch.zeros(B, 0, dtype=torch.int64), 2, 3, seed=77)
    consistent([tuple(text) for text in new.tolist()], autoregressive(TARGET, 3))
    if B >= 20_000:
        shifted = Model({context: DRAFT(context) for context in [(), *((x,) for x in range(3))]})
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent([tuple(text) for text in new.tolist()], autoregressive(lambda text: shifted(text[-1:]), 3))


def test_another_verifier_can_be_passed(fast):
    greedy = lambda p, q, draft, **keywords: fast_chain.verify_onehot(p, draft, **keywords)
    cycle = lambda tokens, ends: torch.eye(3)[(tokens.gather(1, ends - 1) + 1) % 3]
    assert fast.generate(cycle, cycle, torch.tensor([[0]]), 2, 4, seed=1, verify=greedy)[0].tolist() == [[1, 2, 0, 1]]


def test_a_broken_model_raises_and_makes_no_text(fast):
    broken = lambda tokens, ends: torch.full((*ends.shape, 3), torch.nan)
    with pytest.raises(ValueError, match="holds a NaN"):
        fast.generate(broken, batched(DRAFT), torch.tensor([[0]]), 2, 3, seed=1)
    with pytest.raises(ValueError, match="holds a NaN"):
        fast.generate(broken, broken, torch.tensor([[0]]), 2, 3, seed=1)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(gamma=-1), "gamma must be at least 0"), (dict(seed=None), "give a seed"), (dict(prompt=torch.zeros(2)), "prompt|context"),
    (dict(lengths=torch.tensor([1, 2])), "lengths must have shape"), (dict(request=torch.zeros(1)), "request must have dtype"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(target=batched(TARGET), drafter=batched(DRAFT), prompt=torch.tensor([[0]]), gamma=1, max_new=2, seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.generate(**right | arguments)
