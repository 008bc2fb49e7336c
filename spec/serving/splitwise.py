r"""Splitwise: prompts are read on some machines, tokens are written on others, and the cache moves between them.

Paper: Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", 2023, arXiv:2311.18677, Sec. 4.

Reading a prompt is bound by arithmetic, writing tokens by memory, and a machine that does both does each worse. A request runs on a pair:
the prompt machine reads its n tokens and emits the first output, the cache moves, the token machine emits outputs 2 … m. A layer's cache
may leave while later layers still compute. With c per layer of the prompt and x per layer on a link that carries one layer after the
other, the second token waits, behind the first one, for

$$\text{tail} = L x \quad\text{(serialised)}, \qquad \text{tail} = x + (L-1)\max(0, x-c) \quad\text{(layerwise)}.$$

| name | meaning |
|---|---|
| `Request` | arrival, tokens of the prompt, tokens of the output (at least 1) |
| `Cluster` | machines of the prompt, token and mixed pool; layers, bytes of cache per token, mode of transfer; tokens a machine holds |
| `Costs` | time of a prompt batch by its tokens, of a token step by its requests, of a transfer by its bytes |

A prompt machine takes requests in order of arrival, up to 2048 tokens at a time, a longer prompt alone. A token machine runs steps: who
arrives during a step joins the next one, in order, if its whole cache will fit. Events of one time come before any machine goes on.

Deviations: the mixed pool is fixed, its machines serve both phases, prompts first; the paper lends machines of the other pool when a queue
passes a limit. Links do not contend. The batch limit and the token machine's policy are from memory of the paper.
"""

from collections import namedtuple

__all__ = ["simulate", "route", "transfer_tail", "run", "Request", "Cluster", "Costs", "Trace"]

Request = namedtuple("Request", "arrival prompt output")
Cluster = namedtuple("Cluster", "prompt token mixed layers bytes_per_token mode memory", defaults=(float("inf"),))
Costs = namedtuple("Costs", "prompt_time token_time transfer_time")
Trace = namedtuple("Trace", "prompt_machine token_machine times")


def simulate(requests, cluster, costs):
    """The definition: what happens, event by event. One `Trace` per request: its machines, and when each token was emitted.

    >>> costs = Costs(lambda tokens: tokens, lambda batch: 10, lambda size: size)
    >>> simulate([Request(0, 4, 3)], Cluster(1, 1, 0, 2, 1, "serialised"), costs)          # read 4, move 2 + 2, write 10, 10
    [Trace(prompt_machine=0, token_machine=1, times=[4, 18.0, 28.0])]
    """
    n = cluster.prompt + cluster.token + cluster.mixed
    pair, times = {}, [[] for _ in requests]
    prompts, running, waiting = ([[] for _ in range(n)] for _ in range(3))  # requests to read, that write, whose caches are there
    busy = [None] * n                                                 # what a machine is doing: (phase, requests)
    events = [(request.arrival, 2, i) for i, request in enumerate(requests)]
    while events:
        now = min(events)[0]
        while events and min(events)[0] == now:
            _, kind, i = event = min(events)
            events.remove(event)
            if kind == 0:                                             # machine i has finished what it was doing
                (phase, ids), busy[i] = busy[i], None
                for r in ids:
                    times[r].append(now)
                    if phase == "prompt" and requests[r].output > 1:
                        events.append((now + _tail(requests, r, ids, pair[r], cluster, costs), 1, r))
                running[i] = [r for r in running[i] if len(times[r]) < requests[r].output]
            elif kind == 1:                                           # the cache of request i is there
                waiting[pair[i][1]].append(i)
            else:                                                     # request i arrives
                unread = [sum(requests[r].prompt for r in pair if pair[r][0] == j and not times[r]) for j in range(n)]
                unwritten = [sum(requests[r].output - len(times[r]) for r in pair if pair[r][1] == j) for j in range(n)]
                pair[i] = route(unread, unwritten, cluster)
                prompts[pair[i][0]].append(i)
        for j in range(n):
            if busy[j] is None and prompts[j]:
                read = lambda ids: sum(requests[r].prompt for r in ids)
                batch = [prompts[j].pop(0)]
                while prompts[j] and read([*batch, prompts[j][0]]) <= 2048:
                    batch.append(prompts[j].pop(0))
                busy[j] = "prompt", batch
                events.append((now + costs.prompt_time(read(batch)), 0, j))
            elif busy[j] is None:
                size = lambda ids: sum(requests[r].prompt + requests[r].output for r in ids)
                while waiting[j] and (not running[j] or size([*running[j], waiting[j][0]]) <= cluster.memory):
                    running[j] = [*running[j], waiting[j].pop(0)]
                if running[j]:
                    busy[j] = "token", running[j]
                    events.append((now + costs.token_time(len(running[j])), 0, j))
    return [Trace(*pair[r], emitted) for r, emitted in enumerate(times)]


def route(unread, unwritten, cluster):
    """Both machines of a request, each with the fewest tokens before it: to read and to write. Ties go to its own pool, then to the lowest.

    >>> route([5, 3, 0, 9], [0, 0, 7, 7], Cluster(2, 1, 1, 1, 1, "layerwise"))
    (1, 2)
    """
    home = cluster.prompt + cluster.token
    readers, writers = ([*pool, *range(home, home + cluster.mixed)] for pool in (range(cluster.prompt), range(cluster.prompt, home)))
    return min(readers, key=lambda j: unread[j]), min(writers, key=lambda j: unwritten[j])


def transfer_tail(layers, compute, transfer, mode):
    """How long after the last layer of the prompt the last layer's cache has arrived; times are per layer."""
    return layers * transfer if mode == "serialised" else transfer + (layers - 1) * max(0, transfer - compute)


def run(model, prompt, output):
    """The hand-over itself: the tokens of one request, greedily, of a `model` (embed, layers, head): `embed(tokens, position)` gives
    rows, a layer maps rows and the cache of earlier ones, or None, to rows and the cache of all, `head(row)` is a token."""
    embed, layers, head = model
    z, moved = embed(prompt, 0), []                                   # the prompt machine
    for layer in layers:
        z, cache = layer(z, None)
        moved.append(cache)                                           # may leave now, while later layers compute
    tokens = [head(z[-1])]
    for position in range(len(prompt), len(prompt) + output - 1):     # the token machine: all it knows is `moved` and the first token
        z = embed(tokens[-1:], position)
        for i, layer in enumerate(layers):
            z, moved[i] = layer(z, moved[i])
        tokens.append(head(z[-1]))
    return tokens


def _tail(requests, r, batch, pair, cluster, costs):
    compute = costs.prompt_time(sum(requests[i].prompt for i in batch)) / cluster.layers
    transfer = costs.transfer_time(requests[r].prompt * cluster.bytes_per_token / cluster.layers)
    return 0 if pair[0] == pair[1] else transfer_tail(cluster.layers, compute, transfer, cluster.mode)  # one machine: nothing moves
