"""Mixture of heads on tensors: gates (B, T, H) for the outputs (B, T, H, Dv) of any attention. See `twofold.spec.attention.moh`.

Differentiable by autograd; the choice of heads is not, so a head that a token does not use gets no gradient from it.
"""

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["combine", "gates", "balance_loss"]


def combine(o: Tensor, g: Tensor, w_o: Tensor) -> Tensor:
    """o (B, T, H, Dv), g (B, T, H), w_o (H, D, Dv) -> (B, T, D): one matrix product over all heads."""
    checks.shape(o=(o, "B T H Dv"), g=(g, "B T H"), w_o=(w_o, "H D Dv"))
    checks.same(o=o, g=g, w_o=w_o)
    return (g[..., None] * o).flatten(2) @ w_o.transpose(1, 2).flatten(0, 1)


def gates(x: Tensor, w_h: Tensor, w_s: Tensor, w_r: Tensor, k: int) -> Tensor:
    """x (B, T, D), w_h (2, D), w_s (Hs, D), w_r (Hr, D) -> (B, T, Hs + Hr); 0 for routed heads that a token does not use."""
    checks.shape(x=(x, "B T D"), w_h=(w_h, "2 D"), w_s=(w_s, "Hs D"), w_r=(w_r, "Hr D"))
    checks.same(x=x, w_h=w_h, w_s=w_s, w_r=w_r)
    probabilities, chosen = _routed(x, w_r, k)
    alpha = torch.softmax((x @ w_h.mT).float(), -1)
    shared = torch.softmax((x @ w_s.mT).float(), -1)
    return torch.cat([alpha[..., :1] * shared, alpha[..., 1:] * probabilities * chosen], -1).to(x.dtype)


def balance_loss(x: Tensor, w_r: Tensor, k: int) -> Tensor:
    """How much probability lies on the heads that are chosen, over all tokens of x (B, T, D); a float32 number."""
    checks.shape(x=(x, "B T D"), w_r=(w_r, "Hr D"))
    checks.same(x=x, w_r=w_r)
    if not x.shape[:-1].numel():
        raise ValueError("x must hold at least one token")
    probabilities, chosen = _routed(x, w_r, k)
    return (chosen.flatten(0, 1).mean(0) * probabilities.flatten(0, 1).mean(0)).sum()


def _routed(x, w_r, k):
    """Probabilities of the routed heads in float32, and 1 where a head is among its token's k highest, the lowest index first."""
    if not 0 <= k <= len(w_r):
        raise ValueError(f"k must lie between 0 and the {len(w_r)} routed heads, not be {k}")
    scores = x @ w_r.mT
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.softmax(scores.float(), -1), torch.zeros_like(scores, dtype=torch.float32).scatter(-1, best, 1.0)
