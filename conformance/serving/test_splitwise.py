"""Splitwise: what a simulated cluster must do."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.spec.serving import splitwise
from twofold.spec.serving.splitwise import Cluster, Costs, Request

halves = st.integers(0, 20).map(lambda n: Fraction(n, 2))
requests = st.lists(st.builds(Request, halves, st.sampled_from([1, 3, 700, 1024, 2048, 3000]), st.integers(1, 4)), max_size=8)
pools = st.sampled_from([(1, 1, 0), (2, 1, 0), (1, 2, 1), (0, 0, 1), (2, 2, 2)])
modes = st.sampled_from(["serialised", "layerwise"])
COSTS = Costs(lambda tokens: Fraction(tokens, 512), lambda batch: 1 + Fraction(batch, 4), lambda size: size / Fraction(256))


def sent(prompt, layers, mode, costs=COSTS, batch=None):
    """The tail of a prompt that was read, alone or in a batch of so many tokens: layer by layer on a serial link."""
    time = costs.prompt_time(batch or prompt)
    done, free = [time * Fraction(layer + 1, layers) for layer in range(layers)], Fraction(0)
    for layer in range(layers):
        ready = done[layer] if mode == "layerwise" else done[-1]
        free = max(free, ready) + costs.transfer_time(Fraction(prompt, layers))
    return free - done[-1]


@given(st.integers(1, 5), st.integers(1, 9), modes, st.sampled_from([Fraction(1, 8), Fraction(1), Fraction(8)]))
def test_the_tail_is_what_a_serial_link_leaves(layers, prompt, mode, slowness):
    """Layer by layer on a link that carries one after the other; with an infinitely fast one there is no tail."""
    costs = COSTS._replace(transfer_time=lambda size: slowness * size)
    compute, transfer = costs.prompt_time(prompt) / layers, costs.transfer_time(Fraction(prompt, layers))
    assert splitwise.transfer_tail(layers, compute, transfer, mode) == sent(prompt, layers, mode, costs)
    assert splitwise.transfer_tail(layers, compute, 0, mode) == 0


@given(st.lists(st.tuples(halves, st.sampled_from([1, 3, 700, 1024, 1025, 2048, 3000])), min_size=1, max_size=8), modes)
@example([(Fraction(0), 1024), (Fraction(0), 1024), (Fraction(0), 1), (Fraction(1), 3000), (Fraction(1), 1)], "layerwise")
def test_a_prompt_machine_is_a_queue_that_never_idles(work, mode):
    """In order of arrival, at most 2048 tokens together and a longer prompt alone; token 1 at the batch's end, token 2 after the tail."""
    work = sorted(work, key=lambda each: each[0])
    traces = splitwise.simulate([Request(a, n, 2) for a, n in work], Cluster(1, 99, 0, 4, Fraction(1), mode), COSTS)
    now, left, expected = Fraction(0), list(work), []
    while left:
        now = max(now, left[0][0])
        batch = [left.pop(0)[1]]
        while left and left[0][0] <= now and sum(batch) + left[0][1] <= 2048:
            batch.append(left.pop(0)[1])
        now += COSTS.prompt_time(sum(batch))
        expected += [[now, now + sent(prompt, 4, mode, batch=sum(batch)) + COSTS.token_time(1)] for prompt in batch]
    assert [trace.times for trace in traces] == expected


@given(st.lists(halves, min_size=1, max_size=8), st.integers(2, 4), st.sampled_from([8, 16, 10**9]))
@example([Fraction(0)] * 5, 3, 16)
def test_a_token_machine_joins_steps_and_waits_for_room(arrivals, output, memory):
    """One token machine behind a link that takes no time: its steps, told one by one from when each cache is there."""
    costs = Costs(lambda tokens: Fraction(1, 3), COSTS.token_time, lambda size: Fraction(0))
    cluster = Cluster(1, 1, 0, 1, Fraction(1), "layerwise", memory)
    traces = splitwise.simulate([Request(a, 8 - output, output) for a in sorted(arrivals)], cluster, costs)  # 8 tokens of cache
    arrivals = [trace.times[0] for trace in traces]
    times, running, now = [[a] for a in arrivals], [], Fraction(0)
    left = list(range(len(arrivals)))
    while left or running:
        if not running and arrivals[left[0]] > now:
            now = arrivals[left[0]]
        while left and arrivals[left[0]] <= now and (not running or 8 * (len(running) + 1) <= memory):
            running.append(left.pop(0))
        now += COSTS.token_time(len(running))
        for r in running:
            times[r].append(now)
        running = [r for r in running if len(times[r]) < output]
    assert [trace.times for trace in traces] == times


