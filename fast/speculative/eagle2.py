"""EAGLE-2's draft trees for a batch of requests: one call of the drafter per layer, and no wait for the device in between.

The drafter is asked for a layer at once: `expand(tokens, parents)` gives rows `(B, n, V)` for the n nodes that are to be expanded.
`tokens (B, n)` are their ids, and `parents (B, n)` say which row of the *previous* call each of them continues, so that a drafter can
carry its hidden states along. The first call asks for the root: one token -1, parent -1. Where a request has fewer nodes than n, the rest
are tokens -1, and their rows are not looked at.

Rows are float32, bfloat16 or float16; values are products in float32. A token whose probability is not a number above 0 is no child, and
neither is one whose value underflows.
"""

from typing import NamedTuple

import torch

__all__ = ["grow"]


def grow(expand, k, depth, total, *, batch=1, device=None):
    """The trees as tokens, parents and values, `(B, 1 + total)` each, padded with -1; `tokens[:, 0]` = -1 is for the caller to fill.

    `batch` is the number of requests B, `device` where their trees are made (default: the CPU).
    """
    for name, number, least in (("k", k, 1), ("depth", depth, 0), ("total", total, 0), ("batch", batch, 0)):
        at_least(least, name, number)
    layer, layers = roots(batch, device), []
    for level in range(depth):
        layers.append(children(expand, layer, k, sum(nodes.tokens.shape[1] for nodes in layers)))
        if level + 1 < depth:
            layer = most_valuable(layers[-1], k)
    return numbered(layers, total, batch, device)


class Nodes(NamedTuple):
    """Nodes of a batch, each field `(B, n)`. One whose value is 0 does not exist; its token is -1."""

    tokens: torch.Tensor
    values: torch.Tensor
    rows: torch.Tensor  # which row of the last call it continues
    parents: torch.Tensor  # the id of its parent, -1 for the root
    ids: torch.Tensor  # 0, 1, … in the order in which nodes are made

    def at(self, index):
        return Nodes(*(field.gather(1, index) for field in self))


def roots(batch, device):
    nobody = torch.full((batch, 1), -1, device=device)
    return Nodes(nobody, torch.ones(batch, 1, device=device), nobody, nobody, nobody)


def children(expand, layer, k, first):
    """The k likeliest continuations of each node of a layer, numbered from `first`: parents in order, the likeliest child first."""
    B, n = layer.tokens.shape
    rows = expand(layer.tokens, layer.rows)
    if not isinstance(rows, torch.Tensor) or rows.ndim != 3 or rows.shape[:2] != (B, n) or rows.shape[2] == 0:
        given = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise ValueError(f"expand must return rows of shape (B, n, V) = ({B}, {n}, V), not {given}")
    if rows.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"expand must return float32, bfloat16 or float16, not {str(rows.dtype).removeprefix('torch.')}")
    rows = torch.where(rows > 0, rows, 0).float()  # a NaN is no probability
    tokens = largest(rows, min(k, rows.shape[2]))  # (B, n, k)
    values = layer.values[:, :, None] * torch.where(layer.values[:, :, None] > 0, rows.gather(2, tokens), 0)
    count = values.shape[1] * values.shape[2]
    row = torch.arange(n, device=values.device)[:, None].expand_as(values)
    ids = torch.arange(first, first + count, device=values.device).expand(B, count)
    parents = layer.ids[:, :, None].expand_as(values)
    return Nodes(*(x.flatten(1) for x in (torch.where(values > 0, tokens, -1), values, row, parents)), ids)


def most_valuable(nodes, n):
    """The n nodes of greatest value, the greatest first; of equals the first. All, where there are fewer."""
    return nodes.at(largest(nodes.values, min(n, nodes.values.shape[1])))


def largest(values, n):
    """Indices of the n largest along the last axis, the largest first, equals by index. Which of equals torch.topk takes is left open."""
    top, index = values.topk(n)
    edge = top[..., -1:]  # only values equal to the least of them are in doubt: of these the first are taken
    falling = torch.arange(0, -values.shape[-1], -1, device=values.device, dtype=torch.int32)
    equals = torch.where(values == edge, falling, -values.shape[-1]).topk(n).indices
    place = torch.arange(n, device=values.device) - (top > edge).sum(-1, keepdim=True)
    index = torch.where(place < 0, index, equals.gather(-1, place.clamp(min=0))).sort(dim=-1).values
    order = values.gather(-1, index).sort(dim=-1, descending=True, stable=True).indices
    return index.gather(-1, order)


def numbered(layers, total, batch, device):
    """Of all nodes the `total` of greatest value, as a tree: by depth, then value, then as they were made."""
    root = roots(batch, device)
    if not layers or not total:
        return tuple(torch.nn.functional.pad(field, (0, total), value=-1) for field in (root.tokens, root.parents, root.values))
    made = Nodes(*(torch.cat(field, 1) for field in zip(*layers, strict=True)))
    depths = torch.cat([nodes.ids.new_full((nodes.ids.shape[1],), level) for level, nodes in enumerate(layers)])
    best = most_valuable(made, total)  # (B, m)
    depth = torch.where(best.values > 0, depths[best.ids], len(layers))  # what does not exist comes last
    best = best.at(depth.sort(dim=1, stable=True).indices)

    number = torch.arange(1, 1 + best.ids.shape[1], device=device).expand_as(best.ids)
    numbers = torch.zeros_like(made.ids).scatter(1, best.ids, number)
    parents = torch.where(best.parents < 0, 0, numbers.gather(1, best.parents.clamp(min=0)))
    exists = best.values > 0
    drafted = (best.tokens, torch.where(exists, parents, -1), torch.where(exists, best.values, -1))
    missing = (0, total - best.ids.shape[1])
    return tuple(
        torch.nn.functional.pad(torch.cat([first, rest], 1), missing, value=-1)
        for first, rest in zip((root.tokens, root.parents, root.values), drafted, strict=True)
    )


def at_least(least, name, number):
    if not number >= least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
