"""What coupled draws do not read, what they return where the spec would raise, and that compilers see through them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.speculative.test_coupled_kernel import sparse, winner
from twofold.fast.kernels.gumbel_argmax import _gumbel_argmax, gumbel_argmax

HALF = torch.full((2, 3, 4), 0.25)
DRAFT = torch.tensor([[0, 1], [2, 3]])


@given(st.integers(1, 3), st.sampled_from([3, 2049]), seeds, st.booleans())
def test_what_lies_behind_a_refusal_or_an_end_influences_nothing(fast, gamma, V, seed, given_noise):
    rng, B = np.random.default_rng(seed), 2
    p, gumbel = sparse(rng, B, gamma + 1, V), rng.gumbel(size=(B, gamma + 1, V))
    draft, lengths = rng.integers(0, 3, (B, gamma)), rng.integers(0, gamma + 1, B)
    call = lambda noise, **keywords: fast.verify(tensor(p, "float32"), noise, tensor(draft), lengths=tensor(lengths), **keywords)
    run = lambda: call(tensor(gumbel, "float32")) if given_noise else call(None, seed=seed)
    kept, token = (array(x) for x in run())
    for b in range(B):
        p[b, kept[b] + 1 :], gumbel[b, kept[b] + 1 :] = np.nan, np.nan
        draft[b, min(kept[b] + 1, lengths[b]) :] = 10**12
    again = run()
    exactly(again[0], kept, "kept")
    exactly(again[1], token, "token")


@pytest.mark.parametrize("rows", ["nan", "infinity", "no mass", "negative"])
@pytest.mark.parametrize("noise", [None, torch.zeros(1, 2, 4)])
def test_a_row_without_a_law_gives_minus_one_and_matches_nothing(fast, rows, noise):
    p = HALF[:1, :2].clone()
    p[0, 0] = {"no mass": 0.0, "negative": -1.0}.get(rows, 0.5)
    if rows in ("nan", "infinity"):
        p[0, 0, 1] = float(rows)
    for drafted in (-1, 0, 1):
        kept, token = fast.verify(p, noise, torch.tensor([[drafted]]), **({} if noise is not None else {"seed": 1}))
        assert (kept.item(), token.item()) == (0, -1)
    times = None if noise is None else torch.ones(1, 1, 4)
    assert fast.lists(p[:, 0], p[:, 1], times, **({} if noise is not None else {"seed": 1, "k": 1}))[0].item() == -1


def test_a_broken_drafter_drafts_minus_one_and_the_text_goes_on(fast):
    broken = lambda tokens, ends: torch.full((len(tokens), 1, 4), torch.nan)
    draft = fast.draft(broken, torch.zeros(2, 1, dtype=torch.int64), gamma=2, seed=1)
    assert draft.tolist() == [[-1, -1]] * 2
    kept, token = fast.verify(HALF, None, draft, seed=1)
    assert kept.tolist() == [0, 0] and (token >= 0).all()


def test_noise_belongs_to_the_place_in_the_text_and_not_to_the_round(fast):
    place = lambda i: {"seed": 4, "position": torch.tensor([i])}
    own = [fast.verify(HALF[:1, :1], None, DRAFT[:1, :0], **place(i))[1].item() for i in range(5, 9)]
    kept, token = fast.verify(HALF[:1], None, torch.tensor([own[:2]]), **place(5))
    assert (kept.item(), token.item()) == (2, own[2])
    kept, token = fast.verify(HALF[:1], None, torch.tensor([own[1:3]]), **place(6))
    assert (kept.item(), token.item()) == (2, own[3])


def test_a_large_vocabulary(fast):
    rng, V = np.random.default_rng(3), 131_072
    p = sparse(rng, 1, 1, V, nonzero=300).astype(np.float32).astype(float)
    token, sure = winner(p[0, 0], 8, 2**33, 77)
    assert sure
    place = {"seed": 8, "request": torch.tensor([2**33]), "position": torch.tensor([77])}
    assert fast.verify(tensor(p, "float32"), None, torch.zeros(1, 0, dtype=torch.int32), **place)[1].item() == token


def test_lengths_are_clamped_and_empty_is_empty(fast):
    assert fast.verify(HALF, None, DRAFT, lengths=torch.tensor([-3, 9]), seed=1)[0].tolist()[0] == 0
    kept, token = fast.verify(HALF[:0], None, DRAFT[:0].int(), seed=1)
    assert kept.shape == token.shape == (0,) and kept.dtype == token.dtype == torch.int32
    assert fast.draft(None, torch.zeros(2, 1, dtype=torch.int64), gamma=0, seed=1).shape == (2, 0)
    assert fast.match_probability(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(p=HALF[:, :2]), r"gamma \+ 1 = 3"), (dict(p=HALF.double()), "p must have dtype"),
    (dict(draft=DRAFT[:1]), "draft must have shape"), (dict(draft=DRAFT.float()), "draft must have dtype"),
    (dict(gumbel=torch.zeros(2, 3, 4)), "gumbel excludes a seed"), (dict(seed=None), "either the noise or a seed"),
    (dict(gumbel=torch.zeros(2, 2, 4), seed=None), "gumbel must have shape"),
    (dict(gumbel=HALF.half(), seed=None), "gumbel must have dtype"),
    (dict(lengths=torch.zeros(3).long()), "lengths must have shape"), (dict(position=torch.zeros(3).long()), "position must have shape"),
    (dict(request=torch.zeros(2)), "request must have dtype"),
    (dict(p=torch.zeros(2, 4, 3).transpose(1, 2)), "contiguous along its last axis"),
    (dict(p=HALF[:, :, :0]), "V at least 1"),
])  # fmt: skip
def test_wrong_arguments_of_verify_are_named(fast, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify(**dict(p=HALF, gumbel=None, draft=DRAFT, seed=1) | arguments)


@pytest.mark.parametrize(("call", "message"), [
    (lambda fast: fast.draft(None, DRAFT, seed=1), "gamma of at least 0"),
    (lambda fast: fast.draft(None, DRAFT.float(), gamma=1, seed=1), "context must have dtype"),
    (lambda fast: fast.lists(HALF[:, 0], HALF[:, 0], seed=1), "seed and k"),
    (lambda fast: fast.lists(HALF[:, 0], HALF[:, 0], k=0, seed=1), "seed and k"),
    (lambda fast: fast.lists(HALF[:, 0], HALF[:, 0], torch.zeros(2, 1, 4), seed=1), "races exclude a seed"),
    (lambda fast: fast.lists(HALF[:, 0], HALF[:, 0, :2], k=1, seed=1), "q must have shape"),
    (lambda fast: fast.match_probability(HALF[:, 0], HALF[:, 0].double()), "q must have the dtype"),
])  # fmt: skip
def test_wrong_arguments_of_the_others_are_named(fast, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, draft, request = HALF.clone(), DRAFT.clone(), torch.tensor([1, 2])
    torch.library.opcheck(_gumbel_argmax, (p, 5, request, request, torch.tensor([1, 3]), 0, 1))
    torch.library.opcheck(_gumbel_argmax, (p, 5, request, request, None, 1, 2))
    call = lambda p, draft: fast.verify(p, None, draft, seed=3)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(call(p, draft), compiled(p, draft), strict=True))
    assert torch.equal(p, HALF) and torch.equal(draft, DRAFT)


def test_rows_behind_the_end_give_minus_one(fast):
    p, place = HALF.clone(), torch.tensor([1, 2])
    p[0, 1:], p[1, 2] = torch.nan, torch.inf
    tokens = gumbel_argmax(p, 5, place, place, counts=torch.tensor([1, 2]))
    assert (tokens >= 0).tolist() == [[True, False, False], [True, True, False]]
    p[0, 1:] = p[1, 2] = 0.25
    assert torch.equal(gumbel_argmax(p, 5, place, place, counts=torch.tensor([1, 2])), tokens), "nobody's rows are not even drawn from"
