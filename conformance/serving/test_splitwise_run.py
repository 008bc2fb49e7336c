"""Splitwise for real: two processes, a cache that moves between them layer by layer, and what happens when it does not."""

import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twofold.conformance.attention.ranks import Ranks
from twofold.conformance.compare import exactly
from twofold.conformance.serving import pairs
from twofold.conformance.serving.whole_numbers import exact, written_alone
from twofold.spec.serving import splitwise

few = settings(max_examples=max(settings().max_examples // 10, 2))  # processes wait for each other
prompts = st.lists(st.integers(0, 96), min_size=1, max_size=12)
work = st.lists(st.tuples(prompts, st.integers(1, 3)), max_size=4)


@pytest.fixture(scope="module")
def ranks(fast):
    with Ranks(fast.chapter, fast.side) as ranks:
        yield ranks


@given(prompts, st.integers(1, 5), st.integers(1, 4))
def test_a_pair_of_machines_writes_what_one_would(prompt, output, layers):
    """The token machine knows the caches and one token; the text read again for every token has no cache at all."""
    model = exact(layers)
    assert splitwise.run(model, prompt, output) == written_alone(model, prompt, output)


@few
@given(work, st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
@example([([5, 3, 96, 0], 5), ([1], 1), (list(range(19)), 2), ([7], 3), ([0], 2)], 2, 4, 0)
@example([], 1, 2, 0)
def test_real_processes_write_what_one_would(ranks, requests, layers, B, spare):
    """Prompts of any lengths, more of them than the token machine has room for at once: those for whom there is none wait."""
    longest = max([-(-(len(prompt) + output - 1) // B) for prompt, output in requests], default=1)
    texts, outputs = [prompt for prompt, _ in requests], [output for _, output in requests]
    results = ranks.run(pairs.serve, [(texts, outputs, layers, 1 + longest + spare, B)] * 2)
    model = exact(layers)
    expected = [splitwise.run(model, prompt, output) for prompt, output in requests]
    assert results == [(expected, True), (expected, True)]


@pytest.mark.parametrize("layers", [2, 4])
def test_the_first_layer_has_arrived_before_the_last_one_is_computed(ranks, layers):
    """The prompt machine waits for that: a transfer that begins at the end would keep it waiting for ever. Until all layers are there the
    cache has no sequence of the request's name."""
    (sender, tokens), (receiver, same) = ranks.run(pairs.overlap, [(layers,)] * 2)
    assert sender == [*(("sent", 0, i) for i in range(layers - 1)), "heard", ("sent", 0, layers - 1), ("token", 0, 0)]
    assert receiver == [*(("arrived", 0, i, False) for i in range(layers)), ("whole", 0, layers), ("token", 0, 1), ("token", 0, 2)]
    assert tokens == same == [splitwise.run(exact(layers), list(range(5)), 3)]


def test_who_arrives_while_others_are_written_joins_their_next_step(ranks):
    """Nobody waits for the batch to end: the second request's tokens stand between those of the first."""
    sender, receiver = ranks.run(pairs.joins, [()] * 2)
    assert sender == [("token", 0, 0), ("token", 1, 0)]
    assert [event[1:] for event in receiver] == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (0, 5), (1, 2), (0, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_key_and_value_moves_once_and_unchanged(ranks, dtype):
    """To the bit, and there before the first step reads it. A request of one token moves none."""
    n, layers, numbers = 7, 3, 2 * (3 + 5)
    (computed, sent), (found, received) = ranks.run(pairs.arrivals, [(dtype, n, layers)] * 2)
    assert sent == received == n * layers * numbers
    assert len(found) == layers
    for layer, (there, here) in enumerate(zip(found, computed, strict=True)):
        for name, actual, expected in zip(("keys", "values"), there, here, strict=True):
            exactly(actual, expected, f"{name} of layer {layer}")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("prompt machine dies", "ConnectionError: the prompt machine was lost when [0-2] of 3 layers of request 0 had come; nothing"),
        ("prompt machine is silent", "ConnectionError: the prompt machine was lost when 0 of 3 layers of request 0 had come; nothing"),
        ("token machine dies", "ConnectionError: the token machine was lost"),
        ("message is altered", "ConnectionError: the cache of request 0 did not arrive as it was sent; nothing"),
        ("cache has other heads", r"ValueError: cache must hold .* as they are sent, \[3, 1, 1, 2, 0\], not \[3, 2, 1, 2, 0\]"),
        ("model fails", "RuntimeError: a layer's own error$"),
    ],
)
def test_a_failure_is_told_as_what_it_is_and_leaves_no_half_a_cache(tmp_path, fault, told):
    """Within the timeout of the group; no sequence is left in the cache, and all blocks are free."""
    message, empty = pairs.faulty(fault, str(tmp_path))
    assert re.match(told, str(message))
    assert empty


@pytest.mark.parametrize(
    ("sizes", "names", "told"),
    [
        ((), (), "cache must be given on the token machine"),
        ((2, 2, 3), (), "cache must have a layer for each of the model's 1, not 3"),
        ((2, 2, 1), (), "cache must have 2 free blocks for request 0, not 1"),
        ((9, 2, 1), (0,), "cache must not hold a sequence of the name 0"),
    ],
)
def test_a_wrong_cache_is_named(ranks, sizes, names, told):
    assert ranks.run(pairs.refuse, [(sizes, names)] * 2)[1].startswith(told)


def test_wrong_requests_are_named(fast):
    """Before anything is asked of the other machine, of which there is none here."""
    one = torch.arange(3)
    for prompt, output, error, name in (
        ([one], [1, 1], ValueError, "output"),
        ([one, one[:0]], [1, 1], ValueError, "request 1"),
        ([one], [0], ValueError, "request 0"),
        ([one[None]], [1], ValueError, "prompt"),
        ([one.float()], [1], TypeError, "prompt"),
    ):
        with pytest.raises(error, match=name):
            fast.run((None, [], None), prompt, output)
