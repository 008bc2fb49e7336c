"""The race: which tokens it draws, in which order, with which law; and what a call may not do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, seeds, tensor
from twofold.conformance.law import DRAFT, law
from twofold.conformance.speculative.forests import geometric
from twofold.fast.kernels import philox
from twofold.fast.kernels.gumbel_topk import gumbel_topk, gumbel_topk_seeded
from twofold.fast.kernels.walk_tree import WITHOUT, walk_tree
from twofold.spec.speculative import rsd

LAST = 1 - 2.0**-24
with torch.device(target.device()):
    HALF, TOKENS, PARENTS = torch.full((2, 3, 4), 0.25), torch.tensor([[-1, 0, 1], [-1, 2, 0]]), torch.tensor([[-1, 0, 0], [-1, 0, 0]])


@given(st.integers(0, 9), st.sampled_from([1, 2, 7, 2047, 2049, 5000]), seeds, dtypes())
def test_the_race_is_the_specs(fast, k, V, seed, dtype):
    """Powers of two as rates and small integers as noise: times are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    q, noise = geometric(rng, 3, V), rng.integers(0, 4, (3, V)).astype(float)
    drawn = array(fast.race(tensor(q, dtype), k, tensor(np.where(q > 0, noise, np.nan), "float32")))  # noise is read where it is needed
    expected = [rsd.race(row, k, noise[b]) for b, row in enumerate(q)]
    exactly(drawn, [row + [-1] * (k - len(row)) for row in expected], "drafts")


@given(st.integers(1, 4), st.sampled_from([2, 2100]), seeds)
def test_a_row_alone_is_the_row_in_a_batch(fast, k, V, seed):
    q = tensor(np.random.default_rng(seed).dirichlet(np.full(V, 0.5), 3), "float32")
    keys = {"request": tensor(np.array([7, 2**40, 0])), "position": tensor(np.array([0, 2**33, 1])), "node": tensor(np.array([0, 5, 2]))}
    run = lambda b: array(fast.sample(q[b], k, seed=seed, **{name: key[b] for name, key in keys.items()}))
    exactly(run([1]), run([0, 1, 2])[[1]])
    exactly(run([2, 0, 1]), run([0, 1, 2])[[2, 0, 1]])


def test_seeded_drafts_follow_the_law_of_one_after_another(fast):
    B = 20_000 if fast.side == "torch" else 60  # the interpreter takes a millisecond per program
    q = torch.tensor([1 / 6, 1 / 6, 0.0, 4 / 6]).expand(B, 4)
    drawn = [tuple(row) for row in fast.sample(q, 2, seed=3).tolist()]
    exact = law(lambda rng: tuple(rsd.sample(np.insert(DRAFT(()), 2, 0), 2, rng)))
    consistent(drawn, exact)
    if B >= 20_000:  # the same samples refute a law in which the second draft is uniform: the test has power
        uniform = {(a, b): sum(w for (x, _), w in exact.items() if x == a) / 2 for a, b in exact}
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(drawn, uniform)


def test_noise_belongs_to_seed_request_position_node_and_token(fast):
    """Tokens arrive in the order of the times that their philox words give."""
    request, position, node = (torch.tensor(x)[:, None] for x in ([3, 2**40, 3, 3], [9, 1, 9, 8], [0, 6, 6, 0]))
    q = np.array([[1, 2, 3, 2, 4, 4]] * 4) / 16
    what = philox.DRAFT + ((node * 6 + torch.arange(6)) << 8)
    word = philox.philox(11, position.expand(4, 6), request.expand(4, 6), request.expand(4, 6) >> 32, what)[0]
    times = -np.log1p(-(array(word) + 0.5) / 2**32) / q
    keys = {"request": request[:, 0], "position": position[:, 0], "node": node[:, 0]}
    exactly(fast.sample(tensor(q, "float32"), 6, seed=11, **keys), np.argsort(times, axis=1))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_that_is_no_law_gives_minus_one_only(fast, broken):
    q = torch.tensor([[0.5, broken, 0.5], [0.5, 0.25, 0.25]])
    assert fast.sample(q, 2, seed=1)[0].tolist() == [-1, -1] and min(fast.sample(q, 2, seed=1)[1].tolist()) >= 0
    assert fast.race(q, 2, torch.ones(2, 3)).tolist() == [[-1, -1], [0, 1]]
    assert fast.race(q[1:], 2, torch.tensor([[1.0, float("nan"), 1.0]])).tolist() == [[-1, -1]]


def test_a_token_of_tiny_probability_arrives_last_but_arrives(fast):
    q = torch.tensor([[1e-38, 1.0, 0.0]])
    assert fast.race(q, 3, torch.tensor([[9.0, 9.0, 9.0]])).tolist() == [[1, 0, -1]]


