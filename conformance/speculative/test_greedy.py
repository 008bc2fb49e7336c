"""Laws of greedy verification, and the kernel held to them: no rounding anywhere, so everything is equality."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, dtypes, seeds, tensor, values
from twofold.conformance.law import DRAFT, TARGET, law, models
from twofold.conformance.speculative import rounds
from twofold.fast.kernels.likeliest import likeliest
from twofold.spec.rng import Sampler
from twofold.spec.speculative import chain, greedy, sampling

# Laws


def greedy_text(target, prompt, length):
    """The loop that is to be reproduced: one token after another, the lowest id of the likeliest."""
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text.append(int(np.argmax(target(tuple(text)))))
    return text[len(prompt) :]


def generate(target, drafter, gamma, length, seed=0):
    verify = lambda p, q, draft, rng: greedy.verify(p, draft)
    rng = Sampler(np.random.default_rng(seed))
    return sampling.generate(target, drafter, (), gamma, length, rng, verify=verify)


@given(models(3, 4, greatest=2), models(3, 4), st.integers(0, 3), st.integers(1, 4), seeds)
def test_text_is_the_greedy_text_whatever_the_drafter(target, drafter, gamma, length, seed):
    """Weights of at most 2 tie often."""
    limit = lambda model: lambda context: model(tuple(context)[-3:])
    text, calls = generate(limit(target), limit(drafter), gamma, length, seed)
    assert text == greedy_text(limit(target), (), length)
    assert calls <= length


@given(models(3, 4, greatest=2), models(3, 4), st.integers(0, 3))
def test_every_outcome_of_a_round_is_greedy(target, drafter, gamma):
    rounds.lossless(rounds.chain(target, drafter, gamma, greedy.verify), rounds.greedily(target), gamma + 1)


@pytest.mark.parametrize("gamma", [0, 1, 3])
def test_a_drafter_that_never_agrees_costs_nothing_and_one_that_always_does_pays(gamma):
    likeliest = lambda context: int(np.argmax(TARGET(context)))
    contrary = lambda context: np.eye(3)[(likeliest(context) + 1) % 3]
    agreeing = lambda context: np.eye(3)[likeliest(context)]
    expected = greedy_text(TARGET, (), 8)
    assert generate(TARGET, contrary, gamma, 8) == (expected, 8)
    assert generate(TARGET, agreeing, gamma, 8) == (expected, -(-8 // (gamma + 1)))


@given(models(3, 3, greatest=2), st.lists(st.integers(0, 2), max_size=2).map(tuple))
def test_it_is_the_token_rule_at_temperature_zero(target, draft):
    p = [target(draft[:i]) for i in range(len(draft) + 1)]
    cold = [rounds.greedily(target)(draft[:i]) for i in range(len(draft) + 1)]
    assert law(lambda rng: chain.verify_onehot(cold, draft, rng)) == {greedy.verify(p, draft): 1}


def test_tokens_kept_on_the_reference_pair():
    """Start: token 0 is likeliest, drafted with probability 1/6; after it token 2, with 1/6 again."""
    kept = law(lambda rng: len(rounds.chain(TARGET, DRAFT, 2, greedy.verify)(rng)) - 1)
    assert {n: str(weight) for n, weight in kept.items()} == {0: "5/6", 1: "5/36", 2: "1/36"}


@pytest.mark.parametrize("row", [[0.5, np.nan], [np.nan, 0.5], [-np.inf, -np.inf]])
def test_a_row_without_a_greatest_entry_is_an_error(row):
    with pytest.raises(ValueError, match="above minus infinity"):
        greedy.verify(np.array([row]), [])


# The kernel


def by_spec(p, draft, lengths):
    return np.array([greedy.verify(p[b, : n + 1], draft[b, :n].tolist()) for b, n in enumerate(lengths)]).reshape(-1, 2).T


def problem(regime, seed, B, gamma, V, dtype):
    """Logits, drafts that often agree, and lengths."""
    (p,) = values(regime, [(B, gamma + 1, V)], seed, dtype)
    rng = np.random.default_rng(seed)
    draft = np.where(rng.random((B, gamma)) < 0.8, p[:, :gamma].argmax(2), rng.integers(0, V, (B, gamma)))
    return p, draft, rng.integers(0, gamma + 1, B)


layouts = st.sampled_from(["contiguous", "sliced", "offset"])
regimes = st.sampled_from(["normal", "ties", "constant", "sparse", "spiked"])


@given(regimes, seeds, st.integers(0, 4), st.sampled_from([1, 2, 17, 2047, 2048, 2049, 4097]), dtypes(), layouts)
@example("ties", 1, 3, 4097, "bfloat16", "contiguous")  # equals in several blocks
@example("constant", 1, 2, 4097, "float32", "sliced")
def test_tokens_are_the_specs(fast, regime, seed, gamma, V, dtype, layout):
    p, draft, lengths = problem(regime, seed, 3, gamma, V, dtype)
    found = fast.verify(tensor(p, dtype, layout), tensor(draft), lengths=tensor(lengths))
    exactly(np.stack([array(x) for x in found]), by_spec(p, draft, lengths), "kept and token")


def test_a_large_vocabulary(fast):
    p, draft, _ = problem("ties", 3, 1, 1, 131_072, "float32")
    p = np.where(np.arange(131_072) % 1000 == 999, 5.0, p)  # the greatest 131 times, first in the first block
    draft[:] = 999
    assert [x.tolist() for x in fast.verify(tensor(p, "float32"), tensor(draft))] == [[1], [999]]


@given(regimes, seeds, st.integers(1, 4), st.sampled_from([2, 2049]))
def test_rows_that_a_request_does_not_have_are_not_read(fast, regime, seed, gamma, V):
    p, draft, lengths = problem(regime, seed, 3, gamma, V, "float32")
    run = lambda: np.stack([array(x) for x in fast.verify(tensor(p, "float32"), tensor(draft), lengths=tensor(lengths))])
    before = run()
    for b, n in enumerate(lengths):
        p[b, n + 1 :], draft[b, n:] = np.nan, -1
    exactly(run(), before, "kept and token")
    found = array(likeliest(tensor(np.nan_to_num(p), "float32"), tensor(lengths + 1), False)[0])
    exactly(found < 0, np.arange(gamma + 1) > lengths[:, None], "rows without a token")


@given(regimes, seeds, st.integers(0, 3), st.sampled_from([2, 2049]))
def test_a_request_alone_is_the_request_in_a_batch(fast, regime, seed, gamma, V):
    p, draft, _ = problem(regime, seed, 3, gamma, V, "float32")
    run = lambda b: np.stack([array(x) for x in fast.verify(tensor(p[b], "float32"), tensor(draft[b]))])
    exactly(np.concatenate([run([b]) for b in range(3)], 1), run([0, 1, 2]), "alone")


@pytest.mark.parametrize("place", [0, 3, 2048])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_nan_ends_the_draft_and_gives_minus_one(fast, row, place):
    """The vectorized maximum of a GPU passes over a NaN."""
    p = torch.zeros(1, 3, 2049)
    p[0, :, 5] = 1
    p[0, row, place] = torch.nan
    kept, token = fast.verify(p, torch.tensor([[5, 5]]))
    assert (kept.item(), token.item()) == (row, -1)


def test_a_row_of_nothing_but_minus_infinity_gives_minus_one(fast):
    p = torch.full((1, 1, 5), -torch.inf)
    assert [x.item() for x in fast.verify(p, torch.zeros(1, 0, dtype=torch.int64))] == [0, -1]
    p[0, 0, 4] = torch.inf
    assert [x.item() for x in fast.verify(p, torch.zeros(1, 0, dtype=torch.int64))] == [0, 4]


@pytest.mark.parametrize("token", [-1, 3, 2**40])
def test_an_id_outside_the_vocabulary_never_agrees(fast, token):
    p = torch.full((1, 2, 3), torch.nan)
    p[0, 1] = 1.0
    assert fast.verify(p, torch.tensor([[token]]))[0].item() == 0  # not even with the -1 of a broken row
    p[0, 0] = 1.0
    assert fast.verify(p, torch.tensor([[token]]))[0].item() == 0


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    p, draft = torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64)
    assert fast.verify(p, draft, lengths=torch.tensor([-3, 9]))[0].tolist() == [0, 2]
    kept, token = fast.verify(p[:0], draft[:0])
    assert kept.shape == token.shape == (0,)


with torch.device(target.device()):
    ZEROS = torch.zeros(2, 3, 4)
    WRONG = {
        r"gamma \+ 1 = 3": dict(p=ZEROS[:, :2]),
        "V at least 1": dict(p=ZEROS[:, :, :0]),
        "p must have shape": dict(p=ZEROS[0]),
        r"draft must have shape \(B, gamma\) with B = 1": dict(p=ZEROS[:1]),
        "p must have dtype": dict(p=ZEROS.double()),
        "p must be contiguous along its last axis": dict(p=torch.zeros(2, 4, 3).transpose(1, 2)),
        "draft must have shape": dict(draft=torch.zeros(2, dtype=torch.int64)),
        "draft must have dtype": dict(draft=torch.zeros(2, 2)),
        "draft must be a torch.Tensor": dict(draft=[[0, 0], [0, 0]]),
        "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
        "lengths must have dtype": dict(lengths=torch.zeros(2)),
    }


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify(**dict(p=ZEROS, draft=torch.zeros(2, 2, dtype=torch.int64)) | WRONG[message])


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, draft, lengths = torch.rand(2, 3, 4), torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.tensor([2, 1])
    before = p.clone(), draft.clone(), lengths.clone()
    torch.library.opcheck(likeliest, (p, lengths, False))
    torch.library.opcheck(likeliest, (p, None, True))
    call = lambda p, draft, lengths: fast.verify(p, draft, lengths=lengths)
    found, compiled = call(p, draft, lengths), torch.compile(call, fullgraph=True, backend="aot_eager")(p, draft, lengths)
    assert all(torch.equal(a, b) and a.dtype == torch.int32 for a, b in zip(found, compiled, strict=True))
    assert all(torch.equal(a, b) for a, b in zip((p, draft, lengths), before, strict=True))
