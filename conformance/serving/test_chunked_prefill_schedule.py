"""The batches of chunked prefill, simulated: nobody who writes is ever stalled by a prompt, and nobody starves."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.spec.serving import chunked_prefill as spec

ticks = st.integers(0, 6)
requests = st.lists(st.tuples(ticks, st.sampled_from([0, 0, 1, 2, 7, 100]), ticks), max_size=9)
outputs = st.integers(1, 8)
jobs = st.lists(st.tuples(ticks, st.integers(1, 20), outputs), min_size=1, max_size=9)  # arrival, prompt, output
crowds = st.lists(st.tuples(ticks, st.sampled_from([0, 0, 0, 5]), outputs), min_size=1, max_size=9)  # most had their prompt elsewhere


def as_lists(fast):
    """The same call on lists."""
    return lambda rows, budget: fast.schedule(torch.tensor(rows, dtype=torch.int64).reshape(-1, 3), budget).tolist()


def served(jobs, budget, schedule):
    """Run to the end, one batch per tick: per batch who decodes, tokens given and tokens left by job; per job the ticks of its output."""
    left, last, outputs, batches = [prompt for _, prompt, _ in jobs], [arrival - 1 for arrival, _, _ in jobs], [[] for _ in jobs], []
    tick = 0
    while any(len(written) < output for written, (_, _, output) in zip(outputs, jobs)):
        here = [i for i, (arrival, _, output) in enumerate(jobs) if arrival <= tick and len(outputs[i]) < output]
        given_out = schedule([(jobs[i][0], left[i], last[i]) for i in here], budget)
        decoding = {i for i in here if not left[i]}
        batches.append((decoding, dict(zip(here, given_out, strict=True)), {i: left[i] for i in here}))
        for i, tokens in zip(here, given_out):
            left[i] -= min(tokens, left[i])
            if tokens:
                last[i] = tick
            if tokens and not left[i]:
                outputs[i].append(tick)
        tick += 1
        assert tick <= max(arrival for arrival, _, _ in jobs) + sum(prompt + output for _, prompt, output in jobs), "nothing moves"
    return batches, outputs


@given(requests, st.integers(0, 12))
@example([(2, 9, 0), (1, 5, 0), (0, 0, 7)], 8)
def test_batches_are_those_of_the_spec(fast, requests, budget):
    assert as_lists(fast)(requests, budget) == spec.schedule(requests, budget)


@given(st.one_of(jobs, crowds), st.integers(1, 12))
def test_every_batch_is_full_and_no_one_who_decodes_is_left_out(fast, jobs, budget):
    for schedule in (spec.schedule, as_lists(fast)):
        for decoding, tokens, left in served(jobs, budget, schedule)[0]:
            wanted = {i: left[i] or 1 for i in tokens}
            assert sum(tokens.values()) == min(budget, sum(wanted.values())), "as much work as there is, up to the budget"
            assert all(0 <= tokens[i] <= wanted[i] for i in tokens)
            assert sum(tokens[i] for i in decoding) == min(budget, len(decoding)), "one token each, as far as the budget goes"
            waiting = sorted((i for i in tokens if i not in decoding), key=lambda i: jobs[i][0])
            begun = [i for i in waiting if tokens[i]]
            assert begun == waiting[: len(begun)] and all(tokens[i] == left[i] for i in begun[:-1]), "the oldest prompt first, entirely"


@given(jobs, st.integers(1, 12))
def test_first_tokens_come_in_order_of_arrival(fast, jobs, budget):
    for schedule in (spec.schedule, as_lists(fast)):
        _, outputs = served(jobs, budget, schedule)
        order = sorted(range(len(jobs)), key=lambda i: jobs[i][0])
        assert all(outputs[i][0] <= outputs[j][0] for i, j in pairwise(order))


@given(crowds, st.integers(1, 4))
@example([(0, 0, 8)] * 6, 2)
def test_with_a_budget_below_the_decodes_everyone_takes_turns(fast, jobs, budget):
    """A request waits for its next token no longer than it takes to serve all who decode in the batch after its last one."""
    for schedule in (spec.schedule, as_lists(fast)):
        batches, outputs = served(jobs, budget, schedule)
        for i, ((arrival, prompt, _), written) in enumerate(zip(jobs, outputs, strict=True)):
            for before, after in pairwise(written if prompt else [arrival - 1, *written]):
                decoding = batches[before + 1][0]
                assert i in decoding and after - before <= -(-len(decoding) // budget)


def test_a_long_prompt_costs_those_who_write_no_batch(fast):
    """The point of it: 100 prompt tokens arrive while three write; each of them still gets a token in every batch."""
    jobs = [(0, 1, 30)] * 3 + [(2, 100, 1)]
    for schedule in (spec.schedule, as_lists(fast)):
        _, outputs = served(jobs, 10, schedule)
        assert all(written == list(range(written[0], written[0] + 30)) for written in outputs[:3])
        assert outputs[3] == [2 + -(-100 // 7) - 1]  # seven a batch are left for the prompt


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (ValueError, "budget", (torch.zeros(1, 3, dtype=torch.int64), -1)),
        (ValueError, "requests", (torch.zeros(1, 2, dtype=torch.int64), 4)),
        (TypeError, "requests", (torch.zeros(1, 3), 4)),
        (TypeError, "requests", ([(0, 1, 2)], 4)),
    ],
)
def test_errors_name_the_argument(fast, error, name, arguments):
    with pytest.raises(error, match=name):
        fast.schedule(*arguments)
