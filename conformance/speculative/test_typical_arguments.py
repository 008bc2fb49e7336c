"""What a call may not do and need not read, what it returns where the spec would raise, and that compilers see through it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.conformance.inputs import seeds, tensor
from twofold.conformance.speculative.test_typical import DELTA, EPS, by_fast, forest

HALF = torch.full((2, 3, 4), 0.25, device=target.device())
CHAIN = torch.tensor([[-1, 0, 1]] * 2, device=target.device())


@given(seeds, st.integers(1, 9), st.sampled_from([3, 2049]))
def test_what_is_not_needed_is_not_read(fast, seed, N, V):
    p, tokens, parents, lengths = forest(seed, 3, N, V)
    before = by_fast(fast, p, tokens, parents, EPS, DELTA, lengths=tensor(lengths))
    tokens[:, 0], parents[:, 0] = 10**15, -(10**15)
    for b, length in enumerate(lengths):
        p[b, length:], tokens[b, length:], parents[b, length:] = np.nan, 0, 0
    again = by_fast(fast, p, tokens, parents, EPS, DELTA, lengths=tensor(lengths))
    exactly(again[0], before[0], "path")
    exactly(again[1], before[1], "token")


@given(seeds, st.sampled_from([1, 6]), st.sampled_from([3, 2049]))
def test_a_request_alone_is_the_request_in_a_batch(fast, seed, N, V):
    p, tokens, parents, _ = forest(seed, 3, N, V)
    path, token = by_fast(fast, p, tokens, parents, EPS, DELTA)
    for b in range(3):
        alone = by_fast(fast, p[b : b + 1], tokens[b : b + 1], parents[b : b + 1], EPS, DELTA)
        exactly(alone[0][0], path[b], "path")
        exactly(alone[1][0], token[b], "token")


@pytest.mark.parametrize("node", [0, 1, 2])
def test_a_nan_in_the_row_of_an_accepted_node_gives_minus_one(fast, node):
    """Node 2 is a leaf beside node 1, and shares the path's length: its row counts too."""
    p = HALF[:1].clone()
    p[0, node, 3] = torch.nan
    _, token = fast.verify_tree(p, torch.tensor([[-1, 0, 1]]), torch.tensor([[-1, 0, 0]]), EPS, DELTA)
    assert token.item() == -1


def test_a_nan_in_the_row_of_a_refused_node_does_not_matter(fast):
    p = HALF[:1].clone()
    p[0, 0] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    p[0, 2, 3] = torch.nan
    path, token = fast.verify_tree(p, torch.tensor([[-1, 0, 3]]), torch.tensor([[-1, 0, 0]]), EPS, DELTA)
    assert (path.tolist(), token.tolist()) == ([[1, -1]], [0])


@pytest.mark.parametrize("token", [-1, 4, 2**40])
def test_a_token_outside_the_vocabulary_is_in_no_tree(fast, token):
    path, _ = fast.verify_tree(HALF[:1], torch.tensor([[-1, token, 0]]), CHAIN[:1], 0.0, 0.0)
    assert path.tolist() == [[-1, -1]]


@pytest.mark.parametrize("parent", [-1, 2, 5])
def test_a_node_without_an_earlier_parent_is_in_no_tree(fast, parent):
    path, _ = fast.verify_tree(HALF[:1], torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[-1, 0, parent]]), 0.0, 0.0)
    assert path.tolist() == [[1, -1]]


def test_a_probability_equal_to_the_threshold_does_not_pass(fast):
    p = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    accepted = lambda eps: fast.verify_tree(p, torch.tensor([[-1, 0]]), CHAIN[:1, :2], eps, 10.0)[0].item()
    assert accepted(0.25) == -1 and accepted(0.25 - 2.0**-25) == 1


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    assert fast.verify_tree(HALF, tokens, CHAIN, EPS, DELTA, lengths=torch.tensor([-3, 9]))[0].tolist() == [[-1, -1], [1, 2]]
    path, token = fast.verify_tree(HALF[:0], tokens[:0], CHAIN[:0], EPS, DELTA)
    assert path.shape == (0, 2) and token.shape == (0,) and fast.threshold(HALF[:0, 0], EPS, DELTA).shape == (0,)


with torch.device(target.device()):
    WRONG = {
        "p must have shape": dict(p=HALF[0]),
        "p must have dtype": dict(p=HALF.double()),
        "p must be contiguous along its last axis": dict(p=torch.zeros(2, 4, 3).transpose(1, 2)),
        "p must have V at least 1": dict(p=HALF[:, :, :0]),
        "p must have room for the root": dict(p=HALF[:, :0], tokens=CHAIN[:, :0], parents=CHAIN[:, :0]),
        "tokens must have shape": dict(tokens=CHAIN[:, :2]),
        "tokens must have dtype": dict(tokens=CHAIN.float()),
        "parents must have shape": dict(parents=CHAIN[:1]),
        "parents must have dtype": dict(parents=CHAIN.float()),
        "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
        "lengths must have dtype": dict(lengths=torch.zeros(2)),
        "eps must be at least 0": dict(eps=-0.1),
        "delta must be at least 0": dict(delta=float("nan")),
    }


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(p=HALF, tokens=CHAIN.clamp(min=0), parents=CHAIN, eps=EPS, delta=DELTA)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify_tree(**right | WRONG[message])


@pytest.mark.parametrize("message", ["p must have shape", "p must have dtype", "p must have V", "eps must", "delta must"])
def test_wrong_arguments_of_a_threshold_are_named(fast, message):
    wrong = {"shape": dict(p=HALF), "dtype": dict(p=HALF[0].double()), "V": dict(p=HALF[0, :, :0]), "must": {message.split()[0]: -1.0}}
    with pytest.raises((ValueError, TypeError), match=message):
        fast.threshold(**dict(p=HALF[0], eps=EPS, delta=DELTA) | wrong[message.split()[-1]])


def test_compilers_see_through_and_inputs_stay_as_they_were(fast):
    p, tokens, lengths = torch.rand(2, 3, 4), torch.tensor([[9, 1, 2], [9, 3, 0]], dtype=torch.int32), torch.tensor([2, 3])
    before = p.clone(), tokens.clone(), CHAIN.clone(), lengths.clone()
    call = lambda p, tokens, parents, lengths: fast.verify_tree(p, tokens, parents, 0.01, 0.3, lengths=lengths)
    found = call(p, tokens, CHAIN, lengths)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(p, tokens, CHAIN, lengths)
    assert all(torch.equal(a, b) and a.dtype == torch.int32 for a, b in zip(found, compiled, strict=True))
    assert all(torch.equal(a, b) for a, b in zip((p, tokens, CHAIN, lengths), before, strict=True))
