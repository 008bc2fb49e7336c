"""A prompt machine and a token machine for tests: what runs in their processes."""

import multiprocessing
import os
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

from twofold.conformance import inputs, target
from twofold.conformance.serving.whole_numbers import packed
from twofold.fast.serving.kv_cache import Cache

__all__ = ["arrivals", "faulty", "joins", "overlap", "refuse", "serve"]

SECONDS = 20  # to wait for what must come before another thing; a correct implementation never waits as long


def _cache(n_blocks, B, layers, **kwargs):
    return Cache(n_blocks, B, 1, 1, 2, layers=layers, **kwargs)


def _empty(cache):
    return not cache.pool.tables and not any(cache.pool.ref)


def serve(fast, group, prompts, outputs, layers, n_blocks, B):
    """One machine's tokens, and whether its cache is as empty as before."""
    cache = _cache(n_blocks, B, layers)
    tokens = fast.run(packed(layers), [torch.tensor(prompt) for prompt in prompts], outputs, group=group, cache=cache)
    return tokens, _empty(cache)


def overlap(fast, group, layers):
    """What happens on one machine, in order. The prompt machine begins its last layer when it has heard that the first has arrived.

    Of a layer that arrives it is told, too, whether the cache knows the request by its name.
    """
    embed, stack, head = packed(layers)
    events, kept, cache = [], [], _cache(3, 4, layers)
    if dist.get_rank(group) == 0:
        stack = [*stack[:-1], _after(lambda: _hear(group, events), stack[-1])]

    def report(*event):
        events.append((*event, 0 in cache.pool.tables) if event[0] == "arrived" else event)
        if event == ("arrived", 0, 0):
            kept.append(dist.isend(torch.ones(1), group=group, group_dst=0, tag=1))

    tokens = fast.run((embed, stack, head), [torch.arange(5)], [3], group=group, cache=cache, report=report)
    return events, tokens


def joins(fast, group):
    """The token machine's events. Request 1 is read when request 0 has three tokens; at its fourth, request 0 waits until it is there."""
    embed, (layer,), head = packed(1)
    events, kept, there, first = [], [], threading.Event(), True

    def patient(z, position, attend):
        nonlocal first
        if not first:
            _hear(group, [])
        first = False
        return layer(z, position, attend)

    def report(*event):
        events.append(event)
        if event == ("whole", 1, 1):
            there.set()
        if event == ("token", 0, 2):
            kept.append(dist.isend(torch.ones(1), group=group, group_dst=0, tag=1))
        if event == ("token", 0, 3) and not there.wait(SECONDS):
            raise AssertionError("request 1 did not arrive while request 0 was written")

    model = embed, [patient if dist.get_rank(group) == 0 else layer], head
    prompts = [torch.tensor([5, 3]), torch.tensor([7])]
    fast.run(model, prompts, [7, 3], group=group, cache=_cache(9, 4, 1), report=report)
    return [event for event in events if event[0] == "token"]


def arrivals(fast, group, dtype, n, layers):
    """Keys and values of every layer, as the prompt machine computed them or as the token machine finds them at its first step; and how
    many numbers of them this machine has sent or received."""
    rank, found, moved = dist.get_rank(group), [], []
    cache = Cache(9, 4, 2, 3, 5, layers=layers, dtype=dtype)

    def layer(number):
        def forward(z, position, attend):
            k, v = (torch.sin((position[:, None, None] + 1) * torch.arange(1, 2 * w + 1).view(2, w) + number).to(dtype) for w in (3, 5))
            o = attend(k, k, v)
            if rank == 0 or not any(each[0] == number for each in found):
                found.append((number, *([k, v] if rank == 0 else (x[:n] for x in cache.contents(0, layer=number)))))
            return z + 0 * o.float().sum()

        return forward

    model = lambda tokens, position: tokens[:, None].float(), [layer(number) for number in range(layers)], lambda z: z[:, 0].long()
    with _watched(lambda message: moved.append(message.numel()) if message.is_floating_point() else None):
        fast.run(model, [torch.arange(n)] * 2, [3, 1], group=group, cache=cache)
    return [[inputs.array(x) for x in each[1:]] for each in found[:layers]], sum(moved)


def refuse(fast, group, sizes, names):
    """The error of the token machine, as text; the prompt machine does not even call."""
    if dist.get_rank(group) == 1:
        cache = _cache(*sizes) if sizes else None
        for name in names:
            cache.extend([name], 1, new=True)
        try:
            fast.run(packed(1), [torch.arange(3)], [2], group=group, cache=cache)
        except ValueError as error:
            return str(error)
    return "nothing"


def faulty(fault, folder):
    """What the machine that is left says when something goes wrong, and whether its cache is as empty as before."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    arguments = [(rank, fault, folder, theirs, dict(os.environ)) for rank in range(2)]
    processes = [context.Process(target=_goes_wrong, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    try:
        return ours.recv() if ours.poll(90) else ("nothing", False)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _goes_wrong(rank, fault, folder, pipe, environment):
    os.environ |= environment | {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    seconds = 3 if fault == "prompt machine is silent" else 60
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=seconds))
    embed, stack, head = packed(3)
    cache = Cache(9, 4, 2 if fault == "cache has other heads" else 1, 1, 2, layers=3)
    left = rank == (0 if fault == "token machine dies" else 1)
    if fault == "prompt machine dies" and rank == 0:
        stack[2] = _after(lambda: os._exit(1), stack[2])
    if fault == "token machine dies" and rank == 1:
        stack[0] = _after(lambda: os._exit(1), stack[0])
    if fault == "model fails" and rank == 1:
        stack[1] = _after(_fail, stack[1])
    with target.implementation("serving.splitwise", "torch") as fast:
        try:
            if fault == "prompt machine is silent" and rank == 0:
                threading.Event().wait()  # for ever
            with _watched(_altered if fault == "message is altered" and rank == 1 else lambda message: None):
                result = fast.run((embed, stack, head), [torch.arange(5)] * 4, [4] * 4, cache=cache)
        except Exception as error:  # told to the test
            result = f"{type(error).__name__}: {error}"
    if left:
        pipe.send((result, _empty(cache)))
    threading.Event().wait()  # the other machine sees what this one says, not that it has ended


def _fail():
    raise RuntimeError("a layer's own error")


def _altered(message):
    """A transfer that is looked at too early."""
    if message.is_floating_point():
        message.view(-1)[-1] += 1


class _watched:
    """Show all that is sent, before, and all that is received, after."""

    def __init__(self, look):
        self.look, self.isend, self.recv = look, dist.isend, dist.recv

    def __enter__(self):
        dist.isend = lambda message, *args, **kwargs: (self.look(message), self.isend(message, *args, **kwargs))[1]
        dist.recv = lambda message, *args, **kwargs: (self.recv(message, *args, **kwargs), self.look(message))[0]

    def __exit__(self, *_):
        dist.isend, dist.recv = self.isend, self.recv


def _after(first, layer):
    """A layer before which something else happens."""
    return lambda *args: (first(), layer(*args))[1]


def _hear(group, events):
    """Wait for the other machine's word."""
    word = torch.empty(1)
    dist.irecv(word, group=group, group_src=1, tag=1).wait(timedelta(seconds=SECONDS))
    events.append("heard")
