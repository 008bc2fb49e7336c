"""On the same uniforms the walk is the spec's: always where arithmetic is exact, else wherever rounding could not matter."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.forests import (
    answers,
    by_fast,
    certain,
    drafted,
    emitted,
    on_the_pair,
    parents_of,
    requests_do_not_meet,
    unneeded,
)
from twofold.conformance.speculative.test_chain_kernel import dyadic, layouts
from twofold.conformance.tape import exact
from twofold.fast.speculative import chain as fast_chain
from twofold.spec.rng import Tape
from twofold.spec.speculative import specinfer


def problem(rng, B, N, V, rows):
    """p, q, trees that q could have drawn, their own lengths; often p and q are the same."""
    p, q, parents = rows(rng, B, N, V), rows(rng, B, N, V), parents_of(rng, B, N)
    q = np.where(rng.random((B, N, 1)) < 0.3, p, q)
    return p, q, drafted(rng, q, parents), parents, rng.integers(1, N + 1, B)


def eighths(rng, *shape):
    """Seven attempts on these multiply eight numbers of three bits: 24 in all, and nothing is rounded."""
    return dyadic(rng, *shape, bits=3)


def uniforms(rng, B, N):
    return {"accept": rng.integers(0, 8, (B, N - 1)) / 8, "token": rng.integers(0, 8, B) / 8}


@given(st.sampled_from([1, 2, 7]), st.sampled_from([1, 2, 5, 2049]), seeds, layouts)
@example(7, 5, 1, "contiguous")
@example(7, 5, 2, "contiguous")
@example(7, 3, 3, "contiguous")
@example(7, 3, 4, "contiguous")
@example(7, 4097, 3, "contiguous")
def test_trees_are_walked_as_by_the_spec_where_arithmetic_is_exact(fast, N, V, seed, layout):
    """Every uniform may meet an edge exactly."""
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = problem(rng, 12, N, V, eighths)
    coins = uniforms(rng, 12, N)
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, layout=layout, lengths=lengths, **coins)
    expected = answers(specinfer.verify_tree, p, q, tokens, parents, lengths, **coins)
    exactly(path, expected[0], "path")
    exactly(drawn, expected[1], "token")


@given(st.sampled_from([1, 7]), st.sampled_from([2, 5, 33]), seeds, dtypes())
def test_trees_are_walked_as_by_the_spec_wherever_rounding_could_not_matter(fast, N, V, seed, dtype):
    rng = np.random.default_rng(seed)
    softmax = lambda rng, *shape: rounded(rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]), dtype)
    p, q, tokens, parents, lengths = problem(rng, 6, N, V, softmax)
    accept, token = (rounded(rng.integers(0, 2**24, shape) / 2**24, "float32") for shape in ((6, N - 1), 6))
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, dtype, lengths=lengths, accept=accept, token=token)
    sure = [certain(p[b], q[b], tokens[b], parents[b], lengths[b], accept[b], token[b], False) for b in range(6)]
    expected = answers(specinfer.verify_tree, p, q, tokens, parents, lengths, accept, token, Unnormalized)
    exactly(path[sure], expected[0][sure], "path")
    exactly(drawn[sure], expected[1][sure], "token")


class Unnormalized(Tape):
    """A tape for rows that sum to 1 up to rounding only: what is drawn from is divided by its own sum."""

    def categorical(self, probabilities):
        return super().categorical(probabilities / probabilities.sum())


def test_hardly_any_decision_is_left_to_rounding():
    rng = np.random.default_rng(1)
    softmax = lambda rng, *shape: rounded(rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]), "float32")
    p, q, tokens, parents, lengths = problem(rng, 300, 7, 33, softmax)
    accept, token = rng.random((300, 6)), rng.random(300)
    sure = [certain(p[b], q[b], tokens[b], parents[b], lengths[b], accept[b], token[b], False) for b in range(300)]
    assert np.mean(sure) > 0.98


@given(st.integers(0, 4), st.sampled_from([2, 5]), seeds)
def test_drafts_with_laws_of_their_own_are_tried_as_by_the_spec(fast, k, V, seed):
    rng = np.random.default_rng(seed)
    p, qs, lengths = dyadic(rng, 6, V, bits=3), dyadic(rng, 6, k, V, bits=3), rng.integers(0, k + 1, 6)
    drafts = np.array([[rng.choice(V, p=row) for row in rows] for rows in qs], dtype=np.int64).reshape(6, k)
    coins = uniforms(rng, 6, k + 1)
    tensors = {name: tensor(x, "float32") for name, x in coins.items()} | {"lengths": tensor(lengths)}
    drawn, accepted = fast.select(tensor(p, "float32"), tensor(qs, "float32"), tensor(drafts), **tensors)
    tapes = [Tape(exact(coins["accept"][b]), exact(coins["token"][b : b + 1])) for b in range(6)]
    expected = [specinfer.select(exact(p[b]), exact(qs[b, :n]), drafts[b, :n].tolist(), tapes[b]) for b, n in enumerate(lengths.tolist())]
    exactly(drawn, [x for x, _ in expected], "token")
    exactly(accepted, [x for _, x in expected], "accepted")


@given(st.integers(0, 3), st.sampled_from([3, 2500]), seeds)
def test_a_tree_of_width_one_is_a_chain_bit_for_bit(fast, gamma, V, seed):
    rng = np.random.default_rng(seed)
    softmax = lambda rng, *shape: rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1])
    p, q, parents = softmax(rng, 3, gamma + 1, V), softmax(rng, 3, gamma + 1, V), np.tile(np.arange(-1, gamma), (3, 1))
    tokens = drafted(rng, q, parents)
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, seed=seed)
    rows = (tensor(p, "float32"), tensor(q[:, :gamma], "float32")) if gamma else (tensor(p, "float32"), tensor(q, "float32")[:, :0])
    kept, expected = fast_chain.verify(*rows, tensor(tokens[:, 1:].copy()), seed=seed)
    exactly((path >= 0).sum(1), kept, "kept")
    exactly(drawn, expected, "token")


@given(st.integers(2, 7), st.sampled_from([3, 2049]), seeds)
def test_what_is_not_needed_is_not_read(fast, N, V, seed):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, lengths = problem(rng, 3, N, V, eighths)
    coins = uniforms(rng, 3, N)
    path, drawn = by_fast(fast.verify_tree, p, q, tokens, parents, lengths=lengths, **coins)
    again = by_fast(fast.verify_tree, *unneeded(p, q, tokens, parents, lengths, path), lengths=lengths, **coins)
    exactly(again[0], path, "path")
    exactly(again[1], drawn, "token")


@given(st.integers(1, 7), st.sampled_from([2, 2500]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, N, V, seed):
    rng = np.random.default_rng(seed)
    p, q, tokens, parents, _ = problem(rng, 3, N, V, lambda rng, *shape: rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]))
    requests_do_not_meet(fast.verify_tree, p, q, tokens, parents, seed=seed)


def test_seeded_outputs_follow_the_exact_law(fast):
    B = 20_000 if fast.side == "torch" else 100  # the interpreter takes a millisecond per program
    shape = rounds.branching(2, 1)
    p, q, tokens, parents = on_the_pair(B, shape)
    texts = emitted(tokens, *by_fast(fast.verify_tree, p, q, tokens, parents, seed=2024))
    consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, specinfer.verify_tree)))
    if B >= 20_000:  # the same samples refute the law of a tree without replacement: the test has power
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, specinfer.verify_tree, rounds.distinct)))


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(fast):
    p, parents = torch.full((8, 3, 50), 0.02), torch.tensor([[-1, 0, 0]], dtype=torch.int32).expand(8, 3)
    run = lambda seed: array(fast.verify_tree(p, p, torch.zeros_like(parents), parents, seed=seed)[1])
    exactly(run(1), run(1))
    assert (run(1) != run(2)).any() and run(1).dtype == np.int32
