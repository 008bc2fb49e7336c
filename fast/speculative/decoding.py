"""The decoding loop on a batch: requests are drafted, scored and verified together, and advance each by its own number of tokens.

Conventions. `text (B, T)` holds what was written, of which request b uses the first `ends[b]` tokens; what stands beyond is not part of it.
A draft is `(tokens (B, N), parents (B, N), nodes (B,), q)`: trees, node 0 the last written token (filled in here), `nodes` counting the
root; q `(B, N, V)` holds what each node's children were drawn from, None where they are certain. A finished request has no nodes.

- `score(text, ends, tokens, parents, nodes) -> (B, N, V)`: the target's pass. `uncached` and `cached` make one from a model.
- `propose(text, ends, room, seed=, request=) -> draft`; `room (B,)` is how many drafted tokens a request can still use.
- `warp(rows, text, ends, tokens, parents) -> (B, N, V)`: the law that is sampled from; rows as they are without it.
- `verify(p, q, tokens, parents, lengths=, seed=, request=, position=) -> (path (B, D), token (B,))`: any tree verifier.
- `keep(ends, path)`: which nodes stay; `ends` from before the round. `report(new, written)` is called after every round.

A model is `model(tokens, ends (B, n)) -> (B, n, V)`: row [b, i] follows `tokens[b, : ends[b, i]]`. With a cache it is
`read(cache, start, tokens, parents, nodes) -> (B, N, V)`: `cache` is a list of tensors `(B, S, ...)`; a node sees rows before `start[b]`
and its own ancestors, and its entry is written into row `start[b]` + its id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.speculative import chain, tree

__all__ = ["generate", "uncached", "cached", "draft_model", "remembering", "on_chain"]


def generate(
    score, propose, verify, prompt, max_new, *, lengths=None, eos=None, warp=None, keep=None, report=None, seed=None, request=None
):
    """New tokens `(B, max_new)` padded with -1, and passes of the target per request `(B,)`; a request ends at `eos` or at `max_new`.

    Every draw belongs to (seed, request id, the position at which its round begins), so a request's text does not depend on the batch
    around it. A row of the target with a NaN raises: no token can follow it.
    """
    text, ends, request = _start(prompt, max_new, lengths, seed, request)
    start, passes = ends, torch.zeros_like(ends)
    left = torch.full_like(ends, max_new)
    while (running := left > 0).any():
        tokens, parents, nodes, q = propose(text, ends, left - 1, seed=seed, request=request)
        tokens, nodes = torch.cat([_last(text, ends), tokens[:, 1:].long()], 1), torch.where(running, nodes, 0)
        rows = score(text, ends, tokens, parents, nodes)
        p = rows if warp is None else warp(rows, text, ends, tokens, parents)
        q = torch.zeros_like(p) if q is not None and tokens.shape[1] == 1 else q  # nobody drew anything
        path, token = verify(p, q, tokens, parents, lengths=nodes, seed=seed, request=request, position=ends)
        path = torch.where(running[:, None], path.long(), -1)
        emitted, count = _emitted(tokens, path, token, left, eos)
        if keep is not None:
            keep(ends, path)
        places = torch.arange(emitted.shape[1], device=text.device)
        written = places < count[:, None]
        if (emitted[written] < 0).any():
            raise ValueError("a row of the target holds a NaN or no mass: no token can be drawn from it")
        text = _written(text, ends, torch.where(written, emitted, -1))
        ended = (written & (emitted == eos)).any(1) if eos is not None else torch.zeros_like(running)
        ends, passes = ends + count, passes + running.long()
        left = torch.where(ended, 0, left - count)
        if report is not None:
            report(_new(text, start, ends, max_new), ends - start)
    return _new(text, start, ends, max_new), passes


def uncached(target):
    """The `score` of a model without a cache: it reads a text of its own for every node, or one for all where no tree has branches."""

    def score(text, ends, tokens, parents, nodes):
        (B, N), steps = tokens.shape, torch.arange(tokens.shape[1], device=text.device)
        if (parents == steps - 1).all():
            whole = _written(torch.nn.functional.pad(text, (0, N)), ends, torch.where(steps[1:] < nodes[:, None], tokens[:, 1:], -1))
            return target(whole, ends[:, None] + torch.minimum(steps, (nodes - 1).clamp(min=0)[:, None]))
        seen, depth = tree.mask(parents, lengths=nodes), tree.depth(parents, lengths=nodes).long()
        lines = torch.where(seen & (depth[:, None] > 0), depth[:, None] - 1, N)  # each ancestor's place behind the text     (B, N, N)
        lines = tokens.new_full((B, N, N + 1), -1).scatter(2, lines, tokens[:, None].expand(B, N, N))[:, :, :N]
        whole = torch.nn.functional.pad(text, (0, N))[:, None].expand(B, N, -1).reshape(B * N, -1)
        flat = ends.repeat_interleave(N)
        return target(_written(whole, flat, lines.reshape(B * N, N)), (flat + depth.clamp(min=0).flatten())[:, None]).view(B, N, -1)

    return score


def cached(read, prompt, *, cache=(), lengths=None):
    """`score` and `keep` of a model with a cache, which reads the prompts, at least one token each, but for their last tokens at once.

    `prompt` `(B, T)` and `lengths` are those of `generate`. The cache needs rows for the longest text and a tree.
    """
    ends = torch.full((len(prompt),), prompt.shape[1], device=prompt.device) if lengths is None else lengths.long()
    if len(prompt) and int(ends.min()) < 1:
        raise ValueError("prompt must hold at least one token per request: the last one is the root of the first tree")
    if (ends > 1).any():
        _read_chain(read, cache, torch.zeros_like(ends), prompt.long(), ends - 1)

    def score(text, ends, tokens, parents, nodes):
        return read(cache, (ends - 1).clamp(min=0), tokens, parents, nodes)

    def keep(ends, path):
        for entries in cache:
            tree.commit(entries, path, start=ends - 1, in_place=True)

    return score, keep


def draft_model(drafter, gamma):
    """A `propose` that draws chains of at most gamma tokens from a model, those of a request by its own counters."""
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")

    def propose(text, ends, room, *, seed, request):
        B, length = len(text), room.clamp(0, gamma)
        n = int(length.max())
        draft, q, none = torch.zeros(B, 0, dtype=torch.int64, device=text.device), [], torch.zeros(B, 0, device=text.device)
        uniform = philox.uniform(seed, philox.DRAFT, request, ends, n)
        whole = torch.nn.functional.pad(text, (0, n))
        for i in range(n):
            q.append(drafter(whole, (ends + i)[:, None]))  # (B, 1, V)
            drawn = chain.verify(q[i], q[i][:, :0], draft[:, :0], accept=none, token=uniform[:, i])[1]  # a draw from the row
            whole, draft = _written(whole, ends + i, drawn[:, None]), torch.cat([draft, drawn[:, None]], 1)
        tokens = torch.nn.functional.pad(draft, (1, 0))
        parents = torch.arange(-1, n, device=text.device).expand(B, n + 1)
        return tokens, parents, length + 1, torch.cat([*q, *q[-1:]], 1) if q else uniform[:, None]  # nobody drew a child of the last node

    return propose


def remembering(read, *, cache=()):
    """A model with a cache as one without: it goes back to what its cache and the text share, and reads on. One row per request."""
    seen = None  # the tokens that the cache's entries belong to, -1 behind them

    def model(tokens, ends):
        nonlocal seen
        if ends.shape[1] != 1:
            raise ValueError(f"ends must have shape (B, 1), one row per request, not {tuple(ends.shape)}")
        ends, places = ends[:, 0], torch.arange(tokens.shape[1], device=tokens.device)
        before = tokens.new_full(tokens.shape, -1) if seen is None else seen
        before = torch.nn.functional.pad(before, (0, max(len(places) - before.shape[1], 0)), value=-1)[:, : len(places)]
        alike = (before == tokens) & (places < ends[:, None] - 1)  # the last token is read anew: its row is wanted
        shared = alike.long().cumprod(1).sum(1)  # (B,)
        rows = _read_chain(read, cache, shared, tokens, ends)
        seen = torch.where(places < ends[:, None], tokens, -1)
        return rows.gather(1, (ends - shared - 1)[:, None, None].expand(-1, 1, rows.shape[2]))

    return model


def on_chain(verify):
    """A chain verifier of `fast` as a verifier of trees without branches; one without q where there is no q."""

    def verify_tree(p, q, tokens, parents, *, lengths, seed, request, position):
        draft, n = tokens[:, 1:], tokens.shape[1] - 1
        rows = (p,) if q is None else (p, q[:, :n])
        kept, token = verify(*rows, draft, lengths=(lengths - 1).clamp(min=0), seed=seed, request=request, position=position)
        node = torch.arange(1, n + 1, device=p.device).expand(len(p), n)
        return torch.where(node <= kept[:, None], node, -1), token

    return verify_tree


def _start(prompt, max_new, lengths, seed, request):
    B, T = checks.shape(prompt=(prompt, "B T")).values()
    checks.dtypes(torch.int64, torch.int32, prompt=prompt, lengths=lengths, request=request)
    for name, tensor in (("lengths", lengths), ("request", request)):
        if tensor is not None:
            checks.shape(**{name: (tensor, f"{B}")})
    if max_new < 0:
        raise ValueError(f"max_new must be at least 0, not {max_new}")
    if seed is None:
        raise ValueError("give a seed: every draw of the loop belongs to it")
    if lengths is not None and not bool(((lengths >= 0) & (lengths <= T)).all()):
        raise ValueError(f"lengths must lie in 0 … {T}, not {lengths.tolist()}")
    ends = torch.full((B,), T, dtype=torch.int64, device=prompt.device) if lengths is None else lengths.long()
    request = torch.arange(B, device=prompt.device) if request is None else request.long()
    return torch.nn.functional.pad(prompt.long(), (0, max_new)), ends, request


def _last(text, ends):
    """The last written token `(B, 1)`; 0 where nothing is written."""
    if not text.shape[1]:
        return text.new_zeros(len(text), 1)
    return torch.where(ends[:, None] > 0, text.gather(1, (ends - 1).clamp(min=0)[:, None]), 0)


def _emitted(tokens, path, token, left, eos):
    """What a round writes `(B, D + 1)`: the path's tokens and the one behind them, and how many of these count `(B,)`."""
    kept = (path >= 0).sum(1)  # (B,)
    emitted = torch.nn.functional.pad(tokens.gather(1, path.clamp(min=0)), (0, 1)).scatter(1, kept[:, None], token.long()[:, None])
    count = torch.minimum(kept + 1, left.clamp(min=0))
    if eos is not None:
        places = torch.arange(emitted.shape[1], device=tokens.device)
        first = torch.where((emitted == eos) & (places < count[:, None]), places + 1, emitted.shape[1]).amin(1)
        count = torch.minimum(count, first)
    return emitted, count


