"""Running maxima of what fades: m_t = max(g_t + m_{t-1}, x_t), the unit in which a recurrence with weights e^{x_t} stays in range.

Steps m -> max(g + m, x) compose to steps of the same kind, so that log2(T) rounds of doubling replace T steps. A term is reached by a sum
of the decays between it and the token, made by pairs: its error is log2(T) roundings of that sum. (The difference of two sums from the
start would have the rounding of those, however short the distance.) Plain PyTorch in the format of its arguments: such a scan is little
beside what it is done for. Nothing waits for the device, and packed sequences share the rounds.

To autograd a unit is a constant: maxima before tokens pass a gradient to the start only. Those after them have their true gradient, which
goes to the term that is the maximum, for what does depend on the unit: a state that is handed on divided by it.
"""

import torch
from torch import Tensor

__all__ = ["known", "last", "preceding", "run"]


def run(g: Tensor, x: Tensor, start: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The maxima before and after each token, `(B, T, H)`, of g, at most 0, and x, of that shape too.

    start, the maxima before the first tokens, is `(N, H)`; with `cu_seqlens` `(N + 1,)` B is 1 and N sequences are packed along T.
    """
    first, held = _begins(x.shape[1], start, cu_seqlens)
    decay = torch.where(first, -torch.inf, g)
    after = torch.where(first, torch.maximum(g + held, x), x)
    reach = 1
    while reach < x.shape[1]:
        after = torch.cat([after[:, :reach], torch.maximum(after[:, :-reach] + decay[:, reach:], after[:, reach:])], 1)
        decay = torch.cat([decay[:, :reach], decay[:, :-reach] + decay[:, reach:]], 1)
        reach *= 2
    return preceding(after.detach(), start, cu_seqlens), after


def preceding(x: Tensor, start: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """What stands before each token: x `(B, T, H)` of the token before it, or its sequence's start `(N, H)`."""
    first, held = _begins(x.shape[1], start, cu_seqlens)
    return torch.where(first, held, torch.cat([x[:, :1], x[:, :-1]], 1))


def last(after: Tensor, start: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each sequence's last maximum `(N, H)`, of an empty one its start; and a factor of 1 that gives a state the gradient by its unit."""
    if after.shape[1] == 0:
        return start, torch.ones_like(start)
    if cu_seqlens is None:
        unit, constant = after[:, -1], after[:, -1].detach()
    else:
        filled, at = cu_seqlens.diff()[:, None] > 0, (cu_seqlens[1:] - 1).clamp(0, after.shape[1] - 1)
        unit, constant = (torch.where(filled, x[0, at], start) for x in (after, after.detach()))
    return unit, (known(constant) - known(unit)).exp()


def known(m: Tensor) -> Tensor:
    """Maxima of nothing as 0: where there is nothing yet, any unit serves."""
    return torch.where(m > -torch.inf, m, 0.0)


def _begins(length, start, cu_seqlens):
    """Which tokens begin a sequence `(T, 1)`, and every token's start `(B, 1, H)` or `(1, T, H)`."""
    t = torch.arange(length, device=start.device)
    if cu_seqlens is None:
        return (t == 0)[:, None], start[:, None]
    owner = torch.searchsorted(cu_seqlens.to(t.dtype), t, right=True).sub(1).clamp(0, max(len(start) - 1, 0))
    return (t == cu_seqlens[owner])[:, None], start[owner][None]
