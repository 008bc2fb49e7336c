"""Lookahead decoding on a batch: one masked pass per step scores the window and the candidates of every running request.

A model is a callable `target(context, ends, tokens, places, mask) -> (B, S, V)`: row [b, s] is the law of the token that follows
`tokens[b, s]`, which stands at position `places[b, s]` of the text and sees the first `ends[b]` tokens of `context[b]` and those of
`tokens[b]` at which `mask[s]` is True. That is one forward pass behind a key-value cache of `ends[b]` entries.

The pool of a request is a table of n-grams, `(B, R, N)`, sorted by first token and, under each, from the oldest to the latest; -1 is
padding. Collecting and looking up are sorts and comparisons of the whole batch, with no loop over requests or n-grams.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.likeliest import likeliest
from twofold.fast.speculative import match

__all__ = ["mask", "step", "decode"]

NONE = torch.iinfo(torch.int64).max  # a first token behind all others


def mask(W, N, G, *, device=None):
    """Who sees whom in the pass `(S, S)`, S = (N - 1)(W + G): the window row by row, then G candidates of N - 1 tokens."""
    _sizes(W, N, G)
    window, candidate = torch.arange((N - 1) * W, device=device), torch.arange(G * (N - 1), device=device)
    column, ngram = window % W, candidate // (N - 1)
    branch = torch.cat([column, W + ngram])  # (S,)
    depth = torch.cat([window // W, candidate % (N - 1)])
    reach = torch.cat([column, torch.zeros_like(ngram)])  # how far it sees the first row
    own = (branch == branch[:, None]) & (depth <= depth[:, None])
    first_row = (branch < W) & (depth == 0)
    return own | (first_row & (branch <= reach[:, None]))


def step(target, context, window, pool, G, *, lengths=None, seed=None, request=None):
    """One pass: emitted tokens `(B, N)` padded with -1, and the window and pool of the next. Without a `seed` everything is greedy.

    context `(B, T)`, of which request b uses the first `lengths[b]` tokens (default T, at least 1); window `(B, N - 1, W)` with the last of
    these at `[b, 0, 0]`; pool `(B, R, N)`, at the start `(B, 0, N)`. The draws of the token at a position belong to `seed`, the request id
    (`request` `(B,)`, default 0 … B - 1) and that position. A row that is needed and holds a NaN raises: no token can follow it.
    """
    lengths, request = _check(context, lengths, request)
    sizes = checks.shape(context=(context, "B T"), window=(window, "B rows W"), pool=(pool, "B R N"))
    checks.dtypes(torch.int64, window=window, pool=pool)
    B, W, N = (sizes[axis] for axis in ("B", "W", "N"))
    _sizes(W, N, G)
    current = context.long().gather(1, lengths[:, None] - 1)  # (B, 1)
    if sizes["rows"] != N - 1:
        raise ValueError(f"window must have N - 1 = {N - 1} rows, as the pool's n-grams have N tokens, not {sizes['rows']}")
    if (window[:, 0, :1] != current).any():
        raise ValueError("window[b, 0, 0] must be the last token of the context of request b")
    candidates = _candidates(pool, current, G)  # (B, G, N - 1)
    tokens = torch.cat([window.flatten(1), candidates.flatten(1)], 1)
    row = torch.arange(N - 1, device=context.device)
    ahead = torch.cat([(row[:, None] + torch.arange(W, device=context.device)).flatten(), (row + 1).repeat(G)])
    places = lengths[:, None] - 1 + ahead
    p = target(context, lengths - 1, tokens.clamp(min=0), places, mask(W, N, G, device=context.device))  # (B, S, V)
    p = p.contiguous()
    newest = likeliest(p[:, (N - 2) * W : (N - 1) * W], None, False)[0]  # (B, W)
    after = p[:, (N - 1) * W :]  # (B, G (N - 1), V)
    if seed is None:
        best, behind = (likeliest(rows, None, False)[0] for rows in (p[:, :1], after))
        emitted, count = _greedy(best, behind.unflatten(1, (G, N - 1)), candidates)
    else:
        emitted, count = _sampled(p[:, 0], after.unflatten(1, (G, N - 1)), candidates, seed, request, lengths)
    beyond = torch.arange(N, device=context.device) >= count[:, None]
    if (newest < 0).any() or (emitted[~beyond] < 0).any():
        raise ValueError("a row of the target holds a NaN or no mass: no token can follow it")
    emitted = torch.where(beyond, -1, emitted)
    moved = torch.cat([window[:, 1:], newest[:, None]], 1)
    columns = (torch.arange(W, device=context.device) + count[:, None] - 1) % W  # those that were passed come in again on the right
    moved = moved.gather(2, columns[:, None].expand(B, N - 1, W))
    first = torch.arange((N - 1) * W, device=context.device).view(N - 1, W) == 0
    last = emitted.gather(1, count[:, None] - 1)
    ngrams = torch.cat([window, newest[:, None]], 1).transpose(1, 2)  # (B, W, N)
    return emitted, torch.where(first, last[:, :, None], moved), _collected(pool, ngrams, G)


def decode(target, prompt, W, N, G, n, *, lengths=None, seed=None, request=None):
    """The loop: n tokens `(B, n)` after each prompt of at least one, and the target calls of each request `(B,)`.

    Without a `seed` the text is the greedy one. Finished requests take no part.
    """
    start, request = _check(prompt, lengths, request)
    _sizes(W, N, G)
    if n < 0:
        raise ValueError(f"n must be at least 0, not {n}")
    B, device = len(prompt), prompt.device
    text = torch.nn.functional.pad(prompt.long(), (0, n + N))
    ends, calls = start.clone(), torch.zeros_like(start)
    window = torch.zeros(B, N - 1, W, dtype=torch.int64, device=device)
    window[:, 0, 0] = text.gather(1, start[:, None] - 1)[:, 0]
    pool = torch.full((B, 0, N), -1, dtype=torch.int64, device=device)
    rows = torch.arange(B if n else 0, device=device)  # the requests that still run; window and pool are theirs
    while len(rows):
        emitted, window, pool = step(target, text[rows], window, pool, G, lengths=ends[rows], seed=seed, request=request[rows])
        which, place = (emitted >= 0).nonzero(as_tuple=True)
        text[rows[which], ends[rows[which]] + place] = emitted[which, place]
        ends[rows] += (emitted >= 0).sum(1)
        calls[rows] += 1
        running = ends[rows] < start[rows] + n
        rows, window, pool = rows[running], window[running], pool[running]
    return text.gather(1, start[:, None] + torch.arange(n, device=device)), calls


def _candidates(pool, current, G):
    """The n-grams under each request's current token without that token, oldest first `(B, G, N - 1)`; -1 where there are fewer."""
    found = pool[:, :, 0] == current  # (B, R)
    place = torch.where(found, found.long().cumsum(1) - 1, G)  # at most G are found
    out = pool.new_full((len(pool), G + 1, pool.shape[2] - 1), -1)  # what was not found goes to a last row
    return out.scatter(1, place[:, :, None].expand(-1, -1, out.shape[2]), pool[:, :, 1:])[:, :G]


