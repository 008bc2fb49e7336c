"""Merging parts of attention, vectorized and differentiable. See `twofold.spec.attention.online_softmax`.

A pair (o, lse) lies as every attention of this package returns it: o (..., T, H, Dv), lse (..., H, T) in float32. So merging the results of
two calls of `flash.forward` is attention over both sets of keys, gradients included; a sink is applied once, afterwards. A state (m, l, a)
lies as logits do, heads first: m and l (..., H, T), a (..., H, T, Dv), all float32. Leading axes are free and broadcast. This is plain
PyTorch, a handful of elementwise operations.
"""

import math

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["merge", "identity", "update", "finish"]

State = tuple[Tensor, Tensor, Tensor]
Pair = tuple[Tensor, Tensor]


def merge(a: State | Pair, b: State | Pair) -> State | Pair:
    """The union of two states (m, l, a), or of two pairs (o, lse) whose output comes in the wider of their dtypes.

    Where one side has met no key, the other comes back bit for bit.
    """
    if not isinstance(a, tuple) or not isinstance(b, tuple) or (len(a), len(b)) not in ((2, 2), (3, 3)):
        raise TypeError("a and b must be two states (m, l, a) or two pairs (o, lse)")
    if len(a) == 3:
        _check_state("a", a)
        _check_state("b", b)
        return _merged(a, b)
    (o1, lse1), (o2, lse2) = _check_pair("a", a), _check_pair("b", b)
    top = _reference(torch.maximum(lse1, lse2).detach())
    w1, w2 = torch.exp(lse1 - top), torch.exp(lse2 - top)
    total = w1 + w2
    empty = total == 0
    total = total.masked_fill(empty, 1)
    o = _by_row(w1 / total) * o1 + _by_row(w2 / total) * o2
    return o.to(torch.promote_types(o1.dtype, o2.dtype)), (top + total.log()).masked_fill(empty, -math.inf)


def identity(dv: int, *, shape: tuple[int, ...] = (1, 1), device: torch.device | str | None = None) -> State:
    """The state of rows that have met no key; `shape` is that of m, one head and one row unless it is given."""
    if dv < 0:
        raise ValueError(f"dv must be at least 0, not {dv}")
    zeros = torch.zeros(*shape, dv, device=device)
    return zeros.new_full(shape, -math.inf), zeros.new_zeros(shape), zeros


def update(state: State, s: Tensor, v: Tensor) -> State:
    """The state after n more keys, of float32 logits `s` (..., H, T, n) and values `v` (..., H, n, Dv) or (n, Dv)."""
    _check_state("state", state)
    checks.dtypes(torch.float32, s=s)
    if s.ndim < 2 or v.ndim < 2 or s.shape[-1] != v.shape[-2]:
        raise ValueError(f"v must have shape (..., n, Dv) for s (..., H, T, n), not {tuple(v.shape)} for {tuple(s.shape)}")
    if v.shape[-1] != state[2].shape[-1]:
        raise ValueError(f"v must be as wide as the state, {state[2].shape[-1]}, not {v.shape[-1]}")
    m = s.detach().amax(-1) if s.shape[-1] else s.detach().new_full(s.shape[:-1], -math.inf)
    p = torch.exp(s - _reference(m)[..., None])
    return _merged(state, (m, p.sum(-1), p @ v.float()))


def finish(state: State) -> Pair:
    """The output (..., T, H, Dv) and the log-sum-exp (..., H, T), both float32; 0 and -inf where no key was met."""
    m, l, a = _check_state("state", state)
    empty = l == 0
    total = l.masked_fill(empty, 1)
    return (a / total[..., None]).transpose(-3, -2), (_reference(m) + total.log()).masked_fill(empty, -math.inf)


def _merged(a, b):
    """No gradient flows through a reference: no result depends on which one is taken."""
    (m1, l1, a1), (m2, l2, a2) = a, b
    m = torch.maximum(m1, m2)
    w1, w2 = torch.exp(m1 - _reference(m)), torch.exp(m2 - _reference(m))
    return m, w1 * l1 + w2 * l2, w1[..., None] * a1 + w2[..., None] * a2


def _reference(m):
    return m.masked_fill(m == -math.inf, 0)  # no key yet: -inf - -inf is no logit


def _by_row(weight):
    """(..., H, T) -> (..., T, H, 1)"""
    return weight.mT[..., None]


def _check_state(name, state):
    if not isinstance(state, tuple) or len(state) != 3 or not all(isinstance(x, Tensor) for x in state):
        raise TypeError(f"{name} must be a state (m, l, a) of tensors")
    m, l, a = state
    checks.same(**{f"{name}[0]": m, f"{name}[1]": l, f"{name}[2]": a})
    checks.dtypes(torch.float32, **{f"{name}[0]": m})
    if m.ndim < 2 or l.shape != m.shape or a.shape[:-1] != m.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in state)
        raise ValueError(f"{name} must have shapes (..., H, T), (..., H, T), (..., H, T, Dv), not {shapes}")
    return state


def _check_pair(name, pair):
    o, lse = pair
    if not isinstance(o, Tensor) or not isinstance(lse, Tensor):
        raise TypeError(f"{name} must be a pair (o, lse) of tensors")
    checks.dtypes(torch.float32, torch.float16, torch.bfloat16, **{f"{name}'s o": o})
    checks.dtypes(torch.float32, **{f"{name}'s lse": lse})
    checks.same_device(**{f"{name}'s o": o, f"{name}'s lse": lse})
    if lse.ndim < 2 or o.shape[:-1] != lse.mT.shape:
        raise ValueError(f"{name} must be a pair o (..., T, H, Dv), lse (..., H, T), not {tuple(o.shape)}, {tuple(lse.shape)}")
    return pair
