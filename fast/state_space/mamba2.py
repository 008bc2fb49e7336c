"""Mamba-2: a state-space model whose tokens set the length of each time step (arXiv:2405.21060).

Layout: x `(B, T, H, P)`, delta `(B, T, H)`, at least 0, A and D `(H,)` with A at most 0, B and C `(B, T, G, N)`: head h reads group
h // (H / G). States are `(B, H, N, P)` in float32, key axis first; released code stores `(B, H, P, N)`, so exchange the last two axes where
one is handed to the other. x, B and C share a dtype; delta, A and D are float32 or in that dtype.

`chunked` is the kernel of gated linear attention with one decay per token, q = C, k = B, v = delta x and g = delta A: it is trained, packs
sequences and takes float32, bfloat16 and float16. delta x is rounded to the format of x, delta A is not. `recurrent` and `parallel` are
plain PyTorch; `layer` is the whole mixer. Parameters of the layer are as in the spec; a checkpoint's A_log is log(-A), its matrices are
transposed, and its filter `(D, 1, W)` is w.T here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence
from twofold.fast.linear_attention import gla
from twofold.fast.state_space import short_conv

__all__ = ["recurrent", "parallel", "chunked", "step", "layer", "step_sizes", "gated_norm"]


def chunked(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, P)` and final states `(B, H, N, P)`, with gradients for everything; packing as in `gla.chunked`."""
    _demand(x, delta, A, B, C, D, "B T H P", "B T H", "B T G N")
    y, state = diagonal_recurrence.run(C, B, _scaled(x, delta), _log_decay(delta, A), S0, chunk, cu_seqlens, check)
    return _with_input(y, x, D), state


def recurrent(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    _demand(x, delta, A, B, C, D, "B T H P", "B T H", "B T G N")
    y, state = gla.recurrent(C, B, _scaled(x, delta), _log_decay(delta, A), S0)
    return _with_input(y, x, D), state


def parallel(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All pairs of tokens at once: memory O(T² N)."""
    _demand(x, delta, A, B, C, D, "B T H P", "B T H", "B T G N")
    y, state = gla.parallel(C, B, _scaled(x, delta), _log_decay(delta, A), S0)
    return _with_input(y, x, D), state


def step(state: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb one token, `(B, H, P)`, `(B, H)`, `(B, G, N)`, then read: the output `(B, H, P)` and the new state, float32."""
    _demand(x, delta, A, B, C, D, "B H P", "B H", "B G N")
    y, state = gla.step(state, C, B, _scaled(x, delta), _log_decay(delta, A))
    return _with_input(y, x, D), state


def layer(
    u: Tensor, in_proj: Tensor, w: Tensor, b: Tensor | None, dt_bias: Tensor, A: Tensor, D: Tensor, weight: Tensor, out_proj: Tensor,
    S0: tuple[Tensor, Tensor] | None = None, groups: int = 1, least: float = 0.0, most: float = math.inf, eps: float = 1e-5, *,
    chunk: int = 64, cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """The whole mixer, tokens `(B, T, E)` to tokens; its state is `(states, tails)`, `(B, H, N, P)` and `(B, W - 1, H P + 2 G N)`.

    in_proj `(E, 2 H P + 2 G N + H)` makes z, x, B, C and dt side by side; dt_bias, A, D `(H,)`, weight `(H P,)`, out_proj `(H P, E)`. One
    token or many, with a state or without, all go the same way.
    """
    sizes = checks.shape(u=(u, "B T E"), weight=(weight, "inner"), w=(w, "W channels"), D=(D, "H"))
    inner, channels, heads = sizes["inner"], sizes["channels"], sizes["H"]
    if inner % heads or channels <= inner or (channels - inner) % (2 * groups):
        expected = f"{inner} + 2 N groups channels with groups = {groups}, and {inner} channels that {heads} heads divide"
        raise ValueError(f"w must have {expected}, not {channels}")
    checks.shape(u=(u, "B T E"), in_proj=(in_proj, f"E {inner + channels + heads}"), out_proj=(out_proj, f"{inner} E"))
    states, tails = (None, None) if S0 is None else S0
    z, xBC, dt = (u @ in_proj).split([inner, channels, heads], -1)
    xBC, tails = short_conv.causal(xBC, w, b, tails, cu_seqlens=cu_seqlens, check=check)
    x, B, C = F.silu(xBC).split([inner, (channels - inner) // 2, (channels - inner) // 2], -1)
    x, B, C = x.unflatten(-1, (heads, -1)), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
    delta = step_sizes(dt, dt_bias, least, most)
    y, states = chunked(x, delta, A, B, C, D, states, chunk, cu_seqlens=cu_seqlens, check=check)
    return gated_norm(y.flatten(2), z, weight, groups, eps) @ out_proj, (states, tails)


def step_sizes(dt: Tensor, bias: Tensor, least: float = 0.0, most: float = math.inf) -> Tensor:
    """Steps `(…, H)` in float32 from what the layer projects: softplus first, limits after it."""
    dt = dt.to(_wide(dt)) + bias
    return torch.logaddexp(dt, torch.zeros_like(dt)).clamp(least, most)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int = 1, eps: float = 1e-5) -> Tensor:
    """RMSNorm of y silu(z), `(…, H P)`, each group of channels by itself, in float32; rounded to the dtype of y at the end."""
    checks.same(y=y, z=z)
    if y.shape != z.shape or y.shape[-1:] != weight.shape or y.shape[-1] % groups:
        expected = f"the shape of y, {tuple(y.shape)}, with channels as many as weights and a multiple of groups"
        raise ValueError(f"z must have {expected}, not {tuple(z.shape)} with {tuple(weight.shape)} weights and {groups} groups")
    gated = (y.to(_wide(y)) * F.silu(z.to(_wide(z)))).unflatten(-1, (groups, -1))
    gated = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (gated.flatten(-2) * weight).to(y.dtype)


def _demand(x, delta, A, B, C, D, of_x, of_delta, of_B):
    sizes = checks.shape(x=(x, of_x), delta=(delta, of_delta), A=(A, "H"), D=(D, "H"))
    groups = checks.shape(x=(x, of_x.replace("H P", "heads width")), B=(B, of_B), C=(C, of_B))["G"]
    if groups == 0 or sizes["H"] % groups:
        raise ValueError(f"B must have a number of groups that divides the heads of x, {sizes['H']}, not {groups}")
    checks.same(x=x, B=B, C=C)
    checks.dtypes(_wide(x), x.dtype, delta=delta, A=A, D=D)
    checks.same_device(x=x, delta=delta, A=A, D=D)


def _wide(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _scaled(x, delta):
    return (delta.to(_wide(x))[..., None] * x).to(x.dtype)


def _log_decay(delta, A):
    return (delta.to(_wide(delta)) * A)[..., None]


def _with_input(y, x, D):
    return (y + D.to(_wide(x))[:, None] * x).to(x.dtype)
