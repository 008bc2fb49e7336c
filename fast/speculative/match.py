"""Exact match on a batch: the target's own draws, followed through drafted chains and trees for as long as somebody guessed them.

Probabilities are float32, bfloat16 or float16, sums are float32, and what is drawn from is divided by its own sum. Where the row to draw
from holds a NaN, or no mass, the token is -1, never a valid id, and the round ends there. On a GPU each request is walked by one program
of `walk_tree`, which reads the visited nodes' rows and no others; a chain is a tree of width 1.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.kernels.walk_tree import MATCH, walk_tree

__all__ = ["verify", "verify_tree", "sequential"]


def verify(p, draft, *, lengths=None, token=None, seed=None, request=None, position=None):
    """Tokens kept `(B,)` and the token that follows them `(B,)`, in the dtype of `draft`.

    p `(B, gamma + 1, V)` are the target's rows, draft `(B, gamma)` the drafted ids. `lengths` `(B,)` shortens drafts (0 … gamma, clamped):
    entries and rows past a request's length are not read. `token` `(B, gamma + 1)` holds the float32 uniforms of the target's draws, in
    order of position; without them they come from `seed` and belong to the request id (`request` `(B,)`, default 0 … B - 1) and to the
    place of `draft[b, 0]` in the text (`position` `(B,)`, default 0).
    """
    B, gamma = (checks.chains(draft, lengths, p=p)[axis] for axis in ("B", "gamma"))
    lengths = None if lengths is None else lengths.clamp(min=0) + 1  # nodes, with the root
    tokens = torch.nn.functional.pad(draft, (1, 0))
    parents = torch.arange(-1, gamma, device=draft.device, dtype=draft.dtype).expand(B, gamma + 1)
    path, drawn = walk(p, None, tokens, parents, lengths, None, token, seed, request, position, MATCH)
    return (path >= 0).sum(1, dtype=draft.dtype), drawn


def verify_tree(p, tokens, parents, *, lengths=None, token=None, seed=None, request=None, position=None):
    """The accepted path `(B, N - 1)`, node ids padded with -1, and the token that follows it `(B,)`, in the dtype of `tokens`.

    p `(B, N, V)` holds the target's row after each node, `tokens` and `parents` `(B, N)` the trees: node 0 is the root, and a node whose
    parent's id is not lower than its own is in no tree. `lengths` `(B,)` counts nodes with the root (1 … N, clamped). `token` `(B, N)`
    holds the uniforms of the target's draws, one per step down; the other keywords are those of `verify`.
    """
    return walk(p, None, tokens, parents, lengths, None, token, seed, request, position, MATCH)


def sequential(p, drafts, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """The token `(B,)`, in the dtype of `drafts`, and whether it was drafted `(B,)`: distinct drafts tried one by one.

    p `(B, V)`, drafts `(B, k)`, of which request b has the first `lengths[b]`; an id outside the vocabulary or one that stands further left
    is passed over. Draft j is accepted iff `accept[b, j]` times what the drafts before it left of the row is below p(x); `token` `(B,)`
    draws where none is. All of that comes from one read of the row: its mass outside the drafts, then sums from the last draft to the
    first.
    """
    B, k, V = (checks.shape(p=(p, "B V"), drafts=(drafts, "B k"))[axis] for axis in ("B", "k", "V"))
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    checks.dtypes(torch.int64, torch.int32, drafts=drafts, lengths=lengths)
    if V == 0:
        raise ValueError("p must have shape (B, V) with V at least 1")
    if lengths is not None:
        checks.shape(drafts=(drafts, "B k"), lengths=(lengths, "B"))
    accept, token = _uniforms(p, seed, request, position, accept, k, token)
    places = torch.arange(k, device=p.device)
    x = torch.where(places < (k if lengths is None else lengths[:, None]), drafts.long(), -1)
    again = (x[:, :, None] == x[:, None, :]).tril(-1).any(2)
    known = (x >= 0) & (x < V) & ~again
    at = torch.where(known, x, V)  # (B, k)
    row = torch.nn.functional.pad(p.float(), (0, 1))
    px = row.gather(1, at)
    others = row.scatter(1, at, 0)  # the row without its drafts                                                    (B, V + 1)
    outside = others.sum(1, keepdim=True)
    left = torch.cat([px, outside], 1).flip(1).cumsum(1).flip(1)  # the mass of each draft and all after it          (B, k + 1)
    accepted = known & (accept * left[:, :k] < px) & (left[:, :1] < float("inf"))  # false for a NaN anywhere in the row
    drawn = walk_tree(others[:, None, :V], None, x[:, :0].new_zeros(B, 1), x.new_full((B, 1), -1), None, px[:, :0], token, MATCH)[1]
    drawn = torch.where(left[:, 0] < float("inf"), drawn, -1)
    first = torch.where(accepted, places, k).amin(1, keepdim=True) if k else x.new_zeros(B, 1)  # (B, 1)
    chosen = torch.cat([x, drawn[:, None]], 1).gather(1, first)[:, 0]
    return chosen.to(drafts.dtype), first[:, 0] < k


def walk(p, q, tokens, parents, lengths, accept, token, seed, request, position, mode):
    """Check the arguments of any tree verifier and walk: path `(B, N - 1)` and token `(B,)`."""
    sizes = checks.shape(p=(p, "B N V"), tokens=(tokens, "B N"), parents=(parents, "B N"))
    if sizes["N"] == 0 or sizes["V"] == 0:
        raise ValueError(f"p must have shape (B, N, V) with N (the root counts) and V at least 1, not {tuple(p.shape)}")
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    if q is not None:
        checks.shape(p=(p, "B N V"), q=(q, "B N V"))
        checks.same(p=p, q=q)
    checks.dtypes(torch.int64, torch.int32, tokens=tokens, parents=parents, lengths=lengths)
    checks.same(tokens=tokens, parents=parents)
    if lengths is not None:
        checks.shape(tokens=(tokens, "B N"), lengths=(lengths, "B"))
    checks.contiguous(p=p, q=q)
    checks.same_device(p=p, tokens=tokens, lengths=lengths)
    if mode == MATCH:
        coins = None if token is None else torch.empty(len(p), 0, device=p.device)  # nothing is accepted or refused
        accept, token = philox.tape(p, seed, request, position, accept=(coins, 0), token=(token, sizes["N"]))
    else:
        accept, token = _uniforms(p, seed, request, position, accept, sizes["N"] - 1, token)
    return walk_tree(p, q, tokens, parents, lengths, accept, token, mode)


def _uniforms(p, seed, request, position, accept, coins, token):
    """The coins `(B, coins)` and the one final uniform `(B, 1)`."""
    if token is not None:
        checks.shape(p=(p[..., 0], "B N" if p.ndim == 3 else "B"), token=(token, "B"))
    return philox.tape(p, seed, request, position, accept=(accept, coins), token=(None if token is None else token[:, None], 1))
