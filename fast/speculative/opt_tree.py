"""OPT-Trees for a batch of requests, layer by layer; each request stops by itself, and the drafting when all have.

`expand(tokens, parents)` is that of `eagle2.py`: rows `(B, n, V)` for the nodes of the newest layer, `parents` saying which row of the
previous call each continues. A request that has stopped has only tokens -1. Whether any goes on is asked once per layer, which waits for
the device.
"""

import torch

from twofold.fast.speculative import eagle2

__all__ = ["grow"]


def grow(expand, nodes, gain, *, batch=1, device=None):
    """The trees as tokens, parents and values, `(B, 1 + nodes)` each, padded with -1; `tokens[:, 0]` = -1 is for the caller to fill.

    `batch` is the number of requests B, `device` where their trees are made (default: the CPU).
    """
    for name, number in (("nodes", nodes), ("gain", gain), ("batch", batch)):
        eagle2.at_least(0, name, number)
    layer, layers = eagle2.roots(batch, device), []
    best = layer.values.new_zeros(batch, nodes)  # the greatest values so far, in falling order
    while nodes and batch:
        layer = eagle2.most_valuable(eagle2.children(expand, layer, nodes, 0), nodes)
        first = sum(made.ids.shape[1] for made in layers)
        layer = layer._replace(ids=torch.arange(first, first + layer.ids.shape[1], device=layer.ids.device).expand_as(layer.ids))
        layers.append(layer)
        better = torch.cat([best, layer.values], 1).topk(nodes).values
        growth = (better - best).sum(1, dtype=torch.float64)
        best, active = better, (growth > 0) & (growth >= gain)
        if not active.any():
            break
        layer = layer._replace(values=torch.where(active[:, None], layer.values, 0), tokens=torch.where(active[:, None], layer.tokens, -1))
    return eagle2.numbered(layers, nodes, batch, device)
