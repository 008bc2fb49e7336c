"""Big Little Decoder on a batch: every request falls back, is read over and goes on at its own places.

A model is a callable `model(tokens, ends) -> (B, n, V)` as in `sampling`: row [b, i] is the law of the token that follows
`tokens[b, : ends[b, i]]`. The small model is asked for the requests that still write, the large one for those that have text left to read.
"""

import math

import torch

from twofold.fast import checks

__all__ = ["generate"]


def generate(small, large, prompt, fallback, rollback, n, *, lengths=None):
    """New tokens `(B, n)` and calls of the large model per request `(B,)`, int64. Prompts `(B, T)`, of `lengths` `(B,)` (default T).

    A row of the small model with a NaN hands over; one of the large model, where a token is needed from it, raises.
    """
    B, T = (checks.shape(prompt=(prompt, "B T"))[axis] for axis in ("B", "T"))
    checks.dtypes(torch.int64, torch.int32, prompt=prompt, lengths=lengths)
    if lengths is not None:
        checks.shape(prompt=(prompt, "B T"), lengths=(lengths, "B"))
    if n < 0 or not rollback >= 0 or not fallback >= 0:
        raise ValueError(f"fallback, rollback and n must be at least 0, not {fallback}, {rollback} and {n}")
    device = prompt.device
    start = torch.full((B,), T, device=device) if lengths is None else lengths.long()
    text = torch.cat([prompt.long(), torch.zeros(B, n + 1, dtype=torch.int64, device=device)], 1)
    read, calls = start, torch.zeros_like(start)
    while len(rows := (read < start + n).nonzero()[:, 0]):
        written, since = _write(small, text[rows], read[rows], (start + n)[rows], fallback)
        first, token = _read(large, written, read[rows], since, math.exp(-rollback))
        written.scatter_(1, (read[rows] + first)[:, None], token[:, None])
        text[rows] = written
        read = read.index_put((rows,), read[rows] + first + 1)
        calls[rows] += 1
    return text.gather(1, start[:, None] + torch.arange(n, device=device)), calls


def _write(small, text, ends, limit, fallback):
    """The text with what the small model is sure of, and how many tokens that is for each request."""
    since = torch.zeros_like(ends)
    sure = (ends < limit).nonzero()[:, 0]
    while len(sure):
        likeliest, token = small(text[sure], (ends + since)[sure][:, None])[:, 0].max(-1)  # (b,)
        goes_on = likeliest >= fallback
        sure, token = sure[goes_on], token[goes_on]
        text[sure, (ends + since)[sure]] = token
        since[sure] += 1
        sure = sure[(ends + since < limit)[sure]]
    return text, since


def _read(large, text, read, since, least):
    """The first place, counted from `read`, at which the large model writes its own token, and that token."""
    place = torch.arange(int(since.max()) + 1, device=text.device)
    ends = read[:, None] + torch.minimum(place, since[:, None])  # rows past a request's own text repeat its last
    p = large(text, ends)  # one call   (b, longest + 1, V)
    followed = torch.where(place < since[:, None], text.gather(1, ends), 0)  # behind a request's own text stands anything
    chance = p.gather(2, followed[:, :, None])[:, :, 0]
    stops = (place == since[:, None]) | ~(chance >= least)
    first = stops.int().argmax(1)  # the first of equals
    row = p.gather(1, first[:, None, None].expand(-1, 1, p.shape[2]))[:, 0]
    if row.isnan().any():
        raise ValueError("a row of large holds a NaN: no token can follow it")
    return first, row.argmax(1)
