"""On the same uniforms the walk is the spec's: always where arithmetic is exact, else wherever rounding could not matter."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.forests import (
    answers,
    by_fast,
    certain,
    drafted,
    emitted,
    geometric,
    likeliest,
    parents_of,
    requests_do_not_meet,
    rows_of,
    unneeded,
)
from twofold.conformance.speculative.test_chain_kernel import dyadic, layouts
from twofold.conformance.speculative.test_specinfer_kernel import Unnormalized, uniforms
from twofold.conformance.tape import exact
from twofold.spec.rng import Tape
from twofold.spec.speculative import rsd, specinfer


def problem(rng, B, N, V):
    """Multiples of 1/32 against powers of two that are tried from the greatest down: seven attempts, and nothing is rounded."""
    parents, q = parents_of(rng, B, N), geometric(rng, B, N, V)
    return dyadic(rng, B, N, V, bits=5), q, likeliest(q, parents), parents, rng.integers(1, N + 1, B)


def random_problem(rng, B, N, V, dtype="float32"):
    """Any rows; children drawn without replacement, -1 where none is left."""
    p, q = (rounded(rng.dirichlet(np.full(V, 0.5), (B, N)), dtype) for _ in range(2))
    parents = parents_of(rng, B, N)
    q = np.where(rng.random((B, N, 1)) < 0.3, p, q)
    return p, q, drafted(rng, q, parents, distinct=True), parents, rng.integers(1, N + 1, B)


@given(st.sampled_from([1, 2, 7]), st.sampled_from([1, 2, 5, 2049]), seeds, layouts)
@example(7, 5, 1, "contiguous")
@example(7, 5, 2, "contiguous")
@example(7, 6, 3, "contiguous")
@example(7, 6, 4, "contiguous")
@example(7, 4097, 4, "contiguous")
def test_trees_are_walked_as_by_the_spec_where_arithmetic_is_exact(fast, N, V, seed, layout):
    """Every uniform may meet an edge exactly; nodes below a missing draft are in no tree."""
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = problem(rng, 12, N, V)
    coins = uniforms(rng, 12, N)
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, layout=layout, lengths=lengths, **coins)
    expected = answers(rsd.verify_tree, p, q, tokens, parents, lengths, **coins)
    exactly(path, expected[0], "path")
    exactly(drawn, expected[1], "token")


@given(st.sampled_from([1, 7]), st.sampled_from([2, 5, 33]), seeds, dtypes())
@example(7, 5, 1, "float32")
@example(7, 5, 2, "float32")
def test_trees_are_walked_as_by_the_spec_wherever_rounding_could_not_matter(fast, N, V, seed, dtype):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = random_problem(rng, 6, N, V, dtype)
    accept, token = (rounded(rng.integers(0, 2**24, shape) / 2**24, "float32") for shape in ((6, N - 1), 6))
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, dtype, lengths=lengths, accept=accept, token=token)
    sure = [certain(p[b], q[b], tokens[b], parents[b], lengths[b], accept[b], token[b], True) for b in range(6)]
    expected = answers(rsd.verify_tree, p, q, tokens, parents, lengths, accept, token, Unnormalized)
    exactly(path[sure], expected[0][sure], "path")
    exactly(drawn[sure], expected[1][sure], "token")


def test_hardly_any_decision_is_left_to_rounding():
    rng = np.random.default_rng(1)
    p, q, tokens, parents, lengths = random_problem(rng, 300, 7, 33)
    accept, token = rng.random((300, 6)), rng.random(300)
    sure = [certain(p[b], q[b], tokens[b], parents[b], lengths[b], accept[b], token[b], True) for b in range(300)]
    assert np.mean(sure) > 0.98


@given(st.integers(0, 6), st.sampled_from([2, 6]), seeds)
def test_drafts_for_one_position_are_tried_as_by_the_spec(fast, k, V, seed):
    rng = np.random.default_rng(seed)
    p, q, lengths = dyadic(rng, 8, V, bits=3), geometric(rng, 8, V), rng.integers(0, k + 1, 8)
    drafts = np.pad(np.argsort(-q, axis=1, kind="stable")[:, :k], ((0, 0), (0, max(0, k - V))), constant_values=-1)
    coins = uniforms(rng, 8, k + 1)
    tensors = {name: tensor(x, "float32") for name, x in coins.items()} | {"lengths": tensor(lengths)}
    drawn, accepted = fast.select(tensor(p, "float32"), tensor(q, "float32"), tensor(drafts), **tensors)
    expected = []
    for b, n in enumerate(lengths.tolist()):
        tape = Tape(exact(coins["accept"][b]), exact(coins["token"][b : b + 1]))
        expected.append(rsd.select(exact(p[b]), exact(q[b]), [x for x in drafts[b, :n].tolist() if x >= 0 and q[b, x]], tape))
    exactly(drawn, [x for x, _ in expected], "token")
    exactly(accepted, [x for _, x in expected], "accepted")


@given(st.integers(2, 7), st.sampled_from([3, 2049]), seeds)
def test_what_is_not_needed_is_not_read(fast, N, V, seed):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = problem(rng, 3, N, V)
    coins = uniforms(rng, 3, N)
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, lengths=lengths, **coins)
    again = by_fast(fast.verify_tree, *unneeded(p, q, tokens, parents, lengths, path), lengths=lengths, **coins)
    exactly(again[0], path, "path")
    exactly(again[1], drawn, "token")


@given(st.integers(1, 7), st.sampled_from([2, 2500]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, N, V, seed):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, _ = random_problem(rng, 3, N, V)
    requests_do_not_meet(fast.verify_tree, p, q, tokens, parents, seed=seed)


def test_seeded_rounds_follow_the_exact_law(fast):
    """The whole round is seeded: a race drafts each level, the walk verifies."""
    B = 20_000 if fast.side == "torch" else 60  # the interpreter takes a millisecond per program
    p, q = rows_of(TARGET), rows_of(DRAFT)
    draw = lambda last, k, node: fast.sample(tensor(q[1 + last], "float32"), k, seed=7, node=tensor(np.full(B, node))).cpu().numpy()
    first = draw(np.full(B, -1), 2, 0)
    tokens = np.concatenate([np.full((B, 1), -1), first, draw(first[:, 0], 1, 1), draw(first[:, 1], 1, 2)], 1)
    shape = rounds.branching(2, 1)
    texts = emitted(tokens, *by_fast(fast.verify_tree, p[1 + tokens], q[1 + tokens], tokens, np.tile(shape, (B, 1)), seed=7))
    consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, rsd.verify_tree)))
    if B >= 20_000:  # the same samples refute the law of independent drafts: the test has power
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, specinfer.verify_tree)))
