"""Drafts without replacement on a batch: a race to draw them, and recursive rejection against the laws they were drawn from.

Probabilities are float32, bfloat16 or float16; everything is computed in float32, under the same contract as `specinfer`. A draft that
q cannot have drawn without replacement (q(x) = 0, outside the vocabulary, or drawn before) is passed over as if it were not there: the
padding of `sample`, -1, may stay in `drafts` and `tokens`.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.gumbel_topk import gumbel_topk, gumbel_topk_seeded
from twofold.fast.kernels.walk_tree import WITHOUT
from twofold.fast.speculative import match

__all__ = ["sample", "race", "select", "verify_tree"]


def sample(q, k, *, seed=None, request=None, position=None, node=None):
    """k distinct tokens per row `(B, k)`, int64, in the order in which they were drawn from q `(B, V)`; -1 where q has no more.

    The noise of token v belongs to `seed`, the request id (`request` `(B,)`, default 0 … B - 1), the position at which the round begins
    (`position` `(B,)`, default 0) and the number node * V + v, below 2^24: rows of one request and round, the nodes of one tree, say,
    must differ in `node` `(B,)`, default 0. A row that holds a NaN gives -1 only.
    """
    B = _check(q, k)
    if seed is None:
        raise ValueError("give a seed: every draw is a function of it, the request id, the position and the node")
    checks.dtypes(torch.int64, torch.int32, request=request, position=position, node=node)
    zeros = torch.zeros(B, dtype=torch.int64, device=q.device)
    zeros, keys = torch.zeros(B, dtype=torch.int64, device=q.device), []
    defaults = {"request": torch.arange(B, device=q.device), "position": zeros, "node": zeros}
    for name, tensor in (("request", request), ("position", position), ("node", node)):
        if tensor is not None:
            checks.shape(q=(q, "B V"), **{name: (tensor, "B")})
        keys.append(defaults[name] if tensor is None else tensor.to(q.device, torch.int64))
    return gumbel_topk_seeded(q.contiguous(), k, seed - (1 << 64) if seed >= 1 << 63 else seed, *keys)


def race(q, k, noise):
    """The first k of the times `noise / q` per row `(B, k)`, int64, ties by id, padded with -1; noise `(B, V)` is float32.

    With independent exponential noise the rows have the law of `sample`. A row in which q or its noise holds a NaN gives -1 only.
    """
    _check(q, k)
    checks.shape(q=(q, "B V"), noise=(noise, "B V"))
    checks.dtypes(torch.float32, noise=noise)
    if noise.device != q.device:
        raise ValueError(f"noise must be on the device of q, {q.device}, not on {noise.device}")
    return gumbel_topk(q.contiguous(), k, noise.contiguous())


def select(p, q, drafts, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """The token for one position `(B,)`, in the dtype of `drafts`, and whether it was drafted `(B,)`.

    p, q `(B, V)`, q as it was before any draw, drafts `(B, k)` in the order in which they were drawn, of which request b has the first
    `lengths[b]`. `accept` `(B, k)` holds the coins in order of use, `token` `(B,)` the uniform of the final draw; without these float32
    uniforms they come from `seed`, `request` and `position` `(B,)`.
    """
    B, k = (checks.shape(p=(p, "B V"), q=(q, "B V"), drafts=(drafts, "B k"))[axis] for axis in ("B", "k"))
    checks.dtypes(torch.int64, torch.int32, drafts=drafts, lengths=lengths)
    if lengths is not None:
        checks.shape(drafts=(drafts, "B k"), lengths=(lengths, "B"))
        lengths = lengths.clamp(min=0) + 1  # nodes, with the root
    nodes = lambda row: row[:, None].expand(B, k + 1, row.shape[1])  # a tree of k leaves: only its root's row is read
    parents = torch.cat([drafts.new_full((B, 1), -1), torch.zeros_like(drafts)], 1)
    tokens = torch.nn.functional.pad(drafts, (1, 0))
    path, drawn = match.walk(nodes(p), nodes(q), tokens, parents, lengths, accept, token, seed, request, position, WITHOUT)
    place = torch.nn.functional.pad(path, (0, 1), value=-1)[:, :1]  # the accepted leaf, or -1           (B, 1)
    chosen = torch.cat([drafts, drawn[:, None]], 1).gather(1, torch.where(place < 0, k, place - 1).long())
    return chosen[:, 0], place[:, 0] >= 0


def verify_tree(p, q, tokens, parents, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """The accepted path `(B, N - 1)`, node ids padded with -1, and the token that follows it `(B,)`, in the dtype of `tokens`.

    p, q `(B, N, V)`: row n is the target's law after node n, and the law from which the children of n were drawn without replacement, as
    it was before any draw. The other arguments are those of `specinfer.verify_tree`.
    """
    return match.walk(p, q, tokens, parents, lengths, accept, token, seed, request, position, WITHOUT)


def _check(q, k):
    sizes = checks.shape(q=(q, "B V"))
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, q=q)
    if k < 0:
        raise ValueError(f"k must be at least 0, not {k}")
    if sizes["V"] == 0:
        raise ValueError("q must have shape (B, V) with V at least 1")
    return sizes["B"]
