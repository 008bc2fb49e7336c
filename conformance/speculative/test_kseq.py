"""k-SEQ: its law, its ratio, and that the fast side decides as the spec does."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, as_law, law, models
from twofold.conformance.speculative import rounds
from twofold.conformance.tape import Certified, exact
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain, kseq, specinfer, transport

F = Fraction
LAST = 1 - 2.0**-24

rows = models(3, 1).map(lambda model: model(()))
P, Q = TARGET(()), DRAFT(())


def acceptance(p, q, k):
    return law(lambda rng: kseq.select(p, q, rounds.independent(q, k, rng), rng)[1]).get(True, F(0))


@given(rows, rows, st.integers(0, 4))
def test_the_token_has_the_targets_law(p, q, k):
    assert law(lambda rng: kseq.select(p, q, rounds.independent(q, k, rng), rng)[0]) == as_law(p)


@given(rows, rows, st.integers(1, 4))
def test_acceptance_is_that_of_k_attempts_and_near_the_optimum(p, q, k):
    beta = np.minimum(q, p / kseq.rho(p, q, k)).sum()
    assert acceptance(p, q, k) == 1 - (1 - beta) ** k
    best = transport.optimum(p, q, k)
    assert (1 - (1 - F(1, k)) ** k) * best <= acceptance(p, q, k) <= best


@given(rows, rows, st.integers(1, 4), st.integers(0, 16))
def test_no_lossless_ratio_keeps_more_and_every_greater_one_is_lossless(p, q, k, part):
    least = kseq.rho(p, q, k)

    def attempts(ratio):
        """The probability of one attempt, and the least entry of the residual."""
        once = np.minimum(q, p / ratio)
        beta = once.sum()
        return beta, min(p - once * ((1 - (1 - beta) ** k) / beta)) if beta else F(0)

    assert 1 <= least <= k
    assert attempts(least + (k - least) * F(part, 16))[1] >= 0
    below = least - F(k - 1, 2**kseq.STEPS)  # where the last interval of the bisection began
    if below > 1:
        beta, residual = attempts(below - (below - 1) * F(part, 16))
        assert residual < 0 or beta == attempts(least)[0]


@given(rows, rows)
def test_one_draft_is_speculative_sampling(p, q):
    assert kseq.rho(p, q, 1) == 1
    one = lambda select: law(lambda rng: select((rng.categorical(q),), rng))
    assert one(lambda drafts, rng: kseq.select(p, q, drafts, rng)) == one(lambda drafts, rng: specinfer.select(p, [q], drafts, rng))


@given(rows, st.integers(1, 4))
def test_equal_laws_keep_everything_and_disjoint_ones_nothing(p, k):
    assert kseq.rho(p, p, k) == 1 and acceptance(p, p, k) == 1
    q = np.array([F(1), F(0), F(0)])
    elsewhere = np.array([F(0), *chain.residual(p, np.array([F(1), F(0), F(0)]))[1:]])
    if elsewhere.sum() == 1:
        assert acceptance(elsewhere, q, k) == 0
        assert law(lambda rng: kseq.select(elsewhere, q, [0] * k, rng)[0]) == as_law(elsewhere)


def test_the_reference_pair():
    assert kseq.rho(P, Q, 2) == F(3, 2) and acceptance(P, Q, 2) == F(3, 4)
    assert kseq.rho(P, Q, 1) == 1 and acceptance(P, Q, 1) == F(2, 3)


def test_a_token_that_was_not_drawn_from_q_is_an_error():
    with pytest.raises(ValueError, match=r"drafts\[1\] = 1 has probability 0"):
        kseq.select(np.array([0.0, 1.0]), np.array([1.0, 0.0]), [0, 1], Tape([0.5, 0.5], [0.5]))


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_is_an_error_and_never_a_token(place):
    p = np.full(2, 0.5)
    p[place] = np.nan
    with pytest.raises(ValueError, match="NaN|numbers"):
        kseq.select(p, np.array([0.9, 0.1]), [0], Tape([0.9], [0.5]))


# The fast side


@given(st.integers(0, 4), st.sampled_from([1, 2, 5, 33]), seeds, dtypes("float32", "bfloat16", "float16", "float64"))
def test_the_fast_ratio_is_the_specs_to_the_last_step(fast, k, V, seed, dtype):
    rng = np.random.default_rng(seed)
    storage = "float32" if dtype == "float64" else dtype
    p, q = (rounded(63 / 64 * rng.dirichlet(np.full(V, 0.5), 4), storage) for _ in range(2))  # no more than 1 in all
    found = array(fast.rho(tensor(p, dtype), tensor(q, dtype), k))
    for b in range(4):
        assert abs(F(found[b]) - kseq.rho(exact(p[b]), exact(q[b]), k)) <= F(max(k - 1, 0), 2 ** (kseq.STEPS - 1))


@given(st.integers(0, 4), st.sampled_from([2, 5, 33]), seeds)
def test_tokens_are_the_specs_wherever_rounding_could_not_matter(fast, k, V, seed):
    """The fast side computes in float64, where the spec's decisions are exact up to 2^-40: the margins of float32 are more than enough."""
    rng = np.random.default_rng(seed)
    p, q = (rng.multinomial(256, rng.dirichlet(np.full(V, 0.5)), 8) / 256 for _ in range(2))
    drafts = np.array([rng.choice(V, k, p=row) for row in q], dtype=np.int64).reshape(8, k)
    accept, token, lengths = rng.integers(0, 2**24, (8, k)) / 2**24, rng.integers(0, 2**24, 8) / 2**24, rng.integers(0, k + 1, 8)
    uniforms = {"accept": tensor(accept, "float32"), "token": tensor(token, "float32"), "lengths": tensor(lengths)}
    drawn, accepted = (array(x) for x in fast.select(tensor(p, "float32"), tensor(q, "float32"), tensor(drafts), **uniforms))
    for b, n in enumerate(lengths.tolist()):
        tape = Certified(accept[b], token[b : b + 1])
        expected = kseq.select(exact(p[b]), exact(q[b]), drafts[b, :n].tolist(), tape)
        assert not tape.sure or (drawn[b], accepted[b]) == expected


