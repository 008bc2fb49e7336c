"""Token recycling on a batch: one matrix for all requests, a level of all trees per step, nothing read back to the host.

The top k come from 64-bit keys, the bits of the probability above and the id's complement below, so that no two are equal and ties go to
the lowest id on every device. Rows are taken in blocks, which bounds the memory of the keys.
"""

import torch

from twofold.fast import checks

__all__ = ["update", "draft"]

BLOCK = 64  # rows of p whose keys are held at once


def update(matrix, tokens, p, *, lengths=None):
    """The matrix `(V, k)` after a pass that scored tokens `(B, N)` with the laws p `(B, N, V)`; a new tensor.

    `lengths` `(B,)` counts the nodes of each request (0 … N, clamped; default N). Of a token scored more than once the last counts, later
    requests after earlier ones. Where a row holds a NaN, or a number below 0, no successor is known. Ids outside the vocabulary are
    ignored.
    """
    checks.shape(matrix=(matrix, "V k"), tokens=(tokens, "B N"), p=(p, "B N V"))
    checks.dtypes(torch.int64, torch.int32, matrix=matrix, tokens=tokens, lengths=lengths)
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    (B, N), (V, k) = tokens.shape, matrix.shape
    scored = (tokens >= 0) & (tokens < V)
    if lengths is not None:
        checks.shape(tokens=(tokens, "B N"), lengths=(lengths, "B"))
        scored &= torch.arange(N, device=tokens.device) < lengths[:, None]
    token = torch.where(scored, tokens, V).flatten().long()  # row V of what follows is nobody's
    order = torch.arange(B * N, device=tokens.device)
    last = torch.full((V + 1,), -1, device=tokens.device).scatter_reduce(0, token, order, "amax")
    token = torch.where(last[token] == order, token, V)
    best = torch.cat([_top(rows, min(k, V)) for rows in p.flatten(0, 1).split(BLOCK)])  # (B N, k)
    best = torch.nn.functional.pad(best, (0, k - best.shape[1]), value=-1).to(matrix.dtype)
    return torch.cat([matrix, matrix[:1]]).index_copy(0, token, best)[:V]


def draft(matrix, token, parents):
    """Tokens and parents `(B, N)` of the trees of this shape that could be filled, -1 behind the last node, and their sizes `(B,)`.

    token `(B,)`; `parents` is the shape, a list of N. The root, node 0, counts, and its token is -1.
    """
    checks.shape(matrix=(matrix, "V k"), token=(token, "B"))
    checks.dtypes(torch.int64, torch.int32, matrix=matrix, token=token)
    parents = [int(parent) for parent in parents]
    if not parents or parents[0] != -1 or any(not 0 <= parent < node for node, parent in enumerate(parents[1:], 1)):
        raise ValueError(f"parents must be -1 and then ids lower than the node's own, not {parents}")
    (V, k), (B, N) = matrix.shape, (len(token), len(parents))
    depths, ranks = [0], [0]
    for node in range(1, N):
        depths.append(depths[parents[node]] + 1)
        ranks.append(parents[1:node].count(parents[node]))
    successors = torch.nn.functional.pad(matrix, (0, max(0, max(ranks) + 1 - k)), value=-1)
    filled = token.long()[:, None].repeat(1, N)
    for depth in range(1, max(depths) + 1):
        level = [node for node in range(N) if depths[node] == depth]
        above = filled[:, [parents[node] for node in level]]  # (B, nodes of the level)
        known = (above >= 0) & (above < V)
        rank = torch.tensor([ranks[node] for node in level], device=token.device)
        filled[:, level] = torch.where(known, successors[torch.where(known, above, 0), rank].long(), -1)
    there = filled >= 0
    there[:, 0] = True
    number = there.long().cumsum(1) - 1  # ids without the nodes that are left out
    place = torch.where(there, number, N)
    up = torch.cat([torch.full_like(number[:, :1], -1), number[:, parents[1:]]], 1)
    nobody = torch.full((B, N + 1), -1, dtype=torch.int64, device=token.device)
    tokens = nobody.scatter(1, place, filled)[:, :N].index_fill(1, place.new_zeros(1), -1)
    return tokens.to(token.dtype), nobody.scatter(1, place, up)[:, :N].to(token.dtype), there.sum(1).to(token.dtype)


def _top(rows, k):
    """The k likeliest ids of each row, best first; -1 for what has probability 0, and all over where the row is no law."""
    rows = rows.float() + 0.0  # no negative zeros
    ids = torch.arange(rows.shape[1], device=rows.device)
    keys = (rows.view(torch.int32).long() << 32) + (rows.shape[1] - ids)  # bits of numbers of at least 0 order like the numbers
    best = keys.topk(k, dim=1).indices
    known = (rows.gather(1, best) > 0) & (rows >= 0).all(1, keepdim=True)
    return torch.where(known, best, -1)
