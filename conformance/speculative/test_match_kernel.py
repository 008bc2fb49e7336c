"""On the same uniforms the walk is the spec's: always where arithmetic is exact, else wherever rounding could not matter."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.forests import answers, by_fast, drafted, emitted, on_the_pair, parents_of, requests_do_not_meet
from twofold.conformance.speculative.test_chain_kernel import dyadic, layouts
from twofold.conformance.tape import Certified, exact
from twofold.spec.rng import Tape
from twofold.spec.speculative import match


def problem(rng, B, N, V, rows):
    """The target's rows and trees that often guess what it will draw; ragged."""
    p, parents = rows(rng, B, N, V), parents_of(rng, B, N)
    return p, drafted(rng, p, parents), parents, rng.integers(1, N + 1, B)


@given(st.sampled_from([1, 2, 7]), st.sampled_from([1, 2, 3, 17, 2049]), seeds, layouts, st.sampled_from([2, 8]))
@example(7, 3, 1, "contiguous", 8)
@example(7, 4097, 2, "contiguous", 8)
def test_trees_are_walked_as_by_the_spec_where_arithmetic_is_exact(fast, N, V, seed, layout, bits):
    """With two bits, every other uniform meets an edge exactly."""
    rng = np.random.default_rng(seed)
    p, tokens, parents, lengths = problem(rng, 3, N, V, lambda rng, *shape: dyadic(rng, *shape, bits=bits))
    token = rng.integers(0, 2**bits, (3, N)) / 2**bits
    path, drawn = by_fast(fast.verify_tree, p, None, tokens, parents, layout=layout, lengths=lengths, token=token)
    expected = answers(match.verify_tree, p, None, tokens, parents, lengths, np.zeros((3, 0)), token)
    exactly(path, expected[0], "path")
    exactly(drawn, expected[1], "token")


@given(st.sampled_from([1, 7]), st.sampled_from([2, 5, 33]), seeds, dtypes())
def test_trees_are_walked_as_by_the_spec_wherever_rounding_could_not_matter(fast, N, V, seed, dtype):
    rng = np.random.default_rng(seed)
    softmax = lambda rng, *shape: rounded(rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]), dtype)
    p, tokens, parents, lengths = problem(rng, 6, N, V, softmax)
    token = rounded(rng.integers(0, 2**24, (6, N)) / 2**24, "float32")
    path, drawn = by_fast(fast.verify_tree, p, None, tokens, parents, dtype, lengths=lengths, token=token)
    expected = answers(match.verify_tree, p, None, tokens, parents, lengths, np.zeros((6, 0)), token, Certified)
    exactly(path[expected[2]], expected[0][expected[2]], "path")
    exactly(drawn[expected[2]], expected[1][expected[2]], "token")


@given(st.integers(0, 4), st.sampled_from([2, 17]), seeds)
def test_chains_are_verified_as_by_the_spec(fast, gamma, V, seed):
    rng = np.random.default_rng(seed)
    p, parents = dyadic(rng, 4, gamma + 1, V), np.tile(np.arange(-1, gamma), (4, 1))
    draft, lengths, token = drafted(rng, p, parents)[:, 1:], rng.integers(0, gamma + 1, 4), rng.integers(0, 256, (4, gamma + 1)) / 256
    kept, drawn = fast.verify(tensor(p, "float32"), tensor(draft), lengths=tensor(lengths), token=tensor(token, "float32"))
    expected = [
        match.verify(exact(p[b, : n + 1]), draft[b, :n].tolist(), Tape(token=exact(token[b]))) for b, n in enumerate(lengths.tolist())
    ]
    exactly(kept, [n for n, _ in expected], "kept")
    exactly(drawn, [x for _, x in expected], "token")


@given(st.integers(0, 4), st.sampled_from([4, 17, 2500]), seeds)
def test_drafts_are_tried_one_by_one_as_by_the_spec(fast, k, V, seed):
    rng = np.random.default_rng(seed)
    p, lengths = dyadic(rng, 4, V, bits=6), rng.integers(0, k + 1, 4)
    drafts = np.array([np.argsort(-row * rng.random(V))[:k] for row in p], dtype=np.int64).reshape(4, k)
    accept, token = rng.integers(0, 16, (4, k)) / 16, rng.integers(0, 16, 4) / 16
    given_ = {"lengths": tensor(lengths), "accept": tensor(accept, "float32"), "token": tensor(token, "float32")}
    drawn, accepted = fast.sequential(tensor(p, "float32"), tensor(drafts), **given_)
    expected = [
        match.sequential(exact(p[b]), drafts[b, :n].tolist(), Tape(exact(accept[b]), exact(token[b : b + 1])))
        for b, n in enumerate(lengths.tolist())
    ]
    exactly(drawn, [x for x, _ in expected], "token")
    exactly(accepted, [x for _, x in expected], "accepted")


def test_a_large_vocabulary(fast):
    rng = np.random.default_rng(3)
    p, tokens, parents, lengths = problem(rng, 1, 4, 131_072, lambda rng, *shape: dyadic(rng, *shape, nonzero=200))
    token = rng.integers(0, 256, (1, 4)) / 256
    path, drawn = by_fast(fast.verify_tree, p, None, tokens, parents, token=token)
    expected = answers(match.verify_tree, p, None, tokens, parents, [4], np.zeros((1, 0)), token)
    exactly(path, expected[0], "path")
    exactly(drawn, expected[1], "token")


@given(st.integers(2, 7), st.sampled_from([3, 2049]), seeds)
def test_what_is_not_visited_is_not_read(fast, N, V, seed):
    rng = np.random.default_rng(seed)
    p, tokens, parents, lengths = problem(rng, 3, N, V, dyadic)
    token = rng.random((3, N))
    path, drawn = by_fast(fast.verify_tree, p, None, tokens, parents, lengths=lengths, token=token)
    for b in range(3):
        depth = (path[b] >= 0).sum()
        p[b, [n for n in range(N) if n not in (0, *path[b, :depth])]] = np.nan
        token[b, depth + 1 :] = np.nan
        tokens[b, lengths[b] :], parents[b, lengths[b] :] = 10**15, 0
        tokens[b, 0], parents[b, 0] = 10**15, -(10**15)
    again = by_fast(fast.verify_tree, p, None, tokens, parents, lengths=lengths, token=token)
    exactly(again[0], path, "path")
    exactly(again[1], drawn, "token")


@given(st.integers(1, 7), st.sampled_from([2, 300, 2500]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, N, V, seed):
    rng = np.random.default_rng(seed)
    p, tokens, parents, _ = problem(rng, 3, N, V, lambda rng, *shape: rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]))
    requests_do_not_meet(fast.verify_tree, p, None, tokens, parents, seed=seed)


def test_seeded_outputs_follow_the_exact_law(fast):
    B = 20_000 if fast.side == "torch" else 100  # the interpreter takes a millisecond per program
    shape = rounds.branching(2, 1)
    p, _, tokens, parents = on_the_pair(B, shape)
    texts = emitted(tokens, *by_fast(fast.verify_tree, p, None, tokens, parents, seed=2024))
    consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, match.verify_tree)))
    if B >= 20_000:  # the same samples refute the law of trees drafted without replacement: the test has power
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(texts, law(rounds.tree(TARGET, DRAFT, shape, match.verify_tree, rounds.distinct)))


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(fast):
    p, parents = torch.full((8, 3, 50), 0.02), torch.tensor([[-1, 0, 0]], dtype=torch.int32).expand(8, 3)
    run = lambda seed: fast.verify_tree(p, torch.zeros_like(parents), parents, seed=seed)[1]
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert run(1).dtype == torch.int32
