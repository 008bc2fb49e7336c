"""Traversal verification: its law, what it equals and what it beats, and that the fast side decides as the spec does."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds
from twofold.conformance.law import DRAFT, TARGET, law, models
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.forests import answers, by_fast, drafted, emitted, on_the_pair, parents_of, requests_do_not_meet
from twofold.conformance.tape import Certified
from twofold.fast.speculative import traversal as fast_traversal
from twofold.spec.rng import Tape
from twofold.spec.speculative import block, rsd, specinfer, traversal

F = Fraction
LAST = 1 - 2.0**-24


def independent(p, q, tokens, parents, rng):
    return traversal.verify_tree(p, q, tokens, parents, rng, replace=True)


def tree(target, drafter, parents, replace):
    verify, sample = (independent, rounds.independent) if replace else (traversal.verify_tree, rsd.sample)
    return rounds.tree(target, drafter, parents, verify, sample)


@given(rounds.shapes, models(2, 6), models(2, 6), st.booleans())
def test_a_tree_of_any_shape_has_the_targets_law(parents, target, drafter, replace):
    rounds.lossless(tree(target, drafter, parents, replace), target, 6)


@given(models(3, 3), models(3, 3), st.booleans())
def test_a_tree_of_three_tokens_has_the_targets_law(target, drafter, replace):
    rounds.lossless(tree(target, drafter, rounds.branching(2, 1), replace), target, 3)


@given(models(3, 4), models(3, 4), st.integers(0, 3), st.booleans())
def test_on_a_chain_it_is_block_verification(target, drafter, gamma, replace):
    chain = tree(target, drafter, rounds.branching(*[1] * gamma), replace)
    assert law(chain) == law(rounds.chain(target, drafter, gamma, block.verify))


@given(models(3, 2), models(3, 2), st.integers(0, 3), st.booleans())
def test_at_one_position_it_is_recursive_rejection(target, drafter, k, replace):
    verify, sample = (specinfer.verify_tree, rounds.independent) if replace else (rsd.verify_tree, rsd.sample)
    recursive = rounds.tree(target, drafter, rounds.branching(k), verify, sample)
    assert law(tree(target, drafter, rounds.branching(k), replace)) == law(recursive)


def test_siblings_are_judged_against_what_was_left_of_their_law():
    """The reference pair is blind to it; this one is not."""
    p, q = (np.array([F(w, 6) for w in row], dtype=object) for row in ((0, 2, 4), (4, 1, 1)))
    rounds.lossless(tree(lambda context: p, lambda context: q, rounds.branching(2), False), lambda context: p, 1)


@given(models(2, 4), models(2, 4), st.sampled_from([(2, 1), (1, 2), (2, 2), (1, 1, 1)]), st.booleans())
def test_it_keeps_no_less_than_from_the_root_down(target, drafter, widths, replace):
    verify, sample = (specinfer.verify_tree, rounds.independent) if replace else (rsd.verify_tree, rsd.sample)
    shape = rounds.branching(*widths)
    assert rounds.kept(tree(target, drafter, shape, replace)) >= rounds.kept(rounds.tree(target, drafter, shape, verify, sample))


@pytest.mark.parametrize(("widths", "replace", "kept"), [
    ((2, 1), False, F(17, 12)), ((2, 2), False, F(85, 54)), ((2, 1), True, F(133, 108)), ((2, 2), True, F(215, 162)),
    ((1, 1), False, F(41, 36)), ((), False, F(0)),
])  # fmt: skip
def test_tokens_kept_on_the_reference_pair(widths, replace, kept):
    assert rounds.kept(tree(TARGET, DRAFT, rounds.branching(*widths), replace)) == kept


@pytest.mark.parametrize(("tokens", "message"), [([-1, 2], "was not drawn from it"), ([-1, 0, 0], "parents must be")])
def test_what_is_no_drafted_tree_is_an_error(tokens, message):
    with pytest.raises(ValueError, match=message):
        traversal.verify_tree(np.full((2, 3), 1 / 3), np.array([[0.5, 0.5, 0.0]] * 2), tokens, [-1, 0], Tape([0.5], [0.5]))


def test_a_sibling_drawn_twice_is_an_error_without_replacement_only():
    p, q = np.array([[0.25, 0.75]] * 3), np.array([[0.5, 0.5]] * 3)
    arguments = p, q, [-1, 0, 0], [-1, 0, 0]
    with pytest.raises(ValueError, match="was not drawn from it"):
        traversal.verify_tree(*arguments, Tape([0.9, 0.9], [0.5]))
    assert traversal.verify_tree(*arguments, Tape([0.9, 0.9], [0.5]), replace=True) == ([], 1)


# The fast side


def problem(rng, B, N, V, replace, dtype="float32"):
    rows = lambda: rounded(rng.multinomial(256, rng.dirichlet(np.full(V, 0.5)), (B, N)) / 256, dtype)
    p, q, parents = rows(), rows(), parents_of(rng, B, N)
    q = np.where(rng.random((B, N, 1)) < 0.3, p, q)
    return p, q, drafted(rng, q, parents, distinct=not replace), parents, rng.integers(1, N + 1, B)


@given(st.sampled_from([1, 2, 7]), st.sampled_from([1, 2, 5, 33]), seeds, st.booleans(), dtypes())
@example(7, 3, 1, True, "float32")
@example(7, 3, 1, False, "float32")
@example(7, 5, 2, False, "float32")
@example(7, 5, 3, False, "float32")
def test_trees_are_judged_as_by_the_spec_wherever_rounding_could_not_matter(fast, N, V, seed, replace, dtype):
    """Rows in 256ths are exact in every dtype and weights are float64: the margins of float32 are more than enough."""
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = problem(rng, 40, N, V, replace, dtype)
    accept, token = rng.integers(0, 2**24, (40, N - 1)) / 2**24, rng.integers(0, 2**24, 40) / 2**24
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, dtype, replace=replace, lengths=lengths, accept=accept, token=token)
    verify = partial(traversal.verify_tree, replace=replace)
    expected = answers(verify, p, q, tokens, parents, lengths, accept, token, Certified)
    exactly(path[expected[2]], expected[0][expected[2]], "path")
    exactly(drawn[expected[2]], expected[1][expected[2]], "token")


@given(st.integers(1, 7), st.sampled_from([2, 300]), seeds, st.booleans())
def test_a_request_alone_is_the_request_in_a_batch(fast, N, V, seed, replace):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, _ = problem(rng, 3, N, V, replace)
    requests_do_not_meet(fast.verify_tree, p, q, tokens, parents, seed=seed, replace=replace)


@given(st.integers(2, 7), seeds, st.booleans())
def test_what_lies_past_a_tree_or_was_never_drafted_from_is_not_read(fast, N, seed, replace):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = problem(rng, 4, N, 5, replace)
    coins = {"accept": rng.random((4, N - 1)), "token": rng.random(4)}
    before = by_fast(fast.verify_tree, p, q, tokens, parents, replace=replace, lengths=lengths, **coins)
    for b, n in enumerate(lengths):
        p[b, n:], q[b, n:], tokens[b, n:], parents[b, n:] = np.nan, np.nan, 10**15, 0
        q[b, [leaf for leaf in range(n) if leaf not in parents[b, :n]]] = np.nan
        tokens[b, 0], parents[b, 0] = 10**15, -(10**15)
    after = by_fast(fast.verify_tree, p, q, tokens, parents, replace=replace, lengths=lengths, **coins)
    exactly(after[0], before[0], "path")
    exactly(after[1], before[1], "token")


def test_seeded_outputs_follow_the_exact_law(fast):
    shape = rounds.branching(2, 1)
    p, q, tokens, parents = on_the_pair(20_000, shape)
    texts = emitted(tokens, *by_fast(fast.verify_tree, p, q, tokens, parents, replace=True, seed=2024))
    consistent(texts, law(tree(TARGET, DRAFT, shape, True)))
    with pytest.raises(AssertionError, match="do not follow the law"):
        consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, specinfer.verify_tree)))


def one(fast, p, q, drafts, accept, token=0.5, replace=False):
    rows = lambda row: torch.tensor(row, dtype=torch.float32).expand(1, len(drafts) + 1, len(row))
    uniforms = {"accept": torch.tensor([accept], dtype=torch.float32), "token": torch.tensor([token])}
    parents = torch.tensor([[-1] + [0] * len(drafts)])
    path, drawn = fast.verify_tree(rows(p), rows(q), torch.tensor([[-1, *drafts]]), parents, replace=replace, **uniforms)
    return path[0, 0].item(), drawn.item()


def test_a_coin_on_an_edge_refuses(fast):
    assert one(fast, [0.25, 0.75], [0.5, 0.5], [0], [0.5]) == (-1, 1)
    assert one(fast, [0.25, 0.75], [0.5, 0.5], [0], [0.5 - 2.0**-24])[0] == 1
    assert one(fast, [0.0, 1.0], [0.5, 0.5], [0], [0.0]) == (-1, 1)


@pytest.mark.parametrize("strange", [-1, 3, 2**40, 2, 0])
def test_a_child_that_q_cannot_have_drawn_is_as_if_it_were_not_there(fast, strange):
    """It takes no coin: the second one decides about token 1, which has weight 1/2."""
    assert one(fast, [0.25, 0.5, 0.25], [0.75, 0.25, 0.0], [0, strange, 1], [LAST, 0.25, LAST])[0] == 3


@pytest.mark.parametrize(
    ("p", "q"), [([np.nan, 0.5], [0.5, 0.5]), ([0.5, np.nan], [0.5, 0.5]), ([0.5, 0.5], [0.5, np.nan]), ([0.0, 0.0], [0.5, 0.5])]
)
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, p, q):
    assert one(fast, p, q, [1], [LAST])[1] == -1


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, tokens, parents = torch.full((2, 3, 4), 0.25), torch.tensor([[-1, 0, 1], [-1, 2, 2]]), torch.tensor([[-1, 0, 1], [-1, 0, 0]])
    torch.library.opcheck(fast_traversal._traverse, (p, p, tokens, parents, torch.tensor([3, 2]), p[:, 0, :2] + 0, p[:, 0, :1] + 0, False))
    call = lambda p, tokens, parents: fast.verify_tree(p, p, tokens, parents, seed=3)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(call(p, tokens, parents), compiled(p, tokens, parents), strict=True))
    assert p.unique().tolist() == [0.25] and tokens.tolist() == [[-1, 0, 1], [-1, 2, 2]]
    assert [tuple(x.shape) for x in fast.verify_tree(p[:0], p[:0], tokens[:0], parents[:0], seed=1)] == [(0, 2), (0,)]
    assert array(fast.verify_tree(p, p, tokens, parents, lengths=torch.tensor([-3, 1]), seed=1)[0]).max() == -1


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(p=torch.ones(2, 3)), "p must have shape"), (dict(q=torch.ones(2, 2, 4)), "q must have shape"),
    (dict(tokens=torch.zeros(2, 3)), "tokens must have dtype"), (dict(parents=torch.zeros(2, 3).int()), "parents must have the dtype"),
    (dict(lengths=torch.zeros(3, dtype=torch.int64)), "lengths must have shape"), (dict(seed=None), "or a seed"),
    (dict(seed=None, accept=torch.zeros(2, 3), token=torch.zeros(2)), "accept must have shape"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(p=torch.ones(2, 3, 4), q=torch.ones(2, 3, 4), tokens=torch.zeros(2, 3, dtype=torch.int64), seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify_tree(**right | {"parents": torch.zeros(2, 3, dtype=torch.int64)} | arguments)
