"""Splitwise: one process reads prompts, another writes tokens; and a simulator of many. See `twofold.spec.serving.splitwise`.

Both processes of a `torch.distributed` group call `run` with the same requests: rank 0 is the prompt machine, rank 1 the token machine.
A model is `(embed, layers, head)` on rows, of one prompt here and of all running requests there:

- `embed(tokens (n,), position (n,)) -> z (n, D)`
- `layer(z, position, attend) -> z`, which once calls `attend(q (n, H, d), k (n, Hkv, d), v (n, Hkv, dv), **options) -> o (n, H, dv)`;
  `options` are those of `serving.kv_cache`
- `head(z) -> tokens (n,)`

A layer's keys and values are sent while it and later layers compute, and are written straight into the blocks of the token machine's
cache. They bear the request's name there, a number, when all layers have come and a checksum agrees, not before. A machine that is lost
or silent for longer than the group's timeout is a `ConnectionError` at the other; after it, the group is of no more use.

The group needs gloo for CPU tensors and, on GPUs, NCCL for theirs, as `init_process_group()` makes it when no backend is named.

`simulate` gives the definition's traces; its events lie in a heap, and what lies before each machine is kept rather than counted anew.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from twofold.fast import checks
from twofold.fast.serving._transfer import PromptMachine, TokenMachine, blocks
from twofold.fast.serving.kv_cache import Cache

__all__ = ["simulate", "route", "transfer_tail", "run", "Request", "Cluster", "Costs", "Trace"]

LIMIT = 2048  # tokens of a prompt batch
FINISHED, ARRIVED, NEW = range(3)  # the order of what happens at one time


class Request(NamedTuple):
    """`prompt` tokens that arrive at a time, and how many tokens are to be written."""

    arrival: Any
    prompt: int
    output: int


class Cluster(NamedTuple):
    """Machines of the prompt, token and mixed pool, numbered in this order; layers, bytes of cache per token, mode of transfer; tokens of
    cache that a machine holds."""

    prompt: int
    token: int
    mixed: int
    layers: int
    bytes_per_token: Any
    mode: str
    memory: Any = float("inf")


class Costs(NamedTuple):
    """Times of a prompt batch by its tokens, of a token step by its requests, of a transfer by its bytes."""

    prompt_time: Callable
    token_time: Callable
    transfer_time: Callable


class Trace(NamedTuple):
    """The two machines of a request and when each of its tokens was emitted."""

    prompt_machine: int
    token_machine: int
    times: list


def simulate(requests: Sequence[Request], cluster: Cluster, costs: Costs) -> list[Trace]:
    """What happens to the requests, event by event."""
    _check(requests, cluster)
    n = cluster.prompt + cluster.token + cluster.mixed
    traces: list[Any] = [None] * len(requests)
    prompts, waiting = [deque[int]() for _ in range(n)], [deque[int]() for _ in range(n)]
    running: list[list[int]] = [[] for _ in range(n)]
    held, unread, unwritten = [0] * n, [0] * n, [0] * n  # tokens: of the caches of running requests, to read, to write
    busy: list[Any] = [None] * n
    events = [(request.arrival, NEW, i) for i, request in enumerate(requests)]
    heapq.heapify(events)
    size = lambda r: requests[r].prompt + requests[r].output
    while events:
        now, touched = events[0][0], set()
        while events and events[0][0] == now:
            _, kind, i = heapq.heappop(events)
            if kind == FINISHED:
                phase, ids, tokens = busy[i]
                busy[i] = None
                touched.add(i)
                for r in ids:
                    traces[r].times.append(now)
                    unwritten[traces[r].token_machine] -= 1
                    if phase == "prompt":
                        unread[i] -= requests[r].prompt
                        if requests[r].output > 1:
                            heapq.heappush(events, (now + _tail(requests[r], tokens, traces[r], cluster, costs), ARRIVED, r))
                if phase == "token":
                    running[i] = [r for r in ids if len(traces[r].times) < requests[r].output]
                    held[i] -= sum(size(r) for r in ids if len(traces[r].times) == requests[r].output)
            elif kind == ARRIVED:
                waiting[traces[i].token_machine].append(i)
                touched.add(traces[i].token_machine)
            else:
                reader, writer = route(unread, unwritten, cluster)
                traces[i] = Trace(reader, writer, [])
                prompts[reader].append(i)
                unread[reader] += requests[i].prompt
                unwritten[writer] += requests[i].output
                touched.add(reader)
        for j in sorted(touched):
            if busy[j] is None and prompts[j]:
                batch = [prompts[j].popleft()]
                tokens = requests[batch[0]].prompt
                while prompts[j] and tokens + requests[prompts[j][0]].prompt <= LIMIT:
                    batch.append(prompts[j].popleft())
                    tokens += requests[batch[-1]].prompt
                busy[j] = "prompt", batch, tokens
                heapq.heappush(events, (now + costs.prompt_time(tokens), FINISHED, j))
            elif busy[j] is None:
                while waiting[j] and (not running[j] or held[j] + size(waiting[j][0]) <= cluster.memory):
                    running[j].append(waiting[j].popleft())
                    held[j] += size(running[j][-1])
                if running[j]:
                    busy[j] = "token", running[j], None
                    heapq.heappush(events, (now + costs.token_time(len(running[j])), FINISHED, j))
    return traces


def route(unread: Sequence, unwritten: Sequence, cluster: Cluster) -> tuple[int, int]:
    """Both machines of a request, those with the fewest tokens to read and to write. Ties go to its own pool, then to the lowest."""
    home = cluster.prompt + cluster.token
    mixed = range(home, home + cluster.mixed)
    readers, writers = [*range(cluster.prompt), *mixed], [*range(cluster.prompt, home), *mixed]
    return min(readers, key=unread.__getitem__), min(writers, key=unwritten.__getitem__)


def transfer_tail(layers: int, compute: Any, transfer: Any, mode: str) -> Any:
    """How long after the last layer of the prompt the last layer's cache has arrived; times are per layer."""
    if mode not in ("serialised", "layerwise"):
        raise ValueError(f"mode must be 'serialised' or 'layerwise', not {mode!r}")
    return layers * transfer if mode == "serialised" else transfer + (layers - 1) * max(0, transfer - compute)


