"""Sequoia's trees by dynamic programming on tensors, for a batch of acceptance vectors at once.

One level of depth and one child rank is a (max, +) convolution: all sizes and all splits of them at a time, `(B, N, N)`, where the
recurrence by itself visits them one by one. Levels stop where one more has changed no value: none that is deeper would. The tree is
then read off on the host. This is planning, done once per model pair, in float64.
"""

from collections import deque

import torch

from twofold.fast import checks

__all__ = ["optimize", "hardware"]


def optimize(accept, nodes, depth):
    """Expected tokens per round `(B,)`, float64, and the parents of the best trees `(B, nodes)`, int64, numbered level by level.

    `accept` `(B, J)` holds one acceptance vector per row, in [0, 1]; `nodes` counts the root.
    """
    _check_accept(accept)
    if nodes < 1 or depth < 0:
        raise ValueError(f"nodes must be at least 1 and depth at least 0, not nodes = {nodes} and depth = {depth}")
    values, choices = _levels(accept.double(), nodes, depth)
    best = values[-1][:, nodes]
    if torch.isinf(best).any():
        children = accept.shape[1]
        raise ValueError(f"nodes must fit: no tree of {nodes} nodes has at most {depth} levels below its root and {children} children")
    parents = [_parents([level[b] for level in choices], nodes, depth) for b in range(len(accept))]
    return best, torch.tensor(parents, dtype=torch.int64, device=accept.device).reshape(len(accept), nodes)


def hardware(accept, cost, c):
    """The sizes n and depths d `(B,)`, int64, of most tokens per time, F / (cost[n - 1] + d c); the smallest n of equals, then d.

    `cost` `(N,)` is the time of a target pass over 1 … N nodes, `c` that of a drafter pass.
    """
    _check_accept(accept)
    checks.shape(cost=(cost, "N"))
    if len(cost) == 0 or not (cost > 0).all():
        raise ValueError("cost must hold at least one time, and only times above 0")
    if not c >= 0:
        raise ValueError(f"c must be at least 0, not {c}")
    values, _ = _levels(accept.double(), len(cost), len(cost) - 1)
    tokens = torch.stack([level[:, 1:] for level in values], 2)  # (B, N, D): a depth of n or more never beats n - 1
    time = cost.double()[:, None] + torch.arange(len(values), device=cost.device) * c  # (N, D)
    best = (tokens / time).flatten(1).argmax(1)  # the first of equals
    return best // len(values) + 1, best % len(values)


def _levels(accept, nodes, depth):
    """Per depth 0, 1, …: the values of trees of 0 … nodes nodes `(B, nodes + 1)`, and the best first subtree, lists `[b][j][m]`."""
    B, J = accept.shape
    nothing = accept.new_full((B, nodes + 1), -torch.inf)
    values, choices = [nothing.index_fill(1, torch.tensor([1], device=accept.device), 1)], [[[]] * B]
    empty = nothing.index_fill(1, torch.tensor([0], device=accept.device), 0)  # a forest beyond the last child
    for _ in range(min(depth, nodes - 1)):
        forest, chosen = empty, []
        for j in reversed(range(J)):
            first = torch.where(values[-1] > -torch.inf, accept[:, j, None] * values[-1], -torch.inf)[:, 1:]  # (B, sizes 1 … N)
            rest = torch.nn.functional.pad(forest[:, :-1].flip(1), (0, nodes - 1), value=-torch.inf).unfold(1, nodes, 1)
            best, size = (first[:, None] + rest).flip(1).max(2)  # over the first subtree, for forests of 1 … N; the smallest of equals
            forest = torch.cat([empty[:, :1], best], 1)
            chosen.append(torch.nn.functional.pad(size + 1, (1, 0)))
        level = torch.cat([nothing[:, :1], 1 + forest[:, :-1]], 1)
        values.append(level)
        choices.append(torch.stack(chosen[::-1], 1).tolist() if chosen else [[]] * B)
        if torch.equal(level, values[-2]):
            break  # so every deeper level has these values and makes these choices
    return values, choices


def _parents(choices, nodes, depth):
    """The best tree of one request, read off its tables: `choices[depth][j][m]` is the size of the first of the trees left."""
    parents, waiting = [-1], deque([(0, depth, nodes)])
    while waiting:
        node, depth, size = waiting.popleft()
        left, child = size - 1, 0
        while left:
            first = choices[min(depth, len(choices) - 1)][child][left]
            waiting.append((len(parents), depth - 1, first))
            parents.append(node)
            left, child = left - first, child + 1
    return parents


def _check_accept(accept):
    checks.shape(accept=(accept, "B J"))
    checks.dtypes(torch.float64, torch.float32, accept=accept)
    if not ((accept >= 0) & (accept <= 1)).all():
        raise ValueError("accept must lie in [0, 1]")