def _greedy(best, after, candidates):
    """The longest candidate that agrees with the target, and the token behind it: tokens `(B, N)`, of which `(B,)` count.

    The target's likeliest tokens are best `(B, 1)` after the current token and after `(B, G, N - 1)` after each candidate's tokens.
    """
    candidates = torch.nn.functional.pad(candidates, (0, 0, 0, 1), value=-1)  # one that agrees nowhere, as there may be none
    after = torch.nn.functional.pad(after, (0, 0, 0, 1))
    own = torch.cat([best[:, :, None].expand(-1, len(after[0]), 1), after], 2)  # the target's token at each place (B, G + 1, N)
    agreed = ((candidates == own[:, :, :-1]) & (candidates >= 0)).long().cumprod(2).sum(2)  # (B, G + 1)
    longest, which = agreed.max(1)
    return own[torch.arange(len(own), device=own.device), which], longest + 1


def _sampled(p, after, candidates, seed, request, lengths):
    """Place by place the candidates that still agree, tried one after another: tokens `(B, N)`, of which `(B,)` count.

    The target's rows are p `(B, V)` after the current token and after `(B, G, N - 1, V)` after each candidate's tokens. Each place draws
    as a round of its own that begins there.
    """
    (B, G, length), device = candidates.shape, candidates.device
    agrees, going = torch.ones(B, G, dtype=torch.bool, device=device), torch.ones(B, dtype=torch.bool, device=device)
    emitted, count = torch.full((B, length + 1), -1, dtype=torch.int64, device=device), torch.zeros_like(lengths)
    for place in range(length + 1):
        drafts = torch.where(agrees, candidates[:, :, place], -1) if place < length else candidates[:, :0, 0]
        token, accepted = match.sequential(p, _distinct(drafts), seed=seed, request=request, position=lengths + place)
        emitted[:, place] = token
        count += going
        going = going & accepted
        if place == length or not going.any():
            return emitted, count
        agrees = agrees & (drafts == token[:, None]) & going[:, None]
        p = after[torch.arange(B, device=device), agrees.long().argmax(1), place]  # of the first that agrees


