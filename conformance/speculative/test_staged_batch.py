"""Staged drafts of a batch are the spec's on the numbers that the contract gives them, and no number is used twice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.speculative.test_staged import THIRDS, round_of
from twofold.conformance.tape import Certified, exact
from twofold.fast import backend
from twofold.fast.kernels import philox
from twofold.fast.speculative import chain as fast_chain
from twofold.spec.speculative import chain, staged

stages = st.sampled_from([(2,), (0, 2), (1, 2), (2, 2), (1, 1, 2)])


def tables(rng, count):
    """Models of three tokens as tables: a row for the empty text and one after each last token, multiples of 1/8."""
    return [rng.multinomial(8, rng.dirichlet(np.ones(3), 4)) / 8 for _ in range(count)]


def batched(table):
    table = tensor(np.asarray(table, dtype=float), "float32")
    return lambda tokens, ends: table[torch.where(ends > 0, 1 + tokens.gather(1, (ends - 1).clamp(min=0)), 0)]


def single(table):
    return lambda context: exact(table)[context[-1] + 1 if len(context) else 0]


def rows(model):
    return [model(()), *(model((x,)) for x in range(3))]


@given(stages, seeds)
def test_drafts_are_the_specs_on_the_numbers_of_the_contract(fast, lengths, seed):
    """A round that judges n guesses takes n + 1 numbers, in order: its coins, then its token."""
    models, contexts, requests = tables(np.random.default_rng(seed), len(lengths)), [[], [2, 0]], [3, 2**35]
    padded = np.array([context + [10**12] * (2 - len(context)) for context in contexts])
    draft, q = fast.draft(
        [batched(table) for table in models], tensor(padded), list(lengths),
        ends=tensor(np.array([0, 2])), seed=seed, request=tensor(np.array(requests)),
    )  # fmt: skip
    for b, (context, request) in enumerate(zip(contexts, requests, strict=True)):
        with backend.use("torch"):
            at = torch.tensor([len(context)])
            numbers = iter(philox.uniform(seed, philox.DRAFT, torch.tensor([request]), at, 64)[0].tolist())
        sure = []

        def verify(p, q, guess, rng, numbers=numbers, sure=sure):
            tape = Certified([next(numbers) for _ in guess], [next(numbers)])
            result = chain.verify(p, q, guess, tape)
            sure.append(tape.sure)
            return result

        tokens, expected = staged.draft([single(table) for table in models], context, list(lengths), None, verify)
        if all(sure):
            exactly(array(draft[b]), np.array(tokens, dtype=np.int64), "draft")
            exactly(array(q[b]), np.array(expected, dtype=float).reshape(-1, 3), "rows")


def test_no_number_of_a_text_is_used_twice(fast, monkeypatch):
    """A ledger of all counters over several rounds of the whole chain, target included, in which much is refused."""
    ledger, draw = [], philox._uniform

    def recorded(seed, role, request, position, count):
        ledger.extend((role, r, at, i) for r, at in zip(request.tolist(), position.tolist(), strict=True) for i in range(count))
        return draw(seed, role, request, position, count)

    monkeypatch.setattr(philox, "_uniform", recorded)
    used = []

    def judged(p, q, draft, *, accept, token):
        used.append(torch.cat([accept, token[:, None]], 1))
        return fast_chain.verify(p, q, draft, accept=accept, token=token)

    target, drafters = batched(rows(TARGET)), [batched(rows(THIRDS)), batched(rows(DRAFT))]
    text, taken = torch.zeros(1, 0, dtype=torch.int64), []
    for _ in range(4):
        at = torch.tensor([text.shape[1]])
        draft, q = fast.draft(drafters, text, [1, 2], seed=11, verify=judged)
        taken += torch.cat([numbers.flatten() for numbers in used]).tolist()
        used.clear()
        p = target(torch.cat([text, draft], 1), at[:, None] + torch.arange(3))
        kept, token = fast_chain.verify(p, q, draft, seed=11, position=at)
        text = torch.cat([text, draft[:, : int(kept)], token[:, None]], 1)
    assert len(ledger) == len(set(ledger))
    assert len({at for role, _, at, _ in ledger if role == philox.DRAFT}) == 4
    assert len(taken) == len(set(taken)) and len(taken) > 4 * 3  # three per draft if nothing were refused


def test_seeded_text_follows_the_exact_law(fast):
    B = 20_000 if fast.side == "torch" else 20  # the interpreter takes a millisecond per program
    draft, q = fast.draft([batched(rows(THIRDS)), batched(rows(DRAFT))], torch.zeros(B, 0, dtype=torch.int64), [1, 2], seed=4)
    p = batched(rows(TARGET))(draft, torch.arange(3).expand(B, 3))
    kept, token = fast_chain.verify(p, q, draft, seed=4)
    emitted = [(*draft[b, :k].tolist(), x) for b, (k, x) in enumerate(zip(kept.tolist(), token.tolist(), strict=True))]
    consistent(emitted, law(round_of(TARGET, [THIRDS, DRAFT], [1, 2])))
    if B >= 20_000:  # and the draft with the rows of the model that guessed does not
        kept, token = fast_chain.verify(p, torch.full_like(q, 1 / 3), draft, seed=4)
        emitted = [(*draft[b, :k].tolist(), x) for b, (k, x) in enumerate(zip(kept.tolist(), token.tolist(), strict=True))]
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(emitted, law(round_of(TARGET, [THIRDS, DRAFT], [1, 2])))


@given(st.sampled_from([(2,), (1, 2)]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, lengths, seed):
    models = [batched(table) for table in tables(np.random.default_rng(seed), len(lengths))]
    context, ends, request = torch.tensor([[0, 1], [2, 2]]), torch.tensor([2, 0]), torch.tensor([5, 2**40])
    run = lambda b: fast.draft(models, context[b], list(lengths), ends=ends[b], seed=seed, request=request[b])
    together = run(slice(None))
    for b in range(2):
        for alone, all_of_them in zip(run(slice(b, b + 1)), together, strict=True):
            exactly(array(alone[0]), array(all_of_them[b]), f"request {b}")


def test_edges_of_a_batch(fast):
    model, none = batched(rows(DRAFT)), torch.zeros(0, 4, dtype=torch.int64)
    draft, q = fast.draft([model, model], none, [1, 2], seed=1)
    assert draft.shape == (0, 2) and q.shape == (0, 2, 3)
    context = torch.tensor([[0, 1]], dtype=torch.int32)
    draft, q = fast.draft([model, model], context, [2, 0], seed=1)
    assert draft.shape == (1, 0) and q.shape == (1, 0, 3)
    fast.draft([model, model], context, [2, 3], seed=1)
    assert context.tolist() == [[0, 1]]


def test_a_larger_model_that_agrees_is_asked_once_per_round(fast):
    asked = []

    def counts(tokens, ends):
        asked.append(ends.shape[1])
        return torch.eye(3)[(1 + tokens.gather(1, ends - 1)) % 3]

    assert fast.draft([counts, counts], torch.tensor([[0], [1]]), [2, 6], seed=1)[0].tolist() == [[1, 2, 0, 1, 2, 0], [2, 0, 1, 2, 0, 1]]
    assert asked == [1, 1, 3, 1, 1, 3]


@pytest.mark.parametrize("which", [0, 1])
def test_a_broken_model_raises_and_says_which(fast, which):
    broken = lambda tokens, ends: torch.full((*ends.shape, 3), torch.nan)
    models = [broken if i == which else batched(rows(DRAFT)) for i in range(2)]
    with pytest.raises(ValueError, match=rf"models\[{which}\] holds a NaN"):
        fast.draft(models, torch.tensor([[0]]), [1, 2], seed=1)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(context=torch.zeros(2)), "context must have"),
    (dict(lengths=[2]), "models and lengths"), (dict(models=[], lengths=[]), "one at least"),
    (dict(lengths=[-1, 2]), "lengths must be at least 0"), (dict(seed=None), "give a seed"),
    (dict(ends=torch.tensor([1, 2])), "ends must have shape"), (dict(request=torch.zeros(1)), "request must have dtype"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(models=[batched(rows(DRAFT))] * 2, context=torch.tensor([[0]]), lengths=[1, 2], seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**right | arguments)