def test_seeded_outputs_follow_the_exact_law(fast):
    B, rng = 20_000, np.random.default_rng(3)
    p, q = (torch.tensor(row.astype(float), dtype=torch.float32).expand(B, 3) for row in (P, Q))
    drafts = rng.choice(3, (B, 2), p=Q.astype(float))
    drawn, accepted = (array(x) for x in fast.select(p, q, tensor(drafts), seed=5))

    def program(rng):
        drafts = tuple(rounds.independent(Q, 2, rng))
        return drafts, *kseq.select(P, Q, drafts, rng)

    outcomes = [(tuple(drafts[b].tolist()), int(drawn[b]), bool(accepted[b])) for b in range(B)]
    consistent(outcomes, law(program))

    def greedy(rng):  # the ratio test of one draft for each of two
        drafts = tuple(rounds.independent(Q, 2, rng))
        return drafts, *specinfer.select(P, [Q, Q], drafts, rng)

    with pytest.raises(AssertionError, match="do not follow the law"):
        consistent(outcomes, law(greedy))


@given(st.integers(0, 3), st.sampled_from([2, 300]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, k, V, seed):
    rng = np.random.default_rng(seed)
    p, q = (tensor(rng.dirichlet(np.full(V, 0.5), 3), "float32") for _ in range(2))
    drafts, request, position = tensor(rng.integers(0, V, (3, k))), tensor(np.array([7, 2**40, 0])), tensor(np.array([0, 2**33, 1]))
    run = lambda b: [array(x) for x in fast.select(p[b], q[b], drafts[b], seed=seed, request=request[b], position=position[b])]
    for all_, order, one in zip(run([0, 1, 2]), run([2, 0, 1]), run([1])):
        exactly(one[0], all_[1], "request 1")
        exactly(order, all_[[2, 0, 1]], "another order")


def one(fast, p, q, drafts, accept, token=0.5):
    rows = torch.tensor([p]), torch.tensor([q])
    coins = torch.tensor([accept], dtype=torch.float32)
    return [x.item() for x in fast.select(*rows, torch.tensor([drafts]), accept=coins, token=torch.tensor([token]))]


def test_a_coin_on_an_edge_refuses(fast):
    p, q = [0.25, 0.75], [0.5, 0.5]
    assert one(fast, p, q, [0], [0.5]) == [1, False] and one(fast, p, q, [0], [0.5 - 2.0**-24]) == [0, True]
    assert one(fast, [0.0, 1.0], q, [0, 0], [0.0, 0.0]) == [1, False]


@pytest.mark.parametrize("strange", [-1, 2, 2**40, 1])
def test_a_draft_that_q_cannot_have_drawn_is_never_kept(fast, strange):
    assert one(fast, [0.5, 0.5], [1.0, 0.0], [strange, 0], [0.0, 0.0]) == [0, True]


@pytest.mark.parametrize(("p", "q"), [
    ([0.5, np.nan], [0.5, 0.5]), ([0.5, 0.5], [np.nan, 0.5]), ([0.0, 0.0], [0.5, 0.5]), ([0.5, np.inf], [0.5, 0.5]),
])  # fmt: skip
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, p, q):
    assert one(fast, p, q, [0], [LAST]) == [-1, False]


def test_rounding_never_draws_what_the_attempts_covered(fast):
    """Equal rows whose float32 sum is not 1: everything is kept, and if a coin refuses nevertheless, the row itself is drawn from."""
    p = (np.full(3, 1 / 3)).astype(np.float32).tolist()
    assert one(fast, p, p, [1], [LAST])[1] and one(fast, [0.5, 0.5], [0.5 + 2.0**-12] * 2, [0], [LAST], 0.75) == [1, False]


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, q, drafts = torch.full((2, 4), 0.25), torch.full((2, 4), 0.25), torch.tensor([[0, 1], [3, 3]], dtype=torch.int32)
    call = lambda p, q, drafts: (*fast.select(p, q, drafts, seed=3), fast.rho(p, q, 2))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(call(p, q, drafts), compiled(p, q, drafts), strict=True))
    assert call(p, q, drafts)[0].dtype == torch.int32 and p.unique().tolist() == [0.25] and drafts.tolist() == [[0, 1], [3, 3]]
    assert fast.select(p[:0], q[:0], drafts[:0], seed=1)[0].shape == (0,)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(p=torch.ones(3)), "p must have shape"), (dict(q=torch.ones(2, 3)), "q must have shape"),
    (dict(q=torch.ones(2, 4).half()), "q must have the dtype"), (dict(drafts=torch.zeros(2, 2)), "drafts must have dtype"),
    (dict(lengths=torch.zeros(3, dtype=torch.int64)), "lengths must have shape"),
    (dict(seed=None), "or a seed"), (dict(seed=None, token=torch.zeros(2, 1)), "token must have shape"),
    (dict(seed=None, accept=torch.zeros(2, 3), token=torch.zeros(2)), "accept must have shape"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(p=torch.ones(2, 4), q=torch.ones(2, 4), drafts=torch.zeros(2, 2, dtype=torch.int64), seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.select(**right | arguments)
    with pytest.raises(ValueError, match="k must be at least 0"):
        fast.rho(torch.ones(2, 4), torch.ones(2, 4), -1)
