"""REST on tensors, wherever they lie: the suffix array by doubling, all contexts and all lengths of match in one bisection.

`index` sorts by the first token, then by the first two, four, eight: log2 of the longest repeated passage sorts of T numbers, once for a
corpus. In a run of the suffix array the continuations stand sorted, so equal prefixes stand together, and counting them is finding where
they change. They are read token by token, and only those go on being read whose prefix is still among the commonest of its length. How many
there are decides about shapes, so the host waits for that number once per token of depth.
"""

from typing import NamedTuple

import torch

from twofold.fast import checks

__all__ = ["index", "draft"]


class Store(NamedTuple):
    tokens: torch.Tensor  # (T,)
    places: torch.Tensor  # (T,), sorted by the suffixes that start there


class Tree(NamedTuple):
    tokens: torch.Tensor  # (B, nodes + 1), -1 at the root and behind the last node
    parents: torch.Tensor  # the same
    counts: torch.Tensor  # how often each stands in the store; -1 behind the last node
    lengths: torch.Tensor  # (B,), nodes with the root


def index(tokens):
    """The store of a text `(T,)` of ids; -1 ends a part of it."""
    checks.shape(tokens=(tokens, "T"))
    checks.dtypes(torch.int64, torch.int32, tokens=tokens)
    T, span = len(tokens), 1
    rank = torch.unique(tokens, return_inverse=True)[1] + 1  # of the suffix by its first `span` tokens; 0 is the end
    places = rank.argsort()
    while T and int(rank[places[-1]]) < T:
        key = rank * (T + 1) + torch.nn.functional.pad(rank[span:], (0, min(span, T)))  # by twice as many
        key, places = key.sort()
        changes = torch.cat([key.new_ones(1), (key[1:] != key[:-1]).long()])
        rank = torch.empty_like(rank).scatter_(0, places, changes.cumsum(0))
        span *= 2
    return Store(tokens, places)


def draft(store, context, n_max, depth, nodes, *, lengths=None):
    """The trees of a batch: tokens, parents and counts `(B, nodes + 1)`, and how many nodes each has, the root counted, `(B,)`.

    context `(B, L)`, of which request b uses the first `lengths[b]` tokens (0 … L, clamped; default L).
    """
    checks.shape(tokens=(store[0], "T"), places=(store[1], "T"))
    checks.shape(context=(context, "B L"))
    checks.dtypes(torch.int64, torch.int32, context=context, lengths=lengths)
    for name, size in (("n_max", n_max), ("depth", depth), ("nodes", nodes)):
        if size < 0:
            raise ValueError(f"{name} must be at least 0, not {size}")
    if context.device != store[0].device:
        raise ValueError(f"context must be on the device of the store, {store[0].device}, not on {context.device}")
    if lengths is not None:
        checks.shape(context=(context, "B L"), lengths=(lengths, "B"))
    B, L = context.shape
    length = torch.full((B,), L, device=context.device) if lengths is None else lengths.to(context.device).long().clamp(0, L)
    n, low, high = _longest(store, context, length, min(n_max, L) if depth else 0)
    tokens = context.new_full((B, nodes + 1), -1)
    parents, counts = tokens.clone(), tokens.clone()
    counts[:, 0] = 0
    sizes = high - low
    owner = torch.repeat_interleave(torch.arange(B, device=context.device), sizes)  # (R,) occurrences, those of a request together
    if not len(owner):
        return Tree(tokens, parents, counts, torch.ones_like(tokens[:, 0]))
    offset = torch.arange(len(owner), device=context.device) - (sizes.cumsum(0) - sizes)[owner]
    start = store[1][low[owner] + offset] + n[owner]  # where the continuations stand, sorted
    counts[:, 0] = torch.zeros_like(length).index_add_(0, owner, (_read(store[0], start) >= 0).long()).to(tokens.dtype)
    request, node, token, parent, count = _tree(store[0], start, owner, depth, nodes)
    for out, value in ((tokens, token), (parents, parent), (counts, count)):
        out[request, node] = value.to(out.dtype)
    return Tree(tokens, parents, counts, 1 + (tokens[:, 1:] >= 0).sum(1).to(tokens.dtype))


