"""Gated linear attention: a memory that forgets each key channel at its own, data-dependent rate (arXiv:2312.06635).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, value head h reading query and key head h // (H / Hq); log-decays g
`(B, T, H, K)`, or `(B, T, H, 1)` for one decay per token, or None for none; states `(B, H, K, V)` in float32. q arrives scaled.

`chunked` is the one to use: on a GPU the Triton kernels of `fast/kernels/chunk_recurrence.py`, on the CPU their PyTorch twin; it is
trained, packs sequences and takes float32, bfloat16 and float16. The kernels' products of matrices then take operands in that format
(float32 ones with 22 bits at least) and accumulate in float32. `recurrent` and `parallel` are plain PyTorch, for reference and short
sequences; `step` is one token.
g must be at most 0 (-inf forgets): a positive one is an error on the CPU and, with `check=True`, which waits for the device, on a GPU.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence

__all__ = ["recurrent", "parallel", "chunked", "step", "gate"]


def chunked(q, k, v, g, S0=None, chunk=64, *, cu_seqlens=None, check=False):
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything, S0 included.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, S0 and final states are `(N, H, K, V)`, and an empty sequence
    returns its S0.
    `chunk`, of 16, 32 and 64, changes speed and rounding only.
    """
    return diagonal_recurrence.run(q, k, v, g, S0, chunk, cu_seqlens, check)


def recurrent(q, k, v, g, S0=None):
    """The definition, one token after the other."""
    q, k, v, g, state = _wide(q, k, v, g, S0)
    outputs = [v[:, :0]]
    for t in range(q.shape[1]):
        output, state = step(state, q[:, t], k[:, t], v[:, t], g[:, t])
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def parallel(q, k, v, g, S0=None):
    """All pairs of tokens at once: memory O(T² K)."""
    q, k, v, g, state = (x.transpose(1, 2) if i < 4 else x for i, x in enumerate(_wide(q, k, v, g, S0)))
    times = torch.arange(q.shape[2], device=q.device)
    between = torch.where((times[:, None] > times)[..., None], g[..., None, :], 0.0).cumsum(2)                     # (B, H, T, T, K)
    decay = torch.where((times[:, None] >= times)[..., None], between, -torch.inf).exp()
    scores = (q[..., None, :] * k[..., None, :, :] * decay).sum(-1)
    output = scores @ v + (q * g.cumsum(2).exp()) @ state
    until = torch.cat([g[:, :, 1:], torch.zeros_like(g[:, :, :1])], 2).flip(2).cumsum(2).flip(2)
    return output.transpose(1, 2), g.sum(2).exp()[..., None] * state + (k * until.exp()).mT @ v


def step(state, q, k, v, g):
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H, K)`, then read: the output `(B, H, V)` and the new state, float32."""
    if g is None:
        g = torch.zeros((*v.shape[:2], 1), device=v.device)
    sizes = checks.shape(q=(q, "B Hq K"), k=(k, "B Hq K"), v=(v, "B H V"), state=(state, "B H K V"))
    checks.shape(v=(v, "B H V"), q=(q, "B Hq K"), g=(g, "B H 1" if g.shape[-1] == 1 else "B H K"))
    group = sizes["H"] // sizes["Hq"]
    q, k = (x.repeat_interleave(group, 1).to(state.dtype) for x in (q, k))
    state = g.to(state.dtype).exp()[..., None] * state + k[..., None] * v.to(state.dtype)[..., None, :]
    return (q[..., None, :] @ state).squeeze(-2).to(v.dtype), state


def gate(x, W1, W2, b, tau=16.0):
    """The layer's log-decays `(…, K)` from its inputs `(…, D)`: logsigmoid(x W1 W2 + b) / tau, in float32."""
    return torch.nn.functional.logsigmoid(((x @ W1) @ W2 + b).float() if x.dtype != torch.float64 else (x @ W1) @ W2 + b) / tau


def _wide(q, k, v, g, S0):
    """Everything in the computing format and with the heads of v; zeros for what is None."""
    sizes = checks.shape(q=(q, "B T Hq K"), k=(k, "B T Hq K"), v=(v, "B T H V"))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    g = torch.zeros((*v.shape[:3], 1), device=v.device) if g is None else g
    q, k = (x.repeat_interleave(sizes["H"] // sizes["Hq"], 2) for x in (q, k))
    state = torch.zeros((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), device=v.device) if S0 is None else S0
    return [x.to(wide) for x in (q, k, v, g, state)]
