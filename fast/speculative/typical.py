"""Typical acceptance on a batch of drafted trees: the longest path of plausible tokens, and the likeliest token after it.

Probabilities are float32, bfloat16 or float16; entropies, thresholds and path scores are float32. One kernel reads each row once, for its
likeliest token and its entropy; the walk over the trees touches one probability per node and takes log2(N) steps: after s of them each node
knows about its next 2^s ancestors. What the spec calls an error, a kernel cannot raise without waiting for the GPU: where the row of an
accepted node holds a NaN, the token is -1, never a valid id, and the path says nothing.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.likeliest import likeliest

__all__ = ["verify_tree", "threshold"]


def verify_tree(p, tokens, parents, eps, delta, *, lengths=None):
    """The accepted path `(B, N - 1)`, node ids padded with -1, and the token that follows it `(B,)`, in the dtype of `tokens`.

    p `(B, N, V)` holds the target's row after each node, `tokens` and `parents` `(B, N)` the trees: node 0 is the root, and a node whose
    parent's id is not lower than its own, or whose token is outside the vocabulary, is in no tree. `lengths` `(B,)` counts nodes with the
    root (1 … N, clamped): what stands past it is not read.
    """
    B, N, V = (checks.shape(p=(p, "B N V"), tokens=(tokens, "B N"), parents=(parents, "B N"))[axis] for axis in ("B", "N", "V"))
    _rows(p, eps, delta)
    if N == 0:
        raise ValueError(f"p must have room for the root, shape (B, N, V) with N at least 1, not {tuple(p.shape)}")
    checks.dtypes(torch.int64, torch.int32, tokens=tokens, parents=parents, lengths=lengths)
    if lengths is not None:
        checks.shape(tokens=(tokens, "B N"), lengths=(lengths, "B"))
        lengths = lengths.long().clamp(1, N)
    checks.same_device(p=p, tokens=tokens, parents=parents, lengths=lengths)
    likely, entropy = likeliest(p, lengths, True)  # (B, N)
    node = torch.arange(N, device=p.device)
    drafted = (node > 0) & (parents >= 0) & (parents < node) & (tokens >= 0) & (tokens < V)
    drafted = drafted if lengths is None else drafted & (node < lengths[:, None])
    up = torch.where(drafted, parents, 0).long()  # the root's parent is the root
    chance = p[torch.arange(B, device=p.device)[:, None], up, torch.where(drafted, tokens, 0)].float()
    passes = drafted & (chance > _least(entropy, eps, delta).gather(1, up))
    accepted, last, path = _longest(passes | (node == 0), up, torch.where(passes, chance.log(), 0))
    broken = (accepted & (likely < 0)).any(1)
    token = likely.gather(1, last[:, None])[:, 0].masked_fill(broken, -1)
    return path.to(tokens.dtype), token.to(tokens.dtype)


def threshold(p, eps, delta):
    """What a token's probability must exceed `(B,)`, float32, for rows p `(B, V)`."""
    checks.shape(p=(p, "B V"))
    _rows(p, eps, delta)
    return _least(likeliest(p[:, None], None, True)[1][:, 0], eps, delta)


def _rows(p, eps, delta):
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    if p.shape[-1] == 0:
        raise ValueError(f"p must have V at least 1, not the shape {tuple(p.shape)}")
    checks.contiguous(p=p)
    for name, number in (("eps", eps), ("delta", delta)):
        if not number >= 0:
            raise ValueError(f"{name} must be at least 0, not {number}")


def _least(entropy, eps, delta):
    return (delta * torch.exp(-entropy)).clamp(max=eps)


def _longest(accepted, up, score):
    """Which nodes are accepted `(B, N)`, given which pass at their parents; the end of the best path `(B,)`; the path `(B, N - 1)`."""
    N = up.shape[1]
    node = torch.arange(N, device=up.device)
    depth, hops = (node > 0).long().expand_as(up), []
    for _ in range((N - 1).bit_length()):
        hops.append(up)
        accepted, depth, score = accepted & accepted.gather(1, up), depth + depth.gather(1, up), score + score.gather(1, up)
        up = up.gather(1, up)
    reached = torch.where(accepted, depth, -1)
    deepest = reached.amax(1, keepdim=True)  # (B, 1)
    last = torch.where(reached == deepest, score, -torch.inf).argmax(1)  # the first of equals
    steps = deepest - 1 - node[: N - 1]  # from the last node up to each place of the path           (B, N - 1)
    at = last[:, None].expand_as(steps)
    for bit, hop in enumerate(hops):
        at = torch.where((steps > 0) & (steps >> bit & 1 == 1), hop.gather(1, at), at)
    return accepted, last, torch.where(steps >= 0, at, -1)
