"""SpecHub on a batch: two drafts per request, verified in closed form with four sums over the row.

Probabilities are float32, bfloat16 or float16; everything is computed in float64. Drafts that are not the hub (the first greatest entry of
q) and another token that q can have drawn are refused, and the token comes from p. Where p or q holds a NaN, or p no mass, the token is
-1, never a valid id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox

__all__ = ["select", "sample"]


def sample(q, *, token=None, seed=None, request=None, position=None):
    """Two drafts per row `(B, 2)`, int64, the hub one of them; the hub and -1 where q `(B, V)` has no other token.

    `token` `(B, 2)` holds the float32 uniforms of the two draws; the second is used where the first draft is the hub. Without them they
    come from `seed`, the request ids `request` `(B,)` and the places of the drafts in the text `position` `(B,)`. A row with a NaN
    gives -1.
    """
    V = checks.shape(q=(q, "B V"))["V"]
    _check(V, q=q)
    _, token = philox.tape(q, seed, request, position, accept=(None if token is None else q[:, :0].float(), 0), token=(token, 2))
    q = q.double()
    hub = q.argmax(1)
    first = _draw(q, token[:, 0])
    second = torch.where(first == hub, _draw(q.scatter(1, hub[:, None], 0), token[:, 1]), hub)
    return torch.stack([first, torch.where(first < 0, -1, second)], 1)


def select(p, q, drafts, *, accept=None, token=None, seed=None, request=None, position=None):
    """The token for one position `(B,)`, in the dtype of `drafts`, and whether it was drafted `(B,)`.

    p, q `(B, V)`, drafts `(B, 2)` as `sample` gives them. `accept` `(B, 2)` holds the coins, for the token that is not the hub and for the
    hub (the first one where the hub is alone), `token` `(B,)` the uniform of the final draw; without these float32 uniforms they come
    from `seed`, `request` and `position` `(B,)`.
    """
    V = checks.shape(p=(p, "B V"), q=(q, "B V"), drafts=(drafts, "B 2"))["V"]
    _check(V, p=p)
    checks.same(p=p, q=q)
    checks.dtypes(torch.int64, torch.int32, drafts=drafts)
    if token is not None:
        checks.shape(drafts=(drafts, "B 2"), token=(token, "B"))
    accept, token = philox.tape(p, seed, request, position, accept=(accept, 2), token=(None if token is None else token[:, None], 1))
    p, q, x = p.double(), q.double(), drafts.long()
    hub = q.argmax(1, keepdim=True)
    target, first = p.scatter(1, hub, 0), q.scatter(1, hub, 0)  # both off the hub; first: D(x, hub)
    others = first.sum(1, keepdim=True)
    second = torch.where(others > 0, q.gather(1, hub) * first / others, 0)  # D(hub, x)
    serve = torch.minimum(target, first)
    serve_again = torch.minimum(target - serve, second)
    left = target - serve - serve_again
    unserved = (first - serve + second - serve_again).sum(1)

    alone = (others[:, 0] == 0) & (x[:, 0] == hub[:, 0])
    begins = x[:, :1] == hub  # the hub was drawn first
    other = torch.where(begins, x[:, 1:], x[:, :1])
    inside = (other >= 0) & (other < V)
    at = torch.where(inside, other, 0)
    gain, chance = (torch.where(begins, again, once).gather(1, at)[:, 0] for once, again in ((serve, serve_again), (first, second)))
    pair = ((x == hub).sum(1) == 1) & inside[:, 0] & (chance > 0)
    total = p.sum(1)
    valid = (total > 0) & (total < float("inf")) & (q.sum(1) < float("inf"))  # false for a NaN
    px = p.gather(1, hub)[:, 0]
    takes = valid & pair & (accept[:, 0] * chance < gain)
    falls = valid & ~takes & torch.where(alone, accept[:, 0] < px, pair & (accept[:, 1] * unserved < px))
    drawn = _draw(torch.where((pair | alone)[:, None] & (left.sum(1, keepdim=True) > 0), left, p), token[:, 0])
    chosen = torch.where(takes, at[:, 0], torch.where(falls, hub[:, 0], torch.where(valid, drawn, -1)))
    return chosen.to(drafts.dtype), takes | falls


def _draw(weights, u):
    """The token of each row where its cumulative weight passes u times the total, -1 where it has no mass or no number."""
    sums, ids = weights.cumsum(1), torch.arange(weights.shape[1], device=u.device)
    past = (u[:, None] * sums[:, -1:] < sums) & (weights > 0)
    drawn = torch.where(past, ids, len(ids)).amin(1)
    drawn = torch.where(drawn < len(ids), drawn, torch.where(weights > 0, ids, 0).amax(1))
    return torch.where((sums[:, -1] > 0) & (sums[:, -1] < float("inf")), drawn, -1)


def _check(V, **row):
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, **row)
    if V == 0:
        raise ValueError(f"{next(iter(row))} must have shape (B, V) with V at least 1")
