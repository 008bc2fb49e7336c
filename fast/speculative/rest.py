"""REST on tensors, wherever they lie: the suffix array by doubling, all contexts and all lengths of match in one bisection.

`index` sorts by the first token, then by the first two, four, eight: log2 of the longest repeated passage sorts of T numbers, once for a
corpus. In a run of the suffix array the continuations stand sorted, so the prefixes of one kind stand together and counting them is finding
where they change. How many continuations a batch has decides about shapes: the host waits for that number once, and memory is theirs
times the depth.
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
    start = store[1][low[owner] + offset] + n[owner]
    after = _read(store[0], start[:, None] + torch.arange(depth, device=context.device))  # (R, depth) sorted continuations
    node, row, deep, count, parent = _tree(after, owner, nodes)
    request = owner[row]
    tokens[request, node] = after[row, deep].to(tokens.dtype)
    parents[request, node] = parent.to(tokens.dtype)
    counts[request, node] = count.to(tokens.dtype)
    counts[:, 0] = torch.zeros_like(length).index_add_(0, owner, (after[:, 0] >= 0).long()).to(tokens.dtype)
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


def _tree(after, owner, nodes):
    """The nodes of all trees: number in the tree, first row, depth, count, and the parent's number; each one array."""
    R = len(after)
    alive = (after >= 0).long().cumprod(1).bool().T.flatten()  # (depth R), one depth behind the other
    changes = torch.ones_like(after, dtype=torch.bool)
    changes[1:] = ((after[1:] != after[:-1]) | (owner[1:] != owner[:-1])[:, None]).long().cummax(1).values.bool()
    first = changes.T.flatten().nonzero()[:, 0]  # where each prefix stands for the first time
    deep, row = first // R, first % R
    count = torch.where(alive[first], torch.diff(first, append=first.new_tensor([after.numel()])), 0)
    order = count.argsort(descending=True, stable=True)  # of equals the shallower, then the lexicographically lower
    order = order[owner[row[order]].argsort(stable=True)]
    request = owner[row[order]]
    number = torch.empty_like(first)
    number[order] = 1 + torch.arange(len(first), device=first.device) - torch.searchsorted(request, request)
    parent = number[torch.searchsorted(first, (deep - 1) * R + row, right=True) - 1]
    parent = torch.where(deep > 0, parent, 0)
    kept = (count > 0) & (number <= nodes)
    return tuple(x[kept] for x in (number, row, deep, count, parent))