def test_a_draft_that_cannot_have_been_drawn_is_as_if_it_were_not_there(fast):
    """A repetition, the padding, an id outside the vocabulary, a token of probability 0; none of them takes a coin."""
    p, q = torch.tensor([[0.25, 0.4375, 0.3125, 0.0]]), torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    for strange in (0, -1, 4, 2**40, 3):
        drafts = torch.tensor([[0, strange, 2]])
        run = lambda coins, drafts=drafts: fast.select(p, q, drafts, accept=torch.tensor([coins]), token=torch.tensor([0.5]))
        # 0 is refused at 1/4 over 1/2; then 2 has 1/4 of what is owed and 1/2 of what was not tried
        assert [x.item() for x in run([0.5, 0.25, LAST])] == [2, True]
        assert [x.item() for x in run([0.5, LAST, 0.25])] == [1, False]


def test_all_that_was_tried_is_taken_out(fast):
    """Tokens 0 and 1 are refused. Token 2 then has 1/4 of what is owed, and half of the 1/4 that was not tried: a coin of 1/2 decides."""
    p, q, drafts = torch.tensor([[0.25, 0.125, 17 / 64, 23 / 64]]), torch.tensor([[0.5, 0.25, 0.125, 0.125]]), torch.tensor([[0, 1, 2]])
    for coin, expected in ((0.5 - 2.0**-24, [2, True]), (0.5, [3, False])):
        token, accepted = fast.select(p, q, drafts, accept=torch.tensor([[0.5, 0.0, coin]]), token=torch.tensor([0.5]))
        assert [token.item(), accepted.item()] == expected


def test_a_nan_gives_minus_one(fast):
    for place in range(3):
        p, q = torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([[0.5, 0.25, 0.25]])
        for rows in (p, q):
            keep, rows[0, place] = rows[0, place].item(), torch.nan
            token, accepted = fast.select(p, q, torch.tensor([[0, 1]]), accept=torch.full((1, 2), LAST), token=torch.tensor([0.5]))
            assert (token.item(), accepted.item()) == (-1, False)
            rows[0, place] = keep


def test_nothing_drafted_draws_from_the_row_and_an_empty_batch_is_empty(fast):
    row = torch.tensor([[0.25, 0.75]])
    token, accepted = fast.select(row, row, TOKENS[:1, :0], accept=torch.zeros(1, 0), token=torch.tensor([0.25]))
    assert (token.item(), accepted.item()) == (1, False)
    assert [tuple(x.shape) for x in fast.verify_tree(HALF[:0], HALF[:0], TOKENS[:0], PARENTS[:0], seed=1)] == [(0, 2), (0,)]
    assert tuple(fast.sample(row[:0], 3, seed=1).shape) == (0, 3) and tuple(fast.sample(row, 0, seed=1).shape) == (1, 0)


WRONG = {
    "k must be at least 0": lambda fast: fast.sample(HALF[:, 0], -1, seed=1),
    "q must have shape": lambda fast: fast.sample(HALF, 1, seed=1),
    "V at least 1": lambda fast: fast.sample(HALF[:, 0, :0], 1, seed=1),
    "q must have dtype": lambda fast: fast.sample(HALF[:, 0].double(), 1, seed=1),
    "give a seed": lambda fast: fast.sample(HALF[:, 0], 1),
    "node must have shape": lambda fast: fast.sample(HALF[:, 0], 1, seed=1, node=torch.zeros(3, dtype=torch.int64)),
    "request must have dtype": lambda fast: fast.sample(HALF[:, 0], 1, seed=1, request=torch.zeros(2)),
    "noise must have shape": lambda fast: fast.race(HALF[:, 0], 1, HALF[:, 0, :3]),
    "noise must have dtype": lambda fast: fast.race(HALF[:, 0], 1, HALF[:, 0].double()),
    "drafts must have shape": lambda fast: fast.select(HALF[:, 0], HALF[:, 0], TOKENS[0], seed=1),
    "q must have the dtype": lambda fast: fast.verify_tree(HALF, HALF.half(), TOKENS, PARENTS, seed=1),
    "lengths must have shape": lambda fast: fast.select(HALF[:, 0], HALF[:, 0], TOKENS, lengths=TOKENS[:, :1], seed=1),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    with pytest.raises((ValueError, TypeError), match=message):
        WRONG[message](fast)


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    request, row = torch.arange(2), HALF[:, 0].contiguous()
    torch.library.opcheck(gumbel_topk, (row, 2, row))
    torch.library.opcheck(gumbel_topk_seeded, (row, 2, 5, request, request, request))
    torch.library.opcheck(walk_tree, (HALF, HALF, TOKENS, PARENTS, None, row[:, :2].contiguous(), row[:, :1].contiguous(), WITHOUT))

    def a_round(p, q):
        drafts = fast.sample(q, 2, seed=3)
        return *fast.select(p, q, drafts, seed=3), *fast.verify_tree(HALF, HALF, TOKENS, PARENTS, seed=3)

    compiled = torch.compile(a_round, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(a_round(row, row), compiled(row, row), strict=True))
    assert torch.equal(row, HALF[:, 1]) and TOKENS.tolist() == [[-1, 0, 1], [-1, 2, 0]]