def _longest(store, context, length, most):
    """Per request the longest match that something follows, of at most `most` tokens, and its run of the suffix array; all `(B,)`."""
    tokens, places = store
    B, device = len(context), context.device
    if not (most and len(tokens) and B):
        return (torch.zeros_like(length),) * 3
    n, j = torch.arange(1, most + 1, device=device), torch.arange(most, device=device)
    at = length[:, None, None] - n[:, None] + j  # where the last n tokens stand   (B, most, most)
    inside = j < n[:, None]
    wanted = context.long().gather(1, at.clamp(0, context.shape[1] - 1).flatten(1)).view(at.shape)
    upper = torch.tensor([0, 1], device=device)[:, None, None]  # the run's start is the first not below, its end the first above
    low = torch.zeros(2, B, most, dtype=torch.int64, device=device)
    high = torch.full_like(low, len(tokens))
    for _ in range(len(tokens).bit_length()):
        middle = (low + high) // 2
        found = _read(tokens, places[middle.clamp(max=len(tokens) - 1)][..., None] + j)
        order = torch.where(inside, (found - wanted).sign(), 0)  # (2, B, most, most)
        first = (order != 0).long().argmax(-1, keepdim=True)
        right = (order.gather(-1, first)[..., 0] < upper) & (low < high)
        low, high = torch.where(right, middle + 1, low), torch.where(right, high, torch.minimum(middle, high))
    begin, end = low
    last = places[(end - 1).clamp(min=0)]  # an end of text sorts first: if anything goes on, this one does
    follows = (begin < end) & (_read(tokens, last + n) >= 0) & (n <= length[:, None])  # (B, most)
    longest = (follows * n).amax(1)
    pick = (longest - 1).clamp(min=0)[:, None]
    begin, end = (x.gather(1, pick)[:, 0] * (longest > 0) for x in (begin, end))
    return longest, begin, end


def _read(tokens, places):
    """The tokens at these places, int64; -1 behind the end."""
    return torch.where(places < len(tokens), tokens[places.clamp(max=len(tokens) - 1)].long(), -1)


def _tree(tokens, start, owner, depth, nodes):
    """The nodes of all trees: request, number in its tree, token, the parent's number, count; each one array.

    A prefix that is not among the `nodes` commonest of its length cannot be in the tree, nor can anything below it.
    """
    group, request = owner, torch.arange(0, device=owner.device)  # the continuations' common prefix: a candidate's number
    levels = []
    for deep in range(depth):
        token = _read(tokens, start + deep)
        going = token >= 0
        token, start, group = token[going], start[going], group[going]
        if not len(token):
            break
        changes = torch.ones_like(token, dtype=torch.bool)
        changes[1:] = (token[1:] != token[:-1]) | (group[1:] != group[:-1])
        first = changes.nonzero()[:, 0]
        count, parent = torch.diff(first, append=first.new_tensor([len(token)])), group[first]
        whose = request[parent] if deep else parent
        kept = _commonest(whose, count, nodes)[0].sort().values
        levels.append((whose[kept], token[first[kept]], parent[kept] if deep else torch.full_like(kept, -1), count[kept]))
        number = torch.full_like(first, -1)
        number[kept] = len(request) + torch.arange(len(kept), device=kept.device)
        request = torch.cat([request, whose[kept]])
        group = number[changes.cumsum(0) - 1]
        start, group = start[group >= 0], group[group >= 0]
    if not levels:
        return (owner[:0],) * 5
    request, token, parent, count = (torch.cat(each) for each in zip(*levels, strict=True))
    kept, rank = _commonest(request, count, nodes)
    node = torch.zeros(len(request) + 1, dtype=torch.int64, device=owner.device)  # the last one is the root's
    node[kept] = rank + 1
    return request[kept], rank + 1, token[kept], node[parent[kept]], count[kept]


def _commonest(request, count, most):
    """Which are the `most` of greatest count of each request, of equals the first, and the rank of each in its request."""
    order = count.argsort(descending=True, stable=True)
    order = order[request[order].argsort(stable=True)]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(request[order], request[order])
    return order[rank < most], rank[rank < most]
