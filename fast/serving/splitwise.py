"""Splitwise: one process reads prompts, another writes tokens; and a simulator of many. See `twofold.spec.serving.splitwise`.

`run` is called by both processes of a `torch.distributed` group: rank 0 is the prompt machine, rank 1 the token machine. Each layer's
cache is sent while later layers compute, and is used only when all have arrived: a peer that is lost is a `ConnectionError`, and nothing of
a half moved cache is left. How long to wait for a peer is the group's timeout.

`simulate` gives the definition's traces; its events lie in a heap, and what lies before each machine is kept rather than counted anew.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["simulate", "route", "transfer_tail", "run", "Request", "Cluster", "Costs", "Trace"]

LIMIT = 2048  # tokens of a prompt batch
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int64)
HEADER = 10  # layer, part, parts, dtype, axes, and up to five sizes
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
    model: tuple, prompt: Tensor, output: int, *, group: dist.ProcessGroup | None = None, arrived: Callable[[int], None] | None = None
) -> list[int]:
    """The tokens of one request, greedily, as both processes of a group of two return them.

    `model` is (embed, layers, head): `embed(tokens (n,), position)` gives rows (n, D), a layer maps rows and the cache of earlier ones, or
    None, to rows and the cache of all, a tuple of tensors, and `head(row)` is a token. `arrived` is told each layer whose cache is there.
    """
    if output < 1 or not len(prompt):
        raise ValueError(f"output and prompt must have at least one token, not {output} and {len(prompt)}")
    if dist.get_world_size(group) != 2:
        raise ValueError(f"group must have 2 ranks, a prompt machine and a token machine, not {dist.get_world_size(group)}")
    if dist.get_rank(group) == 0:
        return _read(model, prompt, output, group)
    return _write(model, len(prompt), output, group, arrived)


@torch.no_grad()
def _read(model, prompt, output, group):
    """The prompt machine: nothing that it sends waits for a later layer."""
    embed, layers, head = model
    z, sent = embed(prompt, 0), []
    try:
        for number, layer in enumerate(layers):
            z, cache = layer(z, None)
            for part, tensor in enumerate(cache):
                axes = [number, part, len(cache), DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
                header = torch.tensor(axes + [0] * (HEADER - len(axes)), device=z.device)
                for message in (header, tensor.contiguous().view(-1).view(torch.uint8)):
                    sent.append((dist.isend(message, group=group, group_dst=1), message))  # which must live as long
        first = torch.as_tensor(head(z[-1])).view(1).to(z.device, torch.int64)
        for work, _ in [*sent, (dist.isend(first, group=group, group_dst=1), first)]:
            work.wait()
        tokens = torch.empty(output, dtype=torch.int64, device=z.device)
        dist.recv(tokens, group=group, group_src=1)
    except RuntimeError as error:
        raise ConnectionError("the token machine was lost before it had written all tokens") from error
    return tokens.tolist()


@torch.no_grad()
def _write(model, length, output, group, arrived):
    """The token machine: a cache is a cache when all layers are there."""
    embed, layers, head = model
    moved: list[tuple] = []
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    try:
        while len(moved) < len(layers):
            parts, count = list[Tensor](), 1
            while len(parts) < count:
                header = torch.empty(HEADER, dtype=torch.int64, device=device)
                dist.recv(header, group=group, group_src=0)
                number, part, count, dtype, axes, *shape = header.tolist()
                if (number, part) != (len(moved), len(parts)):
                    raise ConnectionError(f"layer {number}, part {part} came where layer {len(moved)}, part {len(parts)} should")
                tensor = torch.empty(shape[:axes], dtype=DTYPES[dtype], device=device)
                dist.recv(tensor.view(-1).view(torch.uint8), group=group, group_src=0)
                parts.append(tensor)
            moved.append(tuple(parts))
            if arrived:
                arrived(number)
        first = torch.empty(1, dtype=torch.int64, device=device)
        dist.recv(first, group=group, group_src=0)
        tokens = first.tolist()
        for position in range(length, length + output - 1):
            z = embed(torch.tensor(tokens[-1:], device=device), position)
            for i, layer in enumerate(layers):
                z, moved[i] = layer(z, moved[i])
            tokens.append(int(head(z[-1])))
        dist.send(torch.tensor(tokens, device=device), group=group, group_dst=0)
    except RuntimeError as error:
        raise ConnectionError(f"the prompt machine was lost when {len(moved)} of {len(layers)} layers had come; none is kept") from error
    return tokens


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