def run(
    model: tuple,
    prompt: Sequence[Tensor],
    output: Sequence[int],
    *,
    cache: Cache | None = None,
    group: dist.ProcessGroup | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> list[list[int]]:
    """The tokens of every request, greedily, as both processes return them; `prompt` holds a tensor (n,) for each, `output` a number.

    The token machine gives a `cache` with room for the largest request. `report(event, request, number)` hears of layers "sent" and
    "arrived", of a cache that is "whole", and of each "token".
    """
    if len(output) != len(prompt):
        raise ValueError(f"output must have one number for each of the {len(prompt)} prompts, not {len(output)}")
    for r, (tokens, count) in enumerate(zip(prompt, output, strict=True)):
        checks.shape(prompt=(tokens, "n"))
        checks.dtypes(torch.int64, torch.int32, prompt=tokens)
        if not len(tokens) or count < 1:
            raise ValueError(f"prompt and output must have at least one token each, which request {r} has not: {len(tokens)}, {count}")
    if dist.get_world_size(group) != 2:
        raise ValueError(f"group must have 2 ranks, a prompt machine and a token machine, not {dist.get_world_size(group)}")
    if not len(prompt):
        return []
    report = report or (lambda event, request, number: None)
    if dist.get_rank(group) == 0:
        return PromptMachine(model, prompt, output, group, report).run()
    return TokenMachine(model, prompt, output, _checked(cache, model, prompt, output), group, report).run()


def _checked(cache, model, prompt, output):
    if cache is None:
        raise ValueError("cache must be given on the token machine, rank 1: the keys and values move into it")
    if len(cache.k) != len(model[1]):
        raise ValueError(f"cache must have a layer for each of the model's {len(model[1])}, not {len(cache.k)}")
    for r, (tokens, count) in enumerate(zip(prompt, output, strict=True)):
        if r in cache.pool.tables:
            raise ValueError(f"cache must not hold a sequence of the name {r}, which is that of a request")
        if count > 1 and (needed := blocks(cache, tokens, count)) > len(cache.pool.free):
            raise ValueError(f"cache must have {needed} free blocks for request {r}, not {len(cache.pool.free)}")
    return cache


def _tail(request, tokens, trace, cluster, costs):
    if trace.prompt_machine == trace.token_machine:  # nothing moves
        return 0
    compute = costs.prompt_time(tokens) / cluster.layers
    transfer = costs.transfer_time(request.prompt * cluster.bytes_per_token / cluster.layers)
    return transfer_tail(cluster.layers, compute, transfer, cluster.mode)


def _check(requests, cluster):
    if cluster.prompt + cluster.mixed < 1 or cluster.token + cluster.mixed < 1:
        raise ValueError(f"cluster must have a machine for prompts and one for tokens, not {cluster}")
    if cluster.layers < 1 or cluster.mode not in ("serialised", "layerwise"):
        raise ValueError(f"cluster must have at least one layer and the mode 'serialised' or 'layerwise', not {cluster}")
    for i, request in enumerate(requests):
        if request.prompt < 1 or request.output < 1:
            raise ValueError(f"requests must read and write at least one token, which request {i} does not: {request}")
