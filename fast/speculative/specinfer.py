"""Recursive rejection on a batch: drafts drawn independently, tried one by one at one position or down a tree.

Probabilities are float32, bfloat16 or float16; everything is computed in float32. Rows must sum to 1 up to rounding, which is not checked:
the first attempt compares p(x) and q(x) as they are given, later ones divide the residual by its own sum, and so does the final draw. A
draft that q cannot have drawn (q(x) = 0, or an id outside the vocabulary) is passed over as if it were not there. Where the row to draw
from holds a NaN, or no mass, the token is -1, never a valid id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.kernels.walk_tree import MATCH, REPLACE, walk_tree
from twofold.fast.speculative import match

__all__ = ["select", "verify_tree"]


def select(p, qs, drafts, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """The token for one position `(B,)`, in the dtype of `drafts`, and whether it was drafted `(B,)`.

    p `(B, V)`, qs `(B, k, V)` the law of each draft, drafts `(B, k)`, of which request b has the first `lengths[b]`. `accept` `(B, k)`
    holds the coins in order of use, `token` `(B,)` the uniform of the final draw; without these float32 uniforms they come from `seed`,
    the request ids `request` `(B,)` and the places of the drafts in the text `position` `(B,)`. Each draft has a law of its own here, so
    the residual is kept as a row; where all are drawn from one law, `verify_tree` on a tree of k leaves keeps a single number instead.
    """
    B, k, V = (checks.shape(p=(p, "B V"), qs=(qs, "B k V"), drafts=(drafts, "B k"))[axis] for axis in ("B", "k", "V"))
    if V == 0:
        raise ValueError("p must have shape (B, V) with V at least 1")
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    checks.same(p=p, qs=qs)
    checks.dtypes(torch.int64, torch.int32, drafts=drafts, lengths=lengths)
    for name, tensor in (("lengths", lengths), ("token", token)):
        if tensor is not None:
            checks.shape(drafts=(drafts, "B k"), **{name: (tensor, "B")})
    accept, token = philox.tape(p, seed, request, position, accept=(accept, k), token=(None if token is None else token[:, None], 1))
    length = torch.full((B,), k, device=p.device) if lengths is None else lengths
    left, mass = p.float(), torch.ones(B, device=p.device)  # the law still owed times `mass`
    chosen, used = torch.full((B,), -1, device=p.device), torch.zeros(B, dtype=torch.int64, device=p.device)
    for j in range(k):
        x = drafts[:, j].long()
        known = (j < length) & (x >= 0) & (x < V) & (chosen < 0)
        at = torch.where(known, x, 0)[:, None]
        px, qx = left.gather(1, at)[:, 0], qs[:, j].gather(1, at)[:, 0].float()
        drawn = known & (qx != 0)
        u = accept.gather(1, used.clamp(max=k - 1)[:, None])[:, 0]
        used += drawn
        keeps = drawn & (u * qx * mass < px)
        chosen = torch.where(keeps, x, chosen)
        refused = drawn & ~keeps
        owed = left - mass[:, None] * torch.where(refused[:, None], qs[:, j].float(), 0)
        owed = torch.where(owed <= 0, 0, owed)  # a NaN stays one
        total = owed.sum(1)
        some = refused & (total != 0)  # else nothing is left, rounding brought us here: the law still owed stays what it was
        left, mass = torch.where(some[:, None], owed, left), torch.where(some, total, mass)
    root = chosen.new_full((B, 1), -1)
    final = walk_tree(left[:, None], None, root, root, None, accept[:, :0], token, MATCH)[1]
    return torch.where(chosen < 0, final, chosen).to(drafts.dtype), chosen >= 0


def verify_tree(p, q, tokens, parents, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """The accepted path `(B, N - 1)`, node ids padded with -1, and the token that follows it `(B,)`, in the dtype of `tokens`.

    p, q `(B, N, V)`: row n is the target's law after node n, and the law from which the children of n were drawn, each by itself. `tokens`
    and `parents` `(B, N)` are the trees: node 0 is the root, children are tried by id, and a node whose parent's id is not lower than its
    own is in no tree. `lengths` `(B,)` counts nodes with the root (1 … N, clamped). `accept` `(B, N - 1)` holds the coins in order of use,
    `token` `(B,)` the uniform of the final draw; without them they come from `seed`, `request` and `position`.
    """
    return match.walk(p, q, tokens, parents, lengths, accept, token, seed, request, position, REPLACE)
