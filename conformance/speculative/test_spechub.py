"""SpecHub: its law, how near the optimum it comes, and that the fast side decides as the spec does."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, as_law, law, models
from twofold.conformance.speculative.referees import inside, min_cut
from twofold.conformance.speculative.test_transport import forty_pairs
from twofold.conformance.tape import Certified, exact
from twofold.spec.rng import Tape
from twofold.spec.speculative import spechub, transport

F = Fraction
LAST = 1 - 2.0**-24

rows = models(4, 1).map(lambda model: model(()))
P, Q = TARGET(()), DRAFT(())


def level(p, q):
    """A program that draws the drafts: the drafts, the token, and whether it was drafted."""

    def program(rng):
        drafts = tuple(spechub.sample(q, rng))
        return drafts, *spechub.select(p, q, drafts, rng)

    return program


def acceptance(p, q):
    return sum((weight for (_, _, accepted), weight in law(level(p, q)).items() if accepted), F(0))


@given(rows, rows)
def test_the_token_has_the_targets_law(p, q):
    assert law(lambda rng: spechub.select(p, q, spechub.sample(q, rng), rng)[0]) == as_law(p)


@given(rows)
def test_a_certain_drafter_has_one_draft_and_keeps_the_law(p):
    q = np.array([F(0), F(1), F(0), F(0)])
    assert law(lambda rng: tuple(spechub.sample(q, rng))) == {(1,): 1}
    assert law(lambda rng: spechub.select(p, q, [1], rng)[0]) == as_law(p) and acceptance(p, q) == p[1]


@given(rows)
def test_drafts_are_the_hub_and_another_token(q):
    hub, pairs = int(np.argmax(q)), law(lambda rng: tuple(spechub.sample(q, rng)))
    for drafts, weight in pairs.items():
        if len(drafts) == 2:
            (other,) = set(drafts) - {hub}
            assert weight == (q[other] if drafts[1] == hub else q[hub] * q[other] / (1 - q[hub]))


@given(rows, rows)
def test_a_kept_token_is_a_draft_and_the_coupling_is_the_best_for_these_pairs(p, q):
    for drafts, token, accepted in law(level(p, q)):
        assert not accepted or token in drafts
    assert acceptance(p, q) == min_cut(p, inside(law(lambda rng: tuple(spechub.sample(q, rng)))))


@given(rows)
def test_equal_laws_lose_nothing(p):
    assert acceptance(p, p) == 1


def test_acceptance_on_the_reference_pair_and_on_forty_others():
    assert acceptance(P, Q) == 1 == transport.optimum_without_replacement(P, Q, 2)
    assert round(float(sum(acceptance(p, q) for p, q in forty_pairs()) / 40), 3) == 0.863


@pytest.mark.parametrize("drafts", [[0, 1], [2, 2], [2, 3], [2], []])
def test_drafts_that_are_no_pair_with_the_hub_are_an_error(drafts):
    with pytest.raises(ValueError, match="must be the hub 2 and another token"):
        spechub.select(np.full(4, 0.25), np.array([0.25, 0.25, 0.5, 0.0]), drafts, Tape([0.5] * 2, [0.5]))


def test_a_nan_is_an_error_and_never_a_token():
    with pytest.raises(ValueError, match="NaN|numbers"):
        spechub.select(np.array([np.nan, 0.5]), np.array([0.25, 0.75]), [0, 1], Tape([0.9] * 2, [0.5]))


# The fast side


def sixty_fourths(rng, *shape):
    return rng.multinomial(64, rng.dirichlet(np.full(shape[-1], 0.5)), shape[:-1]) / 64


@given(st.sampled_from([1, 2, 5, 33]), seeds, dtypes())
def test_drafts_and_tokens_are_the_specs_wherever_rounding_could_not_matter(fast, V, seed, dtype):
    """Rows in 64ths are exact in every dtype and sums are float64: the margins of float32 are more than enough."""
    rng = np.random.default_rng(seed)
    p, q = sixty_fourths(rng, 16, V), sixty_fourths(rng, 16, V)
    uniforms = [rng.integers(0, 2**24, shape) / 2**24 for shape in ((16, 2), (16, 2), 16)]
    tensors = [tensor(u, "float32") for u in uniforms]
    drafts = array(fast.sample(tensor(q, dtype), token=tensors[0]))
    drawn, accepted = (
        array(x) for x in fast.select(tensor(p, dtype), tensor(q, dtype), tensor(drafts), accept=tensors[1], token=tensors[2])
    )
    for b in range(16):
        tape = Certified(uniforms[1][b], [*uniforms[0][b], uniforms[2][b]])
        pair = [x for x in drafts[b].tolist() if x >= 0]
        expected = spechub.sample(exact(q[b]), tape)
        assert not tape.sure or pair == expected
        tape = Certified(uniforms[1][b], uniforms[2][b : b + 1])
        expected = spechub.select(exact(p[b]), exact(q[b]), pair, tape)
        assert not tape.sure or (drawn[b], accepted[b]) == expected


def test_a_seeded_round_follows_the_exact_law(fast):
    p, q = (np.array([F(w, 12) for w in row], dtype=object) for row in ((1, 3, 6, 2), (4, 5, 1, 2)))
    B = 20_000
    target, draft = (torch.tensor(row.astype(float), dtype=torch.float32).expand(B, 4) for row in (p, q))
    drafts = fast.sample(draft, seed=5)
    drawn, accepted = fast.select(target, draft, drafts, seed=6)
    outcomes = list(zip(map(tuple, drafts.tolist()), drawn.tolist(), accepted.tolist(), strict=True))
    consistent(outcomes, law(level(p, q)))
    with pytest.raises(AssertionError, match="do not follow the law"):
        consistent(outcomes, law(level(q, q)))


@given(st.sampled_from([2, 300]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, V, seed):
    rng = np.random.default_rng(seed)
    p, q = (tensor(rng.dirichlet(np.full(V, 0.5), 3), "float32") for _ in range(2))
    keys = {"request": tensor(np.array([7, 2**40, 0])), "position": tensor(np.array([0, 2**33, 1]))}

    def run(b):
        own = {"seed": seed, **{name: key[b] for name, key in keys.items()}}
        drafts = fast.sample(q[b], **own)
        return np.stack([*array(drafts).T, *(array(x) for x in fast.select(p[b], q[b], drafts, **own))])

    exactly(run([1]), run([0, 1, 2])[:, [1]])
    exactly(run([2, 0, 1]), run([0, 1, 2])[:, [2, 0, 1]])


def one(fast, p, q, drafts, accept, token=0.0):
    rows = torch.tensor([p]), torch.tensor([q])
    return [x.item() for x in fast.select(*rows, torch.tensor([drafts]), accept=torch.tensor([accept]), token=torch.tensor([token]))]


def test_coins_on_an_edge_refuse(fast):
    """The hub is 0. D(1, 0) is 1/4 and serves 1/8; then 3/8 are unserved, 1/8 + 1/4, and the hub can take 3/16 of them."""
    p, q = [3 / 16, 1 / 8, 11 / 16], [0.5, 0.25, 0.25]
    assert one(fast, p, q, [1, 0], [0.5 - 2.0**-24, 0.0]) == [1, True]
    assert one(fast, p, q, [1, 0], [0.5, 0.5 - 2.0**-24])[1] and one(fast, p, q, [1, 0], [0.5, 0.5]) == [2, False]
    assert one(fast, [0.25, 0.75], [1.0, 0.0], [0, -1], [0.25, 0.0]) == [1, False]
    assert one(fast, [0.25, 0.75], [1.0, 0.0], [0, -1], [0.25 - 2.0**-24, LAST]) == [0, True]


@pytest.mark.parametrize("drafts", [[1, 2], [0, 0], [0, 3], [0, -1], [2**40, 0], [-1, -1], [0, 4]])
def test_drafts_that_are_no_pair_with_the_hub_are_refused(fast, drafts):
    p, q = [0.25, 0.5, 0.25, 0.0], [0.5, 0.25, 0.25, 0.0]
    assert one(fast, p, q, drafts, [0.0, 0.0], 0.25) == [1, False]


@pytest.mark.parametrize(
    ("p", "q"), [([np.nan, 0.5], [0.75, 0.25]), ([0.5, np.nan], [0.75, 0.25]), ([0.5, 0.5], [0.75, np.nan]), ([0.0, 0.0], [0.75, 0.25])]
)
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, p, q):
    assert one(fast, p, q, [1, 0], [0.0, 0.0]) == [-1, False] == one(fast, p, q, [1, 0], [LAST, LAST])
    assert fast.sample(torch.tensor([[0.5, np.nan], [0.0, 0.0]]), seed=1).tolist() == [[-1, -1]] * 2


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, q = torch.full((2, 4), 0.25), torch.tensor([[0.5, 0.25, 0.25, 0.0]] * 2)

    def a_round(p, q):
        drafts = fast.sample(q, seed=3)
        return drafts, *fast.select(p, q, drafts, seed=3)

    compiled = torch.compile(a_round, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(a_round(p, q), compiled(p, q), strict=True))
    assert p.unique().tolist() == [0.25] and q[0].tolist() == [0.5, 0.25, 0.25, 0.0]
    assert [tuple(x.shape) for x in a_round(p[:0], q[:0])] == [(0, 2), (0,), (0,)]
    assert fast.select(p, q, torch.zeros(2, 2, dtype=torch.int32), seed=1)[0].dtype == torch.int32


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(p=torch.ones(3)), "p must have shape"), (dict(q=torch.ones(2, 3)), "q must have shape"),
    (dict(q=torch.ones(2, 4).half()), "q must have the dtype"), (dict(drafts=torch.zeros(2, 3).long()), "drafts must have shape"),
    (dict(drafts=torch.zeros(2, 2)), "drafts must have dtype"), (dict(p=torch.ones(2, 0), q=torch.ones(2, 0)), "V at least 1"),
    (dict(seed=None), "or a seed"), (dict(seed=None, accept=torch.zeros(2, 1), token=torch.zeros(2)), "accept must have shape"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(p=torch.ones(2, 4), q=torch.ones(2, 4), drafts=torch.zeros(2, 2, dtype=torch.int64), seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.select(**right | arguments)
    with pytest.raises((ValueError, TypeError), match="q must have shape"):
        fast.sample(torch.ones(3), seed=1)