def _distinct(drafts):
    """Each draft once, in order, the rest of the row padded with -1: the i-th coin belongs to the i-th distinct draft."""
    again = (drafts[:, :, None] == drafts[:, None, :]).tril(-1).any(2)
    known = (drafts >= 0) & ~again
    return torch.where(known, drafts, -1).gather(1, (~known).long().argsort(dim=1, stable=True))


def _collected(pool, ngrams, G):
    """The pool with these n-grams `(B, W, N)` as the latest under their first tokens, and at most G under each."""
    every = torch.cat([pool, ngrams], 1)  # (B, M, N)
    places, new = torch.arange(every.shape[1], device=pool.device), ngrams.shape[1]
    later = places[-new:] > places[:, None]  # (M, W)
    again = ((every[:, :, None] == ngrams[:, None]).all(3) & later).any(2)  # (B, M)
    key = torch.where((every[:, :, 0] < 0) | again, NONE, every[:, :, 0])
    key, order = key.sort(dim=1, stable=True)  # by first token, and as they came
    from_the_latest = torch.searchsorted(key, key, right=True) - places
    kept = (key < NONE) & (from_the_latest <= G)
    order = order.gather(1, (~kept).long().argsort(dim=1, stable=True))[:, : int(kept.sum(1).max()) if len(kept) else 0]
    left = torch.arange(order.shape[1], device=pool.device) < kept.sum(1, keepdim=True)
    return torch.where(left[:, :, None], every.gather(1, order[:, :, None].expand(-1, -1, every.shape[2])), -1)


def _sizes(W, N, G):
    if W < 1 or N < 2 or G < 0:
        raise ValueError(f"W must be at least 1, N at least 2 and G at least 0, not {W}, {N} and {G}")


def _check(context, lengths, request):
    sizes = checks.shape(context=(context, "B T"))
    checks.dtypes(torch.int64, torch.int32, context=context, lengths=lengths, request=request)
    for name, tensor in (("lengths", lengths), ("request", request)):
        if tensor is not None:
            checks.shape(context=(context, "B T"), **{name: (tensor, "B")})
    lengths = torch.full((sizes["B"],), sizes["T"], device=context.device) if lengths is None else lengths.long()
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= sizes["T"]:
        raise ValueError(f"lengths must lie in 1 … {sizes['T']}, not in {int(lengths.min())} … {int(lengths.max())}")
    return lengths, torch.arange(sizes["B"], device=context.device) if request is None else request.long()
