"""Attention with the whole score matrix in memory, on tensors (B, T, H, D): plain PyTorch in float32. See `twofold.spec.attention.dense`.

`mask` and `bias` have a shape that broadcasts to (B, H, Tq, Tk), `sink` is (H,). Query head h reads key head h // (H / Hkv). A row that
sees no key has output 0, log-sum-exp -inf and gradients 0. Everything is computed in float32, and differentiable by autograd as well.
"""

import math

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import three

__all__ = ["attention", "weights", "backward"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32."""
    _check(q, k, v, mask, scale, softcap, bias, sink)
    p, lse = _softmax(_logits(q, k, mask, scale, softcap, bias))
    o = _share(lse, sink)[..., None] * (p @ _heads(v, q.shape[2]))  # (B, H, Tq, Dv)
    return o.transpose(1, 2).contiguous().to(q.dtype), lse


def weights(
    q: Tensor,
    k: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The matrix of weights (B, H, Tq, Tk) in float32: each row sums to 1, to its share with a sink, to 0 without keys."""
    _check(q, k, k, mask, scale, softcap, bias, sink)
    p, lse = _softmax(_logits(q, k, mask, scale, softcap, bias))
    return _share(lse, sink)[..., None] * p


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    *,
    dlse: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients (dq, dk, dv, dbias, dsink); those of `bias` and `sink` are float32, in their shapes, and None where there is none."""
    _check(q, k, v, mask, scale, softcap, bias, sink)
    checks.shape(q=(q, "B Tq H D"), v=(v, "B Tk Hkv Dv"), do=(do, "B Tq H Dv"))
    if dlse is not None:
        checks.shape(q=(q, "B Tq H D"), dlse=(dlse, "B H Tq"))
    heads = q.shape[2]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    p0, lse = _softmax(_logits(q, k, mask, scale, softcap, bias))
    share = _share(lse, sink)
    p = share[..., None] * p0
    queries, keys, values, gradient = (_heads(x, heads) for x in (q, k, v, do))  # (B, H, T, D)
    d = (gradient * (p @ values)).sum(-1)  # (B, H, Tq)
    ds = p * (gradient @ values.mT - d[..., None])
    if dlse is not None:
        ds = ds + p0 * dlse[..., None]
    dx = ds if softcap is None else ds * (1 - (factor / softcap * (queries @ keys.mT)).tanh().square())
    dq, dk, dv = factor * (dx @ keys), factor * (dx.mT @ queries), p.mT @ gradient
    dbias = None if bias is None else ds.sum_to_size(bias.shape)
    dsink = None if sink is None else -((1 - share) * d).sum((0, 2))
    return _like(dq, q), _like(dk, k), _like(dv, v), dbias, dsink


def _logits(q, k, mask, scale, softcap, bias):
    """Scale, then cap, then bias, then mask (B, H, Tq, Tk)."""
    heads = q.shape[2]
    s = (q.shape[3] ** -0.5 if scale is None else scale) * (_heads(q, heads) @ _heads(k, heads).mT)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    s = s if bias is None else s + bias.float()
    return s if mask is None else s.masked_fill(~mask, -math.inf)


def _softmax(s):
    """The softmax over real keys (B, H, Tq, Tk), 0 in a row that has none, and the log-sum-exp (B, H, Tq)."""
    if not s.shape[-1]:
        return s, s.sum(-1) - math.inf
    top = s.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0)
    p = torch.exp(s - top)
    total = p.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    return p / total, (top + total.log()).masked_fill(empty, -math.inf).squeeze(-1)


def _share(lse, sink):
    """What the sink leaves to the keys of each row (B, H, Tq)."""
    return torch.ones_like(lse) if sink is None else torch.sigmoid(lse.masked_fill(lse == -math.inf, 0) - sink.float()[:, None])


def _heads(x, heads):
    """(B, T, Hkv, D) -> (B, H, T, D) in float32, every key head repeated for the query heads that read it."""
    return x.float().transpose(1, 2).repeat_interleave(heads // x.shape[2], dim=1)


def _like(gradient, x):
    """(B, H, T, D) -> (B, T, Hkv, D): the sum over the query heads that read one key head."""
    return gradient.unflatten(1, (x.shape[2], -1)).sum(2).transpose(1, 2).contiguous().to(x.dtype)


def _check(q, k, v, mask, scale, softcap, bias, sink):
    sizes = three(q, k, v)
    full = tuple(sizes[axis] for axis in ("B", "H", "Tq", "Tk"))
    for name, tensor in (("mask", mask), ("bias", bias)):
        if tensor is not None and (tensor.ndim != 4 or any(n not in (1, m) for n, m in zip(tensor.shape, full, strict=True))):
            raise ValueError(f"{name} must broadcast to (B, H, Tq, Tk) = {full}, not have shape {tuple(tensor.shape)}")
    checks.dtypes(torch.bool, mask=mask)
    if sink is not None:
        checks.shape(q=(q, "B Tq H D"), sink=(sink, "H"))
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
