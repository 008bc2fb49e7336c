"""The PyTorch twin of `channel_scan`: the same two levels, with chunks of about the square root of the length, vectorized over chunks.

A sequence of T tokens then takes some three times that root of small steps, each over all channels and chunks or over all channels. It
computes in float32 (float64 where the inputs are) and runs packed sequences one by one, so that packing changes no bit.
"""

import math

import torch
import torch.nn.functional as F

__all__ = ["backward", "forward"]


def forward(x, g, S0, cu_seqlens, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, D)` and final states `(N, D)`."""
    o, final = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(S0)
    for tokens, states in _sequences(x, S0, cu_seqlens):
        h = _scan(_wide(x[:, tokens]), _wide(g[:, tokens]), S0[states], chunk)
        o[:, tokens], final[states] = h[:, 1:].to(o.dtype), h[:, -1]
    return o, final


def backward(x, g, S0, cu_seqlens, do, dS, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, dg and dS0: back in time a token's log-decay is that of its successor, and behind the last one nothing fades."""
    dx, dg = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty(g.shape, dtype=S0.dtype, device=g.device)
    dS0 = torch.empty_like(S0)
    for tokens, states in _sequences(x, S0, cu_seqlens):
        decay = _wide(g[:, tokens])
        before = _scan(_wide(x[:, tokens]), decay, S0[states], chunk)[:, :-1]
        shifted = F.pad(decay, (0, 0, 0, 1))[:, 1:]
        dh = _scan(_wide(do[:, tokens]).flip(1), shifted.flip(1), dS[states], chunk).flip(1)  # the last one is dS
        faded = decay.exp() * dh[:, :-1]
        dx[:, tokens], dg[:, tokens] = dh[:, :-1].to(dx.dtype), faded * before
        dS0[states] = faded[:, 0] if faded.shape[1] else dS[states]
    return dx, dg, dS0


def _sequences(x, S0, cu_seqlens):
    """(tokens, states) that one run covers: the whole batch at once, or packed sequences one by one."""
    if cu_seqlens is None:
        yield slice(None), slice(None)
    else:
        edges = cu_seqlens.tolist()
        for n, (begin, end) in enumerate(zip(edges, edges[1:])):
            yield slice(begin, end), slice(n, n + 1)


def _wide(x):
    return x if x.dtype == torch.float64 else x.float()


def _scan(x, g, state, chunk):
    """The state before every token and after the last `(B, T + 1, D)`. Tokens that fill the last chunk up change nothing."""
    length = x.shape[1]
    chunk = min(chunk or math.isqrt(length // 2) + 1, max(length, 1))
    count = -(-length // chunk)
    x, g = (F.pad(y, (0, 0, 0, count * chunk - length)).unflatten(1, (count, chunk)) for y in (x, g))
    decay, total = g.exp(), g.sum(2).exp()                                                # (B, J, C, D), (B, J, D)
    added = torch.zeros_like(total)
    for i in range(chunk if count > 1 else 0):
        added = torch.addcmul(x[:, :, i], decay[:, :, i], added)
    starts = [state]
    for j in range(count - 1):
        starts.append(torch.addcmul(added[:, j], total[:, j], starts[-1]))
    states = [torch.stack(starts, 1)]                                                     # (B, J, D)
    for i in range(chunk if length else 0):
        states.append(torch.addcmul(x[:, :, i], decay[:, :, i], states[-1]))
    after = torch.stack(states[1:], 2).flatten(1, 2)[:, :length] if length else x.flatten(1, 2)
    return torch.cat([state[:, None], after], 1)
