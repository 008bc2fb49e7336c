"""Blockwise parallel decoding: exact acceptance writes the greedy text, and looser acceptance keeps within its bound."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, dtypes, layouts, regimes, seeds, tensor, values
from twofold.conformance.law import law, models
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import blockwise, greedy

forms = st.sampled_from(["verify_top_k", "verify_distance"])
first_k = lambda k: lambda p, draft: blockwise.verify_top_k(p, draft, k)
within = lambda eps: lambda p, draft: blockwise.verify_distance(p, draft, eps)
greedy_text = lambda target, _: rounds.greedily(target)


def block(gamma, verify, target, drafter):
    return rounds.chain(target, drafter, gamma, verify)


CLAIMS = [
    Claim(f"{name}, {gamma} drafted", partial(block, gamma, verify), gamma + 1, claimed=greedy_text, reference=gamma == 2)
    for name, verify in (("verify_top_k, k = 1", first_k(1)), ("verify_distance, eps = 0", within(0))) for gamma in (2, 1)
]  # fmt: skip


@given(models(3, 4), models(3, 4), st.integers(0, 3), st.sampled_from([first_k(1), within(0)]))
def test_exact_acceptance_writes_what_greedy_decoding_writes(target, drafter, gamma, verify):
    rounds.lossless(rounds.chain(target, drafter, gamma, verify), rounds.greedily(target), gamma + 1)


@given(models(3, 3, greatest=2), st.tuples(*[st.integers(0, 2)] * 2))
def test_exact_acceptance_is_greedy_verification(target, draft):
    p = [target(draft[:i]) for i in range(3)]
    assert blockwise.verify_top_k(p, draft, 1) == blockwise.verify_distance(p, draft, 0) == greedy.verify(p, draft)


@given(models(2, 5), st.lists(models(2, 5), min_size=1, max_size=2), st.booleans())
def test_a_text_of_whole_rounds_is_greedy_whatever_the_other_heads_say(target, others, by_rank):
    """Head 1 is the model itself; its guess ends the round before and stands in the text before any guess is judged."""
    heads = lambda context: np.array([model(context) for model in (target, *others)])
    verify, text, length = blockwise.verify_top_k if by_rank else blockwise.verify_distance, [], 5
    likeliest, *draft = blockwise.propose(heads([]))
    text.append(likeliest)
    while len(text) < length:
        draft = draft[: length - len(text) - 1]  # the model adds one of its own
        rows = [heads(text + draft[:i]) for i in range(len(draft) + 1)]
        kept, token = verify([row[0] for row in rows], draft, 1 if by_rank else 0)
        guess, *behind = blockwise.propose(rows[kept])
        assert token == guess, "the token that ends a round is head 1's guess there"
        text, draft = text + draft[:kept] + [token], behind
    for n, token in enumerate(text):
        assert token == np.argmax(target(text[:n]))


@given(models(4, 4), models(4, 4), st.integers(1, 4))
def test_a_kept_guess_is_among_the_k_likeliest_and_the_last_token_the_likeliest(target, drafter, k):
    """Looser than greedy, but each token within its bound after what was really written, equals of lower id counted before it."""
    for text in law(rounds.chain(target, drafter, 3, first_k(k))):
        for n, token in enumerate(text[:-1]):
            assert token in sorted(range(4), key=lambda v: (-target(text[:n])[v], v))[:k]
        assert text[-1] == np.argmax(target(text[:-1]))


@given(models(4, 4), models(4, 4), st.integers(0, 3))
def test_a_kept_guess_lies_within_the_distance_of_the_likeliest_token(target, drafter, eps):
    for text in law(rounds.chain(target, drafter, 3, within(eps))):
        assert all(abs(token - np.argmax(target(text[:n]))) <= eps for n, token in enumerate(text[:-1]))
        assert text[-1] == np.argmax(target(text[:-1]))


@given(models(4, 4), st.tuples(*[st.integers(0, 3)] * 3), st.sampled_from([first_k, within]))
def test_looser_acceptance_keeps_more_and_the_loosest_everything(target, draft, looseness):
    p = [target(draft[:i]) for i in range(4)]
    kept = [looseness(setting)(p, draft)[0] for setting in range(1, 5)]
    assert kept == sorted(kept) and kept[-1] == 3


def test_ranks_of_equals_follow_their_ids():
    p = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    assert [[blockwise.verify_top_k(p, [x], k)[0] for k in (1, 2, 3, 4)] for x in range(4)] == [
        [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]
    ]  # fmt: skip


@pytest.mark.parametrize(("verify", "message"), [
    (first_k(0), "k must be at least 1"), (within(-1), "eps must be at least 0"), (within(float("nan")), "eps must be at least 0"),
])  # fmt: skip
def test_settings_lie_in_their_range(verify, message):
    with pytest.raises(ValueError, match=message):
        verify(np.eye(2), [0])


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0)])
def test_a_nan_is_an_error_and_never_a_token(place):
    p = np.eye(2)
    p[place] = np.nan
    for verify in (first_k(2), within(2)):
        with pytest.raises(ValueError, match="not nan"):
            verify(p, [0])
    with pytest.raises(ValueError, match="not nan"):
        blockwise.propose(p)


@given(forms, st.integers(0, 4), st.sampled_from([1, 2, 17, 300]), regimes, seeds, dtypes("float32", "bfloat16", "float16"), layouts)
@example("verify_top_k", 4, 17, "ties", 1, "float32", "contiguous")
@example("verify_distance", 4, 17, "ties", 2, "float32", "contiguous")
@example("verify_top_k", 4, 2, "constant", 3, "bfloat16", "sliced")
def test_guesses_kept_and_tokens_are_the_specs(fast, form, gamma, V, regime, seed, dtype, layout):
    rng, B = np.random.default_rng(seed), 5
    (p,) = values(regime, [(B, gamma + 1, V)], seed, dtype)
    settings = rng.integers(1, 4, B)
    draft = np.clip(p[:, :gamma].argmax(2) + rng.integers(-2, 3, (B, gamma)), 0, V - 1)  # near the likeliest, in rank and in distance
    if form == "verify_top_k":
        order = np.argsort(-p[:, :gamma], axis=2, kind="stable")
        draft = np.take_along_axis(order, rng.integers(0, min(4, V), (B, gamma, 1)), 2)[:, :, 0]
    lengths = rng.integers(0, gamma + 1, B)
    kept, token = getattr(fast, form)(tensor(p, dtype, layout), tensor(draft), tensor(settings), lengths=tensor(lengths))
    for b, n in enumerate(lengths.tolist()):
        expected = getattr(blockwise, form)(p[b], draft[b, :n], settings[b])
        assert (int(kept[b]), int(token[b])) == expected
    exactly(fast.propose(tensor(p, dtype, layout)), np.array([blockwise.propose(rows) for rows in p]), "guesses")


@given(forms, st.integers(1, 4), st.sampled_from([2, 40]), seeds)
def test_what_lies_beyond_a_refusal_or_an_end_influences_nothing(fast, form, gamma, V, seed):
    rng, B = np.random.default_rng(seed), 4
    p = rng.integers(0, 3, (B, gamma + 1, V)).astype(float)
    draft, lengths = p[:, :gamma].argmax(2), rng.integers(0, gamma + 1, B)
    draft = np.where(rng.random(draft.shape) < 0.2, rng.integers(0, V, draft.shape), draft)
    run = lambda: tuple(array(x) for x in getattr(fast, form)(tensor(p, "float32"), tensor(draft), 1, lengths=tensor(lengths)))
    kept, token = run()
    for b in range(B):
        p[b, kept[b] + 1 :] = np.nan
        draft[b, min(kept[b] + 1, lengths[b]) :] = 10**12
    again = run()
    exactly(again[0], kept, "kept")
    exactly(again[1], token, "token")


@given(forms, seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, form, seed):
    rng = np.random.default_rng(seed)
    p, draft = tensor(rng.integers(0, 3, (4, 4, 5)).astype(float), "float32"), tensor(rng.integers(0, 5, (4, 3)))
    together = getattr(fast, form)(p, draft, 2)
    for b in range(4):
        alone = getattr(fast, form)(p[b : b + 1], draft[b : b + 1], 2)
        assert [int(x) for x in alone] == [int(x[b]) for x in together]


@pytest.mark.parametrize("place", [0, 1, slice(None)])
def test_a_row_without_a_likeliest_token_gives_minus_one_and_keeps_nothing(fast, place):
    p = torch.eye(3)[None, :2].clone()
    p[0, 0, place] = torch.nan if isinstance(place, int) else -torch.inf
    for kept, token in (fast.verify_top_k(p, torch.tensor([[0]]), 3), fast.verify_distance(p, torch.tensor([[0]]), 3)):
        assert (kept.item(), token.item()) == (0, -1)
    assert fast.propose(p).tolist() == [[-1, 1]]


@pytest.mark.parametrize("guess", [-1, 3, 2**40])
def test_a_guess_that_is_no_token_is_refused(fast, guess):
    p, draft = torch.eye(3)[None, :2], torch.tensor([[guess]])
    assert [x.item() for x in fast.verify_top_k(p, draft, 3)] == [x.item() for x in fast.verify_distance(p, draft, 2**41)] == [0, 0]


def test_empty_blocks_empty_batches_and_lengths_out_of_range(fast):
    p, draft = torch.eye(3).expand(2, 3, 3), torch.tensor([[0, 1], [0, 1]], dtype=torch.int32)
    kept, token = fast.verify_top_k(p, draft, 1, lengths=torch.tensor([-3, 9]))
    assert kept.tolist() == [0, 2] and token.tolist() == [0, 2] and kept.dtype == token.dtype == torch.int32
    assert [x.tolist() for x in fast.verify_distance(p[:, :1], draft[:, :0], 0)] == [[0, 0], [0, 0]]
    assert [x.shape for x in fast.verify_top_k(p[:0], draft[:0], 1)] == [(0,), (0,)]


WRONG = {
    r"gamma \+ 1 = 3": dict(p=torch.zeros(2, 2, 4)),
    "p must have dtype": dict(p=torch.zeros(2, 3, 4, dtype=torch.float64)),
    "p must have .* V at least 1": dict(p=torch.zeros(2, 3, 0)),
    "contiguous along its last axis": dict(p=torch.zeros(2, 4, 3).transpose(1, 2)),
    "draft must have shape": dict(draft=torch.zeros(3, 2, dtype=torch.int64)),
    "draft must have dtype": dict(draft=torch.zeros(2, 2)),
    "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
    "k must be at least 1": dict(k=0),
    "k must have shape": dict(k=torch.ones(3)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(p=torch.zeros(2, 3, 4), draft=torch.zeros(2, 2, dtype=torch.int64), k=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify_top_k(**right | WRONG[message])


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, draft = torch.eye(3).expand(2, 3, 3).clone(), torch.tensor([[0, 1], [2, 2]])
    for call in (lambda p, draft: fast.verify_top_k(p, draft, 2), lambda p, draft: fast.verify_distance(p, draft, 1)):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert all(torch.equal(a, b) for a, b in zip(call(p, draft), compiled(p, draft), strict=True))
    assert torch.equal(p, torch.eye(3).expand(2, 3, 3)) and draft.tolist() == [[0, 1], [2, 2]]