def test_a_cluster_by_hand():
    """Two prompts share a batch and its end; the second's cache is larger, so it joins a step late. A single token needs no transfer."""
    costs = Costs(lambda tokens: tokens, lambda batch: 10, lambda size: size)
    work = [Request(0, 4, 2), Request(0, 8, 2), Request(1, 2, 1)]
    first, second, third = splitwise.simulate(work, Cluster(1, 1, 0, 2, 1, "serialised"), costs)
    assert first.times == [12, 12 + 4 + 10] and second.times == [12, 26 + 10] and third.times == [14]
    layerwise = splitwise.simulate(work, Cluster(1, 1, 0, 2, 1, "layerwise"), costs)  # 2 of 4, and 4 of 8 after the last layer
    assert layerwise[0].times == [12, 12 + 2 + 10] and layerwise[1].times == [12, 24 + 10]


def test_what_happens_at_one_time_has_an_order():
    """A machine that finishes is free for who arrives then, and a cache that is there when a step ends joins the next one."""
    costs = Costs(lambda tokens: tokens, lambda batch: 10, lambda size: size)
    work = [Request(0, 4, 1), Request(2, 3, 1), Request(4, 9, 1)]  # machine 0 reads until 4, machine 1 from 2 to 5
    assert [trace.prompt_machine for trace in splitwise.simulate(work, Cluster(2, 1, 0, 1, 1, "layerwise"), costs)] == [0, 1, 0]
    work = [Request(0, 2, 3), Request(10, 2, 2)]  # steps from 4 to 14 and on to 24; the second is read at 12, its cache there at 14
    first, second = splitwise.simulate(work, Cluster(1, 1, 0, 1, 1, "layerwise"), costs)
    assert first.times == [2, 14, 24] and second.times == [12, 24]


def test_machines_are_chosen_by_what_lies_before_them():
    """Ties go to the request's own pool and then to the lowest; a mixed machine reads and writes, and moves nothing."""
    cluster = Cluster(2, 1, 1, 1, 1, "serialised")
    for unread, unwritten, pair in (([0] * 4, [0] * 4, (0, 2)), ([4, 4, 0, 4], [0, 0, 3, 3], (0, 2)), ([4, 4, 0, 3], [0, 0, 3, 2], (3, 3))):
        assert splitwise.route(unread, unwritten, cluster) == pair
    costs = Costs(lambda tokens: tokens, lambda batch: 10, lambda size: 10**6 * size)
    assert splitwise.simulate([Request(0, 4, 3)], Cluster(0, 0, 1, 2, 1, "serialised"), costs)[0] == (0, 0, [4, 14, 24])


@given(requests, pools, modes, st.sampled_from([5000, 10**9]))
@example([Request(Fraction(0), 3, 4)] * 8, (2, 2, 2), "layerwise", 5000)
@example([Request(Fraction(0), 1024, 2)] * 3, (1, 1, 0), "serialised", 5000)
@example([Request(Fraction(0), 3, 4)] * 8, (1, 1, 0), "layerwise", 20)
def test_every_request_gets_its_tokens_in_order(fast, work, machines, mode, memory):
    """Fast gives the definition's traces. Who arrives is served; no token before its time, none after the next."""
    cluster = Cluster(*machines, 4, Fraction(1), mode, memory)
    traces = splitwise.simulate(work, cluster, COSTS)
    for request, trace in zip(work, traces, strict=True):
        assert len(trace.times) == request.output and trace.times == sorted(set(trace.times))
        assert trace.times[0] >= request.arrival + COSTS.prompt_time(request.prompt)
        if request.output > 1 and trace.prompt_machine != trace.token_machine:
            assert trace.times[1] - trace.times[0] >= COSTS.transfer_time(Fraction(request.prompt, 4)) + COSTS.token_time(1)
    assert [tuple(trace) for trace in fast.simulate([fast.Request(*each) for each in work], fast.Cluster(*cluster), COSTS)] == traces
    points = sorted({x for request, trace in zip(work, traces) for x in (request.arrival, trace.times[-1])})
    present = lambda t: sum(request.arrival <= t < trace.times[-1] for request, trace in zip(work, traces))
    area = sum((b - a) * present(a) for a, b in zip(points, points[1:]))
    assert area == sum(trace.times[-1] - request.arrival for request, trace in zip(work, traces)), "Little's law"


def test_wrong_arguments_are_named(fast):
    one = fast.Request(0, 1, 1)
    for work, cluster, name in (
        ([fast.Request(0, 0, 1)], (1, 1, 0, 1, 1, "layerwise"), "requests"),
        ([one, fast.Request(0, 1, 0)], (1, 1, 0, 1, 1, "layerwise"), "request 1"),
        ([one], (0, 1, 0, 1, 1, "layerwise"), "cluster"),
        ([one], (1, 1, 0, 0, 1, "layerwise"), "cluster"),
        ([one], (1, 1, 0, 1, 1, "eager"), "mode"),
    ):
        with pytest.raises(ValueError, match=name):
            fast.simulate(work, fast.Cluster(*cluster), COSTS)
    with pytest.raises(ValueError, match="mode"):
        fast.transfer_tail(1, 1, 1, "eager")
