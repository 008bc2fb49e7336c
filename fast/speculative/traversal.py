"""Traversal verification on a batch: every request goes through its own tree from the leaves up, all requests one step at a time.

A node's rows as they stand need no rows of their own. Its weight times its P is c [p - S q]_+, and a refused child changes S to
S + 1 / (c Q), with Q the mass of q on what was not tried (1 with replacement), and c and the weight to c and Z over Z + 1 - a. So a node
is four numbers, and a refusal one pass over two rows. Probabilities are float32, bfloat16 or float16; everything is computed in float64,
since weights of deep trees are quotients of small differences. A child that q cannot have drawn is passed over with all below it. Where the
row to draw from holds a NaN, or no mass, the token is -1, never a valid id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.speculative.rsd import sample

__all__ = ["verify_tree", "sample"]


def verify_tree(
    p, q, tokens, parents, *, replace=False, lengths=None, accept=None, token=None, seed=None, request=None, position=None
):  # fmt: skip
    """The accepted path `(B, N - 1)`, node ids padded with -1, and the token that follows it `(B,)`, in the dtype of `tokens`.

    p, q `(B, N, V)`: row n is the target's law after node n, and the law from which the children of n were drawn, before any draw.
    `replace` says whether independently or without replacement. `accept` `(B, N - 1)` holds the coins in order of use, `token` `(B,)` the
    uniform of the final draw; the other arguments are those of `match.verify_tree`.
    """
    sizes = checks.shape(p=(p, "B N V"), q=(q, "B N V"), tokens=(tokens, "B N"), parents=(parents, "B N"))
    B, N, V = (sizes[axis] for axis in ("B", "N", "V"))
    if N == 0 or V == 0:
        raise ValueError(f"p must have shape (B, N, V) with N (the root counts) and V at least 1, not {tuple(p.shape)}")
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    checks.same(p=p, q=q)
    checks.dtypes(torch.int64, torch.int32, tokens=tokens, parents=parents, lengths=lengths)
    checks.same(tokens=tokens, parents=parents)
    for name, tensor in (("lengths", lengths), ("token", token)):
        if tensor is not None:
            checks.shape(tokens=(tokens, "B N"), **{name: (tensor, "B")})
    accept, token = philox.tape(p, seed, request, position, accept=(accept, N - 1), token=(None if token is None else token[:, None], 1))
    return _traverse(p, q, tokens, parents, lengths, accept, token, replace)


@torch.library.custom_op("twofold::traverse_tree", mutates_args=())
def _traverse(
    p: torch.Tensor, q: torch.Tensor, tokens: torch.Tensor, parents: torch.Tensor, lengths: torch.Tensor | None,
    accept: torch.Tensor, token: torch.Tensor, replace: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    (B, N), V, here = tokens.shape, p.shape[2], torch.arange(len(tokens), device=p.device)
    ids = torch.arange(N, device=p.device)
    length = torch.full((B,), N, device=p.device) if lengths is None else lengths.long().clamp(1, N)
    x, parent = tokens.long(), parents.long()
    inside = (ids > 0) & (ids < length[:, None]) & (parent >= 0) & (parent < ids) & (x >= 0) & (x < V)
    x, parent = torch.where(inside, x, 0), torch.where(inside, parent, -1)
    S, c, a, Q = (torch.full((B, N), value, dtype=torch.float64, device=p.device) for value in (0.0, 1.0, 1.0, 1.0))
    tried = torch.zeros(B, N, dtype=torch.bool, device=p.device)
    node, last, used = torch.zeros_like(here), torch.zeros_like(here), torch.zeros_like(here)
    going = torch.ones(B, dtype=torch.bool, device=p.device)
    while going.any():
        child = torch.where((parent == node[:, None]) & (ids > last[:, None]), ids, N).amin(1)
        down, up = (going & (child < N)).nonzero()[:, 0], (going & (child == N)).nonzero()[:, 0]

        n, m = node[down], child[down]  # try to go down to the next child
        px, qx = p[down, n, x[down, m]].double(), q[down, n, x[down, m]].double()
        drawn = qx != 0
        if not replace:
            drawn &= ~(tried[down] & (parent[down] == n[:, None]) & (x[down] == x[down, m][:, None])).any(1)
        weight = c[down, n] * (px - S[down, n] * qx).clamp(min=0) * Q[down, n] / qx
        a[down, m] = c[down, m] = weight.clamp(max=1)
        last[down], node[down] = m, torch.where(drawn, m, n)

        coin = accept[up, used[up].clamp(max=max(N - 2, 0))] if N > 1 else token[up, 0]  # or accept the path to here
        root = node[up] == 0
        used[up] += (~root).long()
        stays = root | (coin < a[up, node[up]])
        going[up[stays]] = False
        back = up[~stays]

        n = parent[back, node[back]]  # or go up again, and change the parent's rows and weight
        tried[back, node[back]] = True
        last[back], node[back] = node[back], n
        able = c[back, n] > 0  # else the parent has no weight to lose
        scale = S[back, n] + 1 / (c[back, n] * Q[back, n])
        left, draft = _residual(p, q, back, n, torch.where(able, scale, S[back, n]))
        mass, weight = left.sum(1), a[back, n]
        Z = c[back, n] * mass
        rest = Z + 1 - weight
        change = able & ((Z != 0) | (weight < 1))  # 0 / 0 is a weight of 1, and the rows stay what they were
        for state, value in ((S, scale), (c, c[back, n] / rest), (a, Z / rest)):
            state[back, n] = torch.where(change, value, state[back, n])
        if not replace:
            gone = torch.where(tried[back] & (parent[back] == n[:, None]), x[back], x[back, last[back]][:, None])
            Q[back, n] = draft.scatter(1, gone, 0).sum(1)

    path, depth = tokens.new_full((B, N - 1), -1), torch.zeros_like(here)
    above, up = node.clone(), torch.zeros(B, N, dtype=torch.bool, device=p.device)
    for _ in range(N - 1):  # mark the nodes of the path
        up[here, above] |= above > 0
        above = torch.where(above > 0, parent[here, above], 0)
    which, place = up.nonzero(as_tuple=True)
    depth = up.cumsum(1)[which, place] - 1
    path[which, depth] = place.to(path.dtype)
    left, _ = _residual(p, q, here, node, S[here, node])
    sums = left.cumsum(1)
    past = (token * sums[:, -1:] < sums) & (left > 0)
    v = torch.arange(V, device=p.device)
    drawn = torch.where(past, v, V).amin(1)
    drawn = torch.where(drawn < V, drawn, torch.where(left > 0, v, 0).amax(1))
    valid = (sums[:, -1] > 0) & (sums[:, -1] < float("inf"))  # false for a NaN
    return path, torch.where(valid, drawn, -1).to(tokens.dtype)


@_traverse.register_fake
def _(p, q, tokens, parents, lengths, accept, token, replace):
    return tokens.new_empty(tokens.shape[0], tokens.shape[1] - 1), tokens.new_empty(tokens.shape[0])


def _residual(p, q, rows, node, S):
    """[p - S q]_+ and q `(rows, V)`, float64; where S is 0, q is not read. A NaN stays one."""
    target, draft = p[rows, node].double(), q[rows, node].double()
    left = target - torch.where((S == 0)[:, None], 0, S[:, None] * draft)
    return torch.where(left <= 0, 0, left), draft
