"""What a call may not do, what it returns where the spec would raise, and that compilers see through it."""

import pytest
import torch

from twofold.conformance import target
from twofold.fast.kernels.verify_chain import verify_chain

HALF = torch.full((2, 3, 4), 0.25, device=target.device())
BELOW_ONE = 1 - 2.0**-24


def uniforms(accept=0.5, token=0.5, B=2, gamma=2):
    return {"accept": torch.full((B, gamma), float(accept)), "token": torch.full((B,), float(token))}


@pytest.mark.parametrize(("coin", "kept"), [(0.5, 0), (0.5 - 2.0**-24, 1)])
def test_the_coin_of_a_prefix_decides_as_written(fast, coin, kept):
    """P = 1/2 and Z = 1/2, so h = 1/2; the target excludes the second token."""
    p, q = torch.tensor([[[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]]), torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    found = fast.verify(p, q, torch.tensor([[0, 1]]), accept=torch.tensor([[coin, 0.0]]), token=torch.tensor([0.0]))
    assert [x.item() for x in found] == [kept, 1 - kept]


@pytest.mark.parametrize(("coin", "kept"), [(0.5, 0), (0.5 - 2.0**-24, 2)])
def test_the_coin_of_the_whole_draft_decides_as_written(fast, coin, kept):
    p, q = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]]]), torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    assert fast.verify(p, q, torch.tensor([[0, 1]]), accept=torch.tensor([[0.0, coin]]), token=torch.tensor([0.9]))[0].item() == kept


@pytest.mark.parametrize(("coin", "kept"), [(0.25, 0), (0.25 - 2.0**-24, 2)])
def test_a_token_that_the_target_likes_more_does_not_pay_for_the_next(fast, coin, kept):
    """Ratios 2 and 1/4: the reach is cut at 1, then falls to 1/4. Without the cut the draft would be kept half the time."""
    p, q = torch.tensor([[[0.5, 0.5], [0.125, 0.875], [0.5, 0.5]]]), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    found = fast.verify(p, q, torch.tensor([[0, 0]]), accept=torch.tensor([[0.0, coin]]), token=torch.tensor([0.9]))
    assert found[0].item() == (kept or 1) and found[1].item() == 1  # the first token is kept for sure


@pytest.mark.parametrize("uniform", [0.0, BELOW_ONE])
def test_the_token_after_a_prefix_comes_from_what_its_reach_leaves(fast, uniform):
    """P = 1/2, so [P p - q]_+ = (1/4 - 1/8, 1/4 - 3/8, 0 - 1/2)_+ is token 0 alone; [p - q]_+ would have token 1 too."""
    p = torch.tensor([[[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]])
    q = torch.tensor([[[0.5, 0.5, 0.0], [0.125, 0.375, 0.5]]])
    found = fast.verify(p, q, torch.tensor([[0, 2]]), accept=torch.tensor([[0.0, 0.0]]), token=torch.tensor([uniform]))
    assert [x.item() for x in found] == [1, 0]


def test_a_reach_of_one_is_kept_whatever_the_coins_say(fast):
    """0 / 0 where p = q, and 1 where something is left."""
    p = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]], [[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]])
    q = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.25, 0.75]]])
    kept, token = fast.verify(p, q, torch.zeros(2, 2, dtype=torch.int64), **uniforms(BELOW_ONE))
    assert (kept.tolist(), token.tolist()) == ([2, 2], [0, 1])


def test_a_coin_of_zero_keeps_nothing_impossible(fast):
    p, q = torch.tensor([[[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]]), torch.full((1, 2, 2), 0.5)
    assert [x.item() for x in fast.verify(p, q, torch.tensor([[0, 0]]), **uniforms(0.0, 0.0, 1))] == [0, 1]


PLACES = [f"{side} {where} {row}" for side in "pq" for where in ("at", "off") for row in (0, 1)]


@pytest.mark.parametrize("place", [*PLACES, "bonus", "infinity", "no mass"])
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, place):
    p, q, draft = HALF[:1].clone(), HALF[:1, :2].clone(), torch.tensor([[0, 1]])
    q[0, 0] = torch.tensor([0.5, 0.25, 0.125, 0.125])  # a reach of 1/2: the two rows of q matter unless the last coin is small
    if place == "bonus":
        p[0, 2, 3] = torch.nan
    elif place == "infinity":
        p[0, 1, 3] = torch.inf
    elif place == "no mass":
        p[0, 0] = 0
    else:
        (p if place[0] == "p" else q)[0, int(place[-1]), int(place[-1]) if "at" in place else 3] = torch.nan
    _, token = fast.verify(p, q, draft, **uniforms(0.0 if place == "bonus" else BELOW_ONE, B=1))
    assert token.item() == -1


