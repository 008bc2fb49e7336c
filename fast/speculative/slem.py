"""String-level exact match on a batch: three calls for all requests together, and work that does not grow with the text.

Tokenizers and drafters live on the host, so this does too; they are called once each, on lists. Only the last `look_behind` ids of a
request are read, decoded and encoded again, if the caller keeps the texts; ids come from the device in one transfer.
"""

import torch

from twofold.fast import checks

__all__ = ["draft"]


def draft(drafter, decode, encode, ids, *, look_behind=16, lengths=None, texts=None):
    """Draft ids `(B, gamma)`, int64, padded with -1, and how many each request has `(B,)`; gamma is the longest of them.

    `drafter` takes a list of texts and returns their guessed continuations; `decode` takes a list of lists of ids, `encode` a list of
    texts: the target's tokenizer. ids `(B, T)`, of which request b has written the first `lengths[b]` (default T). `texts`: what
    `decode` would say of all ids, for a caller that knows; without them the whole of `ids` is decoded.
    """
    B = checks.shape(ids=(ids, "B T"))["B"]
    checks.dtypes(torch.int64, torch.int32, ids=ids, lengths=lengths)
    if look_behind < 0:
        raise ValueError(f"look_behind must be at least 0, not {look_behind}")
    if lengths is not None:
        checks.shape(ids=(ids, "B T"), lengths=(lengths, "B"))
    if texts is not None and len(texts) != B:
        raise ValueError(f"texts must be one per request, {B}, not {len(texts)}")
    if texts is None:
        written = [ids.shape[1]] * B if lengths is None else lengths.tolist()
        texts = decode([row[:n] for row, n in zip(ids.tolist(), written)])
    tails = _tails(ids, lengths, look_behind)
    again = encode([tail + guess for tail, guess in zip(decode(tails), drafter(texts))])
    drafts = [list(new[len(tail) :]) if list(new[: len(tail)]) == tail else [] for new, tail in zip(again, tails)]
    counts = [len(each) for each in drafts]
    gamma = max(counts, default=0)
    padded = torch.tensor([each + [-1] * (gamma - len(each)) for each in drafts], dtype=torch.int64, device=ids.device)
    return padded.view(B, gamma), torch.tensor(counts, dtype=torch.int64, device=ids.device)


def _tails(ids, lengths, look_behind):
    """The last `look_behind` ids of each request, fewer where it has fewer."""
    window = min(look_behind, ids.shape[1])
    if lengths is None:
        return ids[:, ids.shape[1] - window :].tolist()
    places = lengths.long()[:, None] + torch.arange(-window, 0, device=ids.device)  # (B, window)
    return [[i for i in row if i >= 0] for row in torch.where(places >= 0, ids.gather(1, places.clamp(min=0)), -1).tolist()]
