"""Speculative sampling on a batch: requests draft together, are verified together, and advance each by its own number of tokens.

A model is a callable `model(tokens, ends) -> (B, n, V)`: row [b, i] is the law of the token that follows `tokens[b, : ends[b, i]]`.
What stands in `tokens` beyond is not part of the context. A model with a key-value cache must cover exactly the context and the kept
draft tokens after a round; `ends` tells it where each request stands. Every draw belongs to (seed, request id, where its round begins),
so a request's text does not depend on the batch around it.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.speculative import chain

__all__ = ["step", "generate"]


def step(target, drafter, context, gamma, *, lengths=None, drafted=None, seed=None, request=None, verify=chain.verify):
    """One round: emitted tokens `(B, gamma + 1)` padded with -1, and how many each request emitted `(B,)`.

    context `(B, T)`, of which request b uses the first `lengths[b]` tokens (default T); `drafted` `(B,)` lets it use fewer than gamma
    drafts.
    """
    lengths, request = _check(context, gamma, lengths, seed, request)
    B = len(context)
    tokens = torch.cat([context.long(), torch.zeros(B, gamma, dtype=torch.int64, device=context.device)], 1)
    here, none = torch.arange(B, device=context.device), torch.zeros(B, 0, device=context.device)
    draft, q = torch.zeros(B, 0, dtype=torch.int64, device=context.device), []
    uniform = philox.uniform(seed, philox.DRAFT, request, lengths, gamma)  # (B, gamma)
    for i in range(gamma):
        q.append(drafter(tokens, (lengths + i)[:, None]))  # (B, 1, V)
        drawn = chain.verify(q[i], q[i][:, :0], draft[:, :0], accept=none, token=uniform[:, i])[1]  # nothing to verify: a draw from the row
        draft = torch.cat([draft, drawn[:, None]], 1)
        tokens[here, lengths + i] = drawn.clamp(min=0)
    p = target(tokens, lengths[:, None] + torch.arange(gamma + 1, device=context.device))  # one call   (B, gamma + 1, V)
    q = torch.cat(q, 1) if gamma else p[:, :0]
    kept, token = verify(p, q, draft, lengths=drafted, seed=seed, request=request, position=lengths)
    places = torch.arange(gamma + 1, device=context.device)
    emitted = torch.where(places == kept[:, None], token[:, None], torch.nn.functional.pad(draft, (0, 1)))
    emitted = torch.where(places > kept[:, None], -1, emitted)
    return emitted, kept + 1


def generate(target, drafter, prompt, gamma, max_new, *, lengths=None, eos=None, seed=None, request=None, verify=chain.verify):
    """The loop: new tokens `(B, max_new)` padded with -1, and target calls per request `(B,)`. A request ends at `eos` or at `max_new`.

    The last round of a request drafts only what can still be used. A target row with a NaN raises: no token can follow it.
    """
    start, request = _check(prompt, gamma, lengths, seed, request)
    B, width = prompt.shape
    tokens = torch.cat([prompt.long(), torch.zeros(B, max_new, dtype=torch.int64, device=prompt.device)], 1)
    new = torch.full((B, max_new), -1, dtype=torch.int64, device=prompt.device)
    written, calls = torch.zeros_like(start), torch.zeros_like(start)
    running = torch.full((B,), max_new > 0, device=prompt.device)
    while running.any():
        rows = running.nonzero()[:, 0]  # finished requests take no part
        useful = (max_new - written[rows] - 1).clamp(max=gamma)  # the verifier adds one of its own
        ends = start[rows] + written[rows]
        emitted, count = step(
            target, drafter, tokens[rows], int(useful.max()), lengths=ends, drafted=useful, seed=seed, request=request[rows], verify=verify
        )
        places = torch.arange(emitted.shape[1], device=prompt.device)
        if (emitted[places < count[:, None]] < 0).any():
            raise ValueError("a row of the target holds a NaN or no mass: no token can be drawn from it")
        ended = torch.zeros_like(useful, dtype=torch.bool)
        if eos is not None:
            stop = torch.where((emitted == eos) & (places < count[:, None]), places, emitted.shape[1]).amin(1)
            ended = stop < count
            count = torch.where(ended, stop + 1, count)
        which, place = (places < count[:, None]).nonzero(as_tuple=True)
        new[rows[which], written[rows][which] + place] = emitted[which, place]
        tokens[rows[which], ends[which] + place] = emitted[which, place]
        written[rows] += count
        calls[rows] += 1
        running[rows] = ~ended & (written[rows] < max_new)
    return new, calls


def _check(context, gamma, lengths, seed, request):
    B = checks.shape(context=(context, "B T"))["B"]
    checks.dtypes(torch.int64, torch.int32, context=context, lengths=lengths, request=request)
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    if seed is None:
        raise ValueError("give a seed: every draw is a function of it, the request id and the position")
    for name, tensor in (("lengths", lengths), ("request", request)):
        if tensor is not None:
            checks.shape(context=(context, "B T"), **{name: (tensor, "B")})
    lengths = torch.full((B,), context.shape[1], device=context.device) if lengths is None else lengths.long()
    return lengths, torch.arange(B, device=context.device) if request is None else request.long()
