"""k-SEQ on a batch: all drafts of a request at once, against one ratio, which is found on the row sorted once.

Probabilities are float32, bfloat16 or float16; everything is computed in float64, since the residual is a small difference where rho is
tight. A draft that q cannot have drawn (q(x) = 0, or an id outside the vocabulary) is never kept. Where p or q holds a NaN, or p no mass,
the token is -1, never a valid id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox

__all__ = ["select", "rho"]

STEPS = 40


def select(p, q, drafts, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """The token for one position `(B,)`, in the dtype of `drafts`, and whether it was drafted `(B,)`.

    p, q `(B, V)`, drafts `(B, k)` drawn from q, each by itself, of which request b has the first `lengths[b]`. Draft j is kept iff
    `accept[b, j]` rho q(x) < p(x), the first such j counts, and `token` `(B,)` draws where there is none. Without these float32 uniforms
    they come from `seed`, the request ids `request` `(B,)` and the places of the drafts in the text `position` `(B,)`.
    """
    B, V, k = (checks.shape(p=(p, "B V"), q=(q, "B V"), drafts=(drafts, "B k"))[axis] for axis in ("B", "V", "k"))
    checks.dtypes(torch.int64, torch.int32, drafts=drafts, lengths=lengths)
    for name, tensor in (("lengths", lengths), ("token", token)):
        if tensor is not None:
            checks.shape(drafts=(drafts, "B k"), **{name: (tensor, "B")})
    accept, token = philox.tape(p, seed, request, position, accept=(accept, k), token=(None if token is None else token[:, None], 1))
    count = torch.full((B,), k, device=p.device) if lengths is None else lengths.long().clamp(0, k)
    ratio = _rho(p, q, count)[:, None]
    p, q, places = p.double(), q.double(), torch.arange(k, device=p.device)
    known = (places < count[:, None]) & (drafts >= 0) & (drafts < V)
    at = torch.where(known, drafts, 0).long()
    px, qx = p.gather(1, at), q.gather(1, at)
    kept = known & (qx > 0) & (accept * ratio * qx < px)  # (B, k)
    once = torch.minimum(q, p / ratio)
    beta = once.sum(1, keepdim=True)
    some = 1 - (1 - beta) ** count[:, None]  # the chance that an attempt succeeds
    left = (p - once * torch.where(beta > 0, some / beta, 0)).clamp(min=0)
    left = torch.where(left.sum(1, keepdim=True) == 0, p, left)
    sums = left.cumsum(1)
    past = (token * sums[:, -1:] < sums) & (left > 0)
    ids = torch.arange(V, device=p.device)
    drawn = torch.where(past, ids, V).amin(1)
    drawn = torch.where(drawn < V, drawn, torch.where(left > 0, ids, 0).amax(1))
    valid = (sums[:, -1] > 0) & (sums[:, -1] < float("inf")) & (beta[:, 0] < float("inf"))  # false for a NaN
    first = torch.where(kept & valid[:, None], places, k).amin(1, keepdim=True) if k else count[:, None]
    chosen = torch.cat([at, torch.where(valid, drawn, -1)[:, None]], 1).gather(1, first)[:, 0]
    return chosen.to(drafts.dtype), first[:, 0] < k


def rho(p, q, k):
    """The least ratio `(B,)`, float64, in [1, k] that keeps the target's law by the paper's condition; p, q `(B, V)`."""
    checks.shape(p=(p, "B V"), q=(q, "B V"))
    if k < 0:
        raise ValueError(f"k must be at least 0, not {k}")
    return _rho(p, q, torch.full((len(p),), k, device=p.device))


def _rho(p, q, k):
    """Bisection with a number of drafts for each row `(B,)`: beta is a prefix sum of q and a suffix sum of p, in order of p / q."""
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, torch.float64, p=p)
    checks.same(p=p, q=q)
    if p.shape[1] == 0:
        raise ValueError("p must have shape (B, V) with V at least 1")
    p, q = p.double(), q.double()
    turn, order = torch.where(q > 0, p / q, float("inf")).sort(1)  # where min(q, p / rho) turns from q to p / rho
    below = torch.nn.functional.pad(p.gather(1, order).cumsum(1), (1, 0))
    above = torch.nn.functional.pad(q.gather(1, order).flip(1).cumsum(1).flip(1), (0, 1))

    def valid(ratio):
        place = torch.searchsorted(turn, ratio)
        beta = below.gather(1, place) / ratio + above.gather(1, place)
        return 1 - (1 - beta) ** k[:, None] <= ratio * beta

    low = torch.ones(len(p), 1, dtype=torch.float64, device=p.device)
    high = k[:, None].clamp(min=1).double()
    high = torch.where(valid(low), low, high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        fine = valid(middle)
        low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)
    return high[:, 0]