@pytest.mark.parametrize("token", [1, -1, 4, 2**40])
@pytest.mark.parametrize("place", [0, 1])
def test_a_token_that_q_cannot_have_drawn_ends_what_can_be_kept(fast, token, place):
    q = torch.tensor([[[0.5, 0.0, 0.25, 0.25]]]).repeat(1, 2, 1)
    p = torch.tensor([[[0.5, 0.25, 0.0, 0.25]]]).repeat(1, 3, 1)
    draft = torch.tensor([[0, 0]])
    draft[0, place] = token
    kept, drawn = fast.verify(p, q, draft, **uniforms(0.0, 0.9, 1))
    assert (kept.item(), drawn.item()) == (place, 1)


@pytest.mark.parametrize("uniform", [0.0, 0.5, BELOW_ONE])
def test_a_token_of_probability_zero_never_comes(fast, uniform):
    p, q = torch.zeros(4, 2, 5000), torch.zeros(4, 1, 5000)
    q[:, :, 7] = 1
    for b, places in enumerate([[0], [4999], [2048, 2050], [1, 4096]]):
        p[b, 0, places] = 1 / len(places)
    kept, token = fast.verify(p, q, torch.full((4, 1), 7), **uniforms(0, uniform, 4, 1))
    assert kept.tolist() == [0] * 4 and all(p[b, 0, v] > 0 for b, v in enumerate(token.tolist()))


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    draft = torch.zeros(2, 2, dtype=torch.int64)
    kept, _ = fast.verify(HALF, HALF[:, :2], draft, lengths=torch.tensor([-3, 9]), **uniforms())
    assert kept.tolist() == [0, 2]
    kept, token = fast.verify(HALF[:0], HALF[:0, :2], draft[:0], seed=1)
    assert kept.shape == token.shape == (0,)


with torch.device(target.device()):
    WRONG = {
        r"gamma \+ 1 = 3": dict(p=HALF[:, :2]),
        "V at least 1": dict(p=HALF[:, :, :0], q=HALF[:, :2, :0]),
        "q must have shape": dict(q=HALF[:1, :2]),
        "q must have dtype|q must have the dtype": dict(q=HALF[:, :2].half()),
        "p must have dtype": dict(p=HALF.double(), q=HALF[:, :2].double()),
        "draft must have shape": dict(draft=torch.zeros(2, dtype=torch.int64)),
        "draft must have dtype": dict(draft=torch.zeros(2, 2)),
        "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
        "lengths must have dtype": dict(lengths=torch.zeros(2)),
        "accept must have shape": dict(accept=torch.zeros(2, 3)),
        "token must have shape": dict(token=torch.zeros(3)),
        "p must be contiguous along its last axis": dict(p=torch.zeros(2, 4, 3).transpose(1, 2)),
        "q must be contiguous along its last axis": dict(q=torch.zeros(2, 4, 2).transpose(1, 2)),
        "go together": dict(token=None),
        "or a seed": dict(accept=None, token=None),
        "exclude a seed": dict(seed=1),
    }


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(p=HALF, q=HALF[:, :2], draft=torch.zeros(2, 2, dtype=torch.int64), **uniforms())
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify(**right | WRONG[message])


def test_compilers_see_through(fast):
    draft, lengths = torch.tensor([[0, 1], [2, 3]]), torch.tensor([2, 1])
    torch.library.opcheck(verify_chain, (HALF, HALF[:, :2], draft, lengths, *uniforms().values(), 1.0, True))
    call = lambda p, q, draft: fast.verify(p, q, draft, seed=3)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    arguments = HALF, HALF[:, :2], draft
    assert all(torch.equal(a, b) for a, b in zip(call(*arguments), compiled(*arguments), strict=True))


def test_two_runs_are_equal_and_inputs_stay_as_they_were(fast):
    p, q, draft = HALF.clone(), HALF[:, :2].clone(), torch.zeros(2, 2, dtype=torch.int32)
    run = lambda: torch.stack(fast.verify(p, q, draft, lengths=torch.tensor([1, 7]), seed=1))
    assert torch.equal(run(), run()) and run().dtype == torch.int32
    assert torch.equal(p, HALF) and torch.equal(q, HALF[:, :2]) and not draft.any()
