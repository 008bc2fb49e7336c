"""The target laws of speculative cascades, row by row, on tensors: what a verifier is then given in the place of p.

Rows are float32, bfloat16 or float16 and come back in their own dtype; sums and comparisons are float32. A row of p that holds a NaN, and
is needed, makes a row that holds one, which a verifier will not draw from: no comparison with it succeeds, and so it is p that is taken.
"""

import torch

from twofold.fast import checks

__all__ = ["chow", "opt", "token_specific"]


def chow(p, q, t):
    """Rows `(..., V)`: q's where its greatest entry is 1 - t at least, else p's. `t` is a number or a tensor `(...)`."""
    t = _check(p, q, t)
    return torch.where(q.amax(-1, keepdim=True).float() >= 1 - t, q, p)


def opt(p, q, t):
    """Rows `(..., V)`: p's where q's greatest entry is less than p's by more than t times what would be refused, else q's."""
    t = _check(p, q, t)
    refused = (p.float() - q.float()).clamp(min=0).sum(-1, keepdim=True)
    return torch.where(q.amax(-1, keepdim=True).float() >= p.amax(-1, keepdim=True).float() - t * refused, q, p)


def token_specific(p, q, t):
    """Rows `(..., V)`: q's entries at the tokens whose probability under p is within t of the best, and p times the rest of q's mass."""
    t = _check(p, q, t)
    large, small = p.float(), q.float()
    good = large >= large.amax(-1, keepdim=True) - t
    return (torch.where(good, small, 0.0) + large * torch.where(good, 0.0, small).sum(-1, keepdim=True)).to(p.dtype)


def _check(p, q, t):
    """`t` as it broadcasts over rows."""
    for name, tensor in (("p", p), ("q", q)):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0:
            raise TypeError(f"{name} must be a tensor of rows of shape (..., V)")
    if p.shape != q.shape or p.shape[-1] == 0:
        raise ValueError(f"p and q must have one shape (..., V) with V at least 1, not {tuple(p.shape)} and {tuple(q.shape)}")
    checks.same(p=p, q=q)
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, p=p)
    if not isinstance(t, torch.Tensor):
        if not t >= 0:
            raise ValueError(f"t must be at least 0, not {t}")
        return t
    if t.shape != p.shape[:-1] or t.device != p.device:
        raise ValueError(f"t must have the shape of the rows, {tuple(p.shape[:-1])}, on their device, not {tuple(t.shape)} on {t.device}")
    return t.float()[..., None]
