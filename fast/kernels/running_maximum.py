"""Running maxima of what fades: m_t = max(g_t + m_{t-1}, x_t), the unit in which a recurrence with weights e^{x_t} stays in range.

Steps m -> max(g + m, x) compose to steps of the same kind, so that log2(T) rounds of doubling replace T steps. A term is reached by a sum
of the decays between it and the token, made by pairs: its error is log2(T) roundings of that sum. (The difference of two sums from the
start would have the rounding of those, however short the distance.) Plain PyTorch in the format of its arguments: a number per token and
head is little beside its keys. Nothing waits for the device, and packed sequences share the rounds.

To autograd a unit is a constant: maxima before tokens pass a gradient to the start only. Those after them have their true gradient, which
goes to the term that is the maximum, for what does depend on the unit.
"""

import torch
from torch import Tensor

__all__ = ["last", "run"]


def run(g: Tensor, x: Tensor, start: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The maxima before and after each token, `(B, T, H)`, of g, at most 0, and x, of that shape too.

    start, the maxima before the first tokens, is `(N, H)`; with `cu_seqlens` `(N + 1,)` B is 1 and N sequences are packed along T.
    """
    length = x.shape[1]
    t = torch.arange(length, device=x.device)
    if cu_seqlens is None:
        first, held = (t == 0)[:, None], start[:, None]  # (T, 1), (B, 1, H)
    else:
        owner = torch.searchsorted(cu_seqlens.to(t.dtype), t, right=True).sub(1).clamp(0, max(len(start) - 1, 0))
        first, held = (t == cu_seqlens[owner])[:, None], start[owner][None]  # (T, 1), (1, T, H)
    decay = torch.where(first, -torch.inf, g)
    after = torch.where(first, torch.maximum(g + held, x), x)
    reach = 1
    while reach < length:
        after = torch.cat([after[:, :reach], torch.maximum(after[:, :-reach] + decay[:, reach:], after[:, reach:])], 1)
        decay = torch.cat([decay[:, :reach], decay[:, :-reach] + decay[:, reach:]], 1)
        reach *= 2
    return torch.where(first, held, torch.cat([after[:, :1], after[:, :-1]], 1).detach()), after


def last(after: Tensor, start: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Each sequence's last maximum `(N, H)`; that of an empty one is its start."""
    if after.shape[1] == 0:
        return start
    if cu_seqlens is None:
        return after[:, -1]
    begin, end = cu_seqlens[:-1], cu_seqlens[1:]
    return torch.where((end > begin)[:, None], after[0, (end - 1).clamp(0, after.shape[1] - 1)], start)
