"""Hydra's heads on a batch: all of them where the tokens are known, one after another in a chain, and level by level in a tree.

Everything keeps the dtype of its input and is differentiable; laws are float32. A tree asks head d once, for all nodes of depth d that have
children, of all requests together.
"""

import torch
import torch.nn.functional as F

from twofold.fast import checks
from twofold.fast.speculative import eagle

__all__ = ["head", "heads", "draft", "candidates"]


def head(h, told, embed, w1, b1, w2):
    """Logits `(..., V)` of head k for states h `(..., D)` that are told k + 1 tokens each `(..., k + 1)`."""
    _check(h, told, embed, w1, b1, w2)
    return _head(h, told, embed, w1, b1, w2)


def heads(h, told, embed, w1, b1, w2):
    """Logits `(..., K, V)` of the first K heads where the tokens are known, told `(..., K)`; train them with `medusa.loss`."""
    _check(h, told, embed, w1, b1, w2)
    return torch.stack([_head(h, told[..., : k + 1], embed, w1, b1, w2) for k in range(told.shape[-1])], -2)


def draft(h, token, embed, w1, b1, w2, gamma, *, uniform=None, seed=None, request=None, position=None):
    """Drafted tokens `(B, gamma)` and the laws they were drawn from `(B, gamma, V)`, for states h `(B, D)` and last tokens `(B,)`.

    `uniform` `(B, gamma)` draws; without it a `seed` does (`request`, `position`: see `chain.verify`), and without either each token is the
    likeliest one. Where a row holds a NaN the token is -1.
    """
    checks.shape(h=(h, "B D"), token=(token, "B"))
    checks.dtypes(torch.int64, torch.int32, token=token)
    _check(h, token[:, None], embed, w1, b1, w2)
    if gamma > len(w1):
        raise ValueError(f"gamma must be at most the number of heads, {len(w1)}, not {gamma}")
    uniform = eagle.uniforms(h, gamma, uniform, seed, request, position, name="uniform")
    told, q = token.long()[:, None], torch.zeros(len(h), 0, len(embed), device=h.device)
    for step in range(gamma):
        row = torch.softmax(_head(h, told, embed, w1, b1, w2).float(), -1)
        drafted = eagle.choose(row, None if uniform is None else uniform[:, step])
        told, q = torch.cat([told, drafted[:, None]], 1), torch.cat([q, row[:, None]], 1)
    return told[:, 1:], q


def candidates(h, token, embed, w1, b1, w2, choices):
    """Trees as tokens `(B, N)`, node 0 the last written token, and parents `(B, N)`; all requests have the shape `choices`."""
    checks.shape(h=(h, "B D"), token=(token, "B"))
    checks.dtypes(torch.int64, torch.int32, token=token)
    _check(h, token[:, None], embed, w1, b1, w2)
    nodes = [(), *sorted(set(choices), key=lambda node: (len(node), node))]
    place = {node: n for n, node in enumerate(nodes)}
    for node in nodes[1:]:
        if len(node) > len(w1) or node[-1] not in range(len(embed)):
            raise ValueError(f"choices must hold tuples of at most {len(w1)} ranks below V = {len(embed)}, not {node}")
        if node[:-1] not in place:
            raise ValueError(f"choices must hold the parent of every node: {node} is there, {node[:-1]} is not")
    parents = torch.tensor([-1, *(place[node[:-1]] for node in nodes[1:])], device=h.device)
    tokens, level, paths = [token.long()[:, None]], [()], token.long()[:, None, None]  # paths (B, n, depth + 1) of one level's n nodes
    while children := [node for node in nodes if len(node) == len(level[0]) + 1]:
        asked = sorted({node[:-1] for node in children})
        paths = paths[:, [level.index(node) for node in asked]]
        logits = _head(h[:, None].expand(-1, len(asked), -1), paths, embed, w1, b1, w2)  # (B, n, V)
        likeliest = logits.sort(dim=-1, descending=True, stable=True).indices
        above, rank = [asked.index(node[:-1]) for node in children], [node[-1] for node in children]
        drafted = likeliest[:, above, rank]  # (B, n)
        tokens.append(drafted)
        level, paths = children, torch.cat([paths[:, above], drafted[:, :, None]], 2)
    return torch.cat(tokens, 1), parents.expand(len(h), -1)


def _head(h, told, embed, w1, b1, w2):
    k = told.shape[-1] - 1
    read = torch.cat([h, F.embedding(told.clamp(0, len(embed) - 1), embed).flatten(-2)], -1)  # (..., (k + 2) D)
    return (F.silu(F.linear(read, w1[k], b1[k])) + h) @ w2[k].T


def _check(h, told, embed, w1, b1, w2):
    checks.shape(embed=(embed, "V D"), b1=(b1, "K D"), w2=(w2, "K V D"))
    V, D = embed.shape
    if len(w1) != len(b1):
        raise ValueError(f"w1 must hold one matrix for each of the {len(b1)} heads of b1, not {len(w1)}")
    for k, matrix in enumerate(w1):
        checks.shape(**{f"w1[{k}]": (matrix, f"{D} {(k + 2) * D}")})
    checks.same(h=h, embed=embed, b1=b1, w2=w2, **{f"w1[{k}]": matrix for k, matrix in enumerate(w1)})
    checks.dtypes(torch.int64, torch.int32, told=told)
    if h.ndim == 0 or h.shape[-1] != D:
        raise ValueError(f"h must have shape (..., D) with D = {D}, not {tuple(h.shape)}")
    if told.shape[:-1] != h.shape[:-1] or not 1 <= told.shape[-1] <= len(w1):
        raise ValueError(f"told must have the leading axes of h and 1 to {len(w1)} tokens, not {tuple(told.shape)}")