def _written(text, ends, tokens):
    """The text with tokens `(B, n)` from `ends` on, those of at least 0; a new tensor."""
    spare = torch.nn.functional.pad(text, (0, 1))  # what is not written goes to a last column
    at = ends[:, None] + torch.arange(tokens.shape[1], device=text.device)
    return spare.scatter(1, torch.where((tokens >= 0) & (at < text.shape[1]), at, text.shape[1]), tokens)[:, :-1]


def _new(text, start, ends, max_new):
    at = start[:, None] + torch.arange(max_new, device=text.device)  # (B, max_new)
    return torch.where(at < ends[:, None], text.gather(1, at.clamp(max=max(text.shape[1] - 1, 0))), -1) if max_new else text[:, :0]


def _read_chain(read, cache, start, text, ends):
    """Let a cached model read the tokens from `start` to `ends` of every text; rows `(B, n, V)`, those past a text's end mean nothing."""
    count = (ends - start).clamp(min=0)
    n = int(count.max())
    steps = torch.arange(n, device=text.device)
    at = (start[:, None] + steps).clamp(max=max(text.shape[1] - 1, 0))
    tokens = torch.where(steps < count[:, None], text.gather(1, at), 0)
    return read(cache, start, tokens, (steps - 1).expand(len(text), n), count)
