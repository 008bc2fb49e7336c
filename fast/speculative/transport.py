"""The optimum of several drafts for one position, for a batch of rows: what a verifier's acceptance is measured against.

For independent drafts the least cut is found among |V| + 1 sets instead of 2^|V|. The cut p(A) + 1 - q(A)^k is a concave function of the
point (p(A), q(A)), so its least value over all points that sets give lies at a corner of their convex hull; and as it grows with p(A) and
falls with q(A), at a corner whose set holds the tokens with p / q below a threshold. So sort by p / q and look at the prefixes.

Without replacement the chance that all drafts lie in A is no function of q(A). It is built up from the law of the *set* drawn so far,
2^|V| sets at once, for vocabularies of at most 16 tokens. Probabilities are float32 or float64, and everything is computed in float64.
"""

import torch

from twofold.fast import checks

__all__ = ["optimum", "optimum_without_replacement"]

LARGEST = 16


def optimum(p, q, k):
    """The greatest probability `(B,)`, float64, with which one of k independent drafts can be kept; p, q `(B, V)`."""
    p, q = _check(p, q, k)
    order = torch.where(q > 0, p / q, float("inf")).argsort(1)
    inside, drafted = (torch.nn.functional.pad(x.gather(1, order).cumsum(1), (1, 0)) for x in (p, q))  # (B, V + 1)
    return (inside + 1 - drafted.clamp(max=1) ** k).amin(1)


def optimum_without_replacement(p, q, k):
    """The same for k drafts without replacement, for V of at most 16."""
    p, q = _check(p, q, k)
    V = p.shape[1]
    if V > LARGEST:
        raise ValueError(f"p must have at most {LARGEST} tokens, as all 2^V sets are looked at, not {V}")
    sets = torch.arange(1 << V, device=p.device)
    member = (sets[:, None] >> torch.arange(V, device=p.device)) & 1 == 1  # (2^V, V)
    mass, cut = (x @ member.T.to(x.dtype) for x in (q, p))  # (B, 2^V)
    rest = q @ (~member).T.to(q.dtype)  # a sum of what is left, not 1 - mass: exactly 0 where nothing is
    drawn = torch.zeros_like(mass)
    drawn[:, 0] = 1  # the chance that just this set was drawn so far
    for _ in range(k):
        step, over = torch.where(rest > 0, drawn / rest, 0), torch.where(rest > 0, 0, drawn)  # over: nothing more can be drawn
        drawn = over
        for v in range(V):
            without = sets[~member[:, v]]
            drawn[:, without | (1 << v)] += step[:, without] * q[:, v : v + 1]
    for v in range(V):  # summed over all subsets, one token after another
        without = sets[~member[:, v]]
        drawn[:, without | (1 << v)] += drawn[:, without]
    return (cut + 1 - drawn).amin(1)


def _check(p, q, k):
    sizes = checks.shape(p=(p, "B V"), q=(q, "B V"))
    checks.dtypes(torch.float32, torch.float64, p=p)
    checks.same(p=p, q=q)
    if k < 0:
        raise ValueError(f"k must be at least 0, not {k}")
    if sizes["V"] == 0:
        raise ValueError("p must have shape (B, V) with V at least 1")
    return p.double(), q.double()
