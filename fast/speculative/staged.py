"""Staged speculation on a batch: models draft for each other, and the last one's tokens and rows are a draft for the target.

A model is a callable `model(tokens, ends) -> (B, n, V)` as in `sampling`: row [b, i] is the law of the token that follows
`tokens[b, : ends[b, i]]`. Requests go through their rounds side by side; one that has its tokens takes no further part.

Whose number is whose: everything that a draft draws belongs to the role DRAFT of the target's round that begins where the context ends.
Within it numbers are handed out in order, from 0: a round of any stage that judges n guesses takes n + 1 of them, its coins and then its
token, after those that its guesses took. So no two draws of a draft share a number, whatever is refused; the target's own coins and token
have other roles; and since the target's next round begins elsewhere, nothing that this draft drew, kept or not, ever comes up again.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.speculative import chain

__all__ = ["draft"]


def draft(models, context, lengths, *, ends=None, seed=None, request=None, verify=chain.verify):
    """Tokens `(B, lengths[-1])` of the law of `models[-1]`, the smallest model first, and its rows `(B, lengths[-1], V)`.

    context `(B, T)`, of which request b uses the first `ends[b]` tokens (default T). Every draw is a function of `seed`, the request id
    (`request` `(B,)`, default 0 … B - 1) and `ends[b]`. A row that holds a NaN raises: no token can follow it.
    """
    ends, request = _check(models, context, lengths, ends, seed, request)
    uniform = philox.uniform(seed, philox.DRAFT, request, ends, _most_draws(lengths))
    room = torch.zeros(len(context), sum(lengths), dtype=torch.int64, device=context.device)
    tokens = torch.cat([context.long(), room], 1)
    return _stage(models, tokens, ends, lengths, uniform, torch.zeros_like(ends), verify)


def _stage(models, tokens, ends, lengths, uniform, used, verify):
    """Writes its tokens into `tokens` from `ends` on, counts up `used` `(B,)`, and returns tokens and rows."""
    *smaller, model = models
    most, n = lengths[-1], lengths[-2] if smaller else 0
    if most == 0:
        return tokens[:, :0], model(tokens, ends[:, None][:, :0])
    place = torch.arange(n + 1, device=tokens.device)
    written, short, rows = torch.zeros_like(ends), torch.arange(len(ends), device=tokens.device), None
    while rows is None or len(short):
        text, end, at, numbers, taken = tokens[short], (ends + written)[short], written[short], uniform[short], used[short]
        guess, q = text[:, :0], None
        if smaller:
            guess, q = _stage(smaller, text, end, lengths[:-1], numbers, taken, verify)  # and `text` goes on with the guess
        p = model(text, end[:, None] + place)  # one call   (b, n + 1, V)
        coins = numbers.gather(1, taken[:, None] + place)
        kept, token = verify(p, p[:, :0] if q is None else q, guess, accept=coins[:, :n], token=coins[:, n])
        emitted = torch.where(place == kept[:, None], token[:, None], torch.nn.functional.pad(guess, (0, 1)))
        wanted = (place <= kept[:, None]) & (at[:, None] + place < most)  # cut by place
        if (emitted[wanted] < 0).any():
            raise ValueError(f"a row of models[{len(smaller)}] holds a NaN or no mass: no token can be drawn from it")
        request, i = wanted.nonzero(as_tuple=True)
        rows = p.new_zeros(len(ends), most, p.shape[-1]) if rows is None else rows
        rows[short[request], at[request] + i] = p[request, i]
        tokens[short[request], end[request] + i] = emitted[request, i]
        used[short], written[short] = taken + n + 1, at + wanted.sum(1)
        short = (written < most).nonzero()[:, 0]  # the requests that need another round
    return tokens.gather(1, ends[:, None] + torch.arange(most, device=tokens.device)), rows


def _most_draws(lengths):
    """How many numbers a draft can take: each round of a stage emits one token at least."""
    draws = n = 0
    for length in lengths:
        draws, n = length * (draws + n + 1), length
    return draws


def _check(models, context, lengths, ends, seed, request):
    B = checks.shape(context=(context, "B T"))["B"]
    checks.dtypes(torch.int64, torch.int32, context=context, ends=ends, request=request)
    if not models or len(models) != len(lengths):
        raise ValueError(f"models and lengths must be as many, and one at least, not {len(models)} and {len(lengths)}")
    if min(lengths) < 0:
        raise ValueError(f"lengths must be at least 0, not {list(lengths)}")
    if seed is None:
        raise ValueError("give a seed: every draw is a function of it, the request id and the position")
    for name, tensor in (("ends", ends), ("request", request)):
        if tensor is not None:
            checks.shape(context=(context, "B T"), **{name: (tensor, "B")})
    ends = torch.full((B,), context.shape[1], device=context.device) if ends is None else ends.long()
    return ends, torch.arange(B, device=context.device) if request is None else request.long()
