"""Gated slot attention: a memory of few slots that forget at their own rates, read by a softmax over the slots (arXiv:2409.07146).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, writes s and log-decays g `(B, T, H, M)`, g at most 0; states are
pairs `(B, H, K, M)`, `(B, H, M, V)` in float32. q arrives scaled.

`chunked` runs the kernels of `linear_attention.gla` twice, with the slots for key channels. The second pass is gated linear attention whose
queries are the softmax weights. The first reads the keys' memory along the keys: `kernels.transposed_recurrence`, which is a piece of those
kernels' backward pass. In between, logits and softmax are PyTorch in float32; weights are rounded to the format of v.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence, transposed_recurrence

__all__ = ["recurrent", "chunked", "step", "gate"]

State = tuple[Tensor, Tensor]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, S0: State | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, State]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states, with gradients for everything; packing as in `gla.chunked`."""
    q, k, (Kt, Vt) = _checked(q, k, v, s, g, S0, cu_seqlens)
    logits, Kt = transposed_recurrence.run(q, s, k, g, Kt.mT, chunk, cu_seqlens, check)
    o, Vt = diagonal_recurrence.run(torch.softmax(logits, -1).to(v.dtype), s, v, g, Vt, chunk, cu_seqlens)
    return o, (Kt.mT, Vt)


def recurrent(q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor, S0: State | None = None) -> tuple[Tensor, State]:
    """The definition, one token after the other."""
    q, k, state = _checked(q, k, v, s, g, S0, None)
    outputs = [v[:, :0]]
    for t in range(q.shape[1]):
        output, state = step(state, q[:, t], k[:, t], v[:, t], s[:, t], g[:, t])
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def step(state: State, q: Tensor, k: Tensor, v: Tensor, s: Tensor, g: Tensor) -> tuple[Tensor, State]:
    """Absorb one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H, M)`, then read: the output `(B, H, V)` and the new state, float32."""
    q, k, (Kt, Vt) = _checked(q[:, None], k[:, None], v[:, None], s[:, None], g[:, None], state, None)
    q, k, wide, s, decay = (x.to(Kt.dtype) for x in (q[:, 0], k[:, 0], v, s, g.to(Kt.dtype).exp()))
    Kt = Kt * decay[..., None, :] + k[..., None] * s[..., None, :]
    Vt = Vt * decay[..., None] + s[..., None] * wide[..., None, :]
    p = torch.softmax((q[..., None, :] @ Kt).squeeze(-2), -1)
    return (p[..., None, :] @ Vt).squeeze(-2).to(v.dtype), (Kt, Vt)


def gate(x: Tensor, tau: float = 8.0) -> tuple[Tensor, Tensor]:
    """The layer's writes and log-decays `(…, M)`, in float32: g = logsigmoid(x) / tau, s = 1 - e^g."""
    checks.positive(tau=tau)
    g = torch.nn.functional.logsigmoid(x if x.dtype == torch.float64 else x.float()) / tau
    return -torch.expm1(g), g


def _checked(q, k, v, s, g, S0, cu_seqlens):
    """Queries and keys for every head of v, and the start state."""
    tokens = {"q": (q, "B T Hq K"), "k": (k, "B T Hq K"), "v": (v, "B T H V"), "s": (s, "B T H M"), "g": (g, "B T H M")}
    sizes = checks.shape(**tokens)
    checks.dtypes(*diagonal_recurrence.FLOATS, q=q)
    checks.same(q=q, k=k, v=v, s=s)
    if not sizes["Hq"] or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"v must have a multiple of the heads of q, {sizes['Hq']}, not {sizes['H']}")
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    checks.dtypes(wide, q.dtype, g=g)
    N = sizes["B"] if cu_seqlens is None else checks.shape(cu_seqlens=(cu_seqlens, "edges"))["edges"] - 1
    if S0 is None:
        H, K, M, V = (sizes[axis] for axis in "HKMV")
        S0 = q.new_zeros(N, H, K, M, dtype=wide), q.new_zeros(N, H, M, V, dtype=wide)
    if len(S0) != 2:
        raise ValueError(f"S0 must be a pair, keys and values of the slots, not {len(S0)} tensors")
    states = {"S0[0]": S0[0], "S0[1]": S0[1]}
    checks.shape(**tokens, **{name: (x, f"{N} H {axes}") for (name, x), axes in zip(states.items(), ("K M", "M V"))})
    checks.dtypes(wide, **states)
    checks.same_device(q=q, g=g, cu_seqlens=cu_seqlens, **states)
    q, k = (x.repeat_interleave(sizes["H"] // sizes["Hq"], 2) for x in (q, k))
    return q, k, S0
