"""Mamba: a state-space model per channel whose tokens set the length of each step, what is written and what is read (arXiv:2312.00752).

Layout: x and delta `(B, T, D)`, delta at least 0, A `(D, N)`, at most 0, B and C `(B, T, N)`, D `(D,)`; states `(B, D, N)` in float32. x, B
and C share a dtype; delta, A and D are float32 or in that dtype. There are no heads.

`scan` is the one to use: on a GPU the Triton kernels of `fast/kernels/selective_scan.py`, which never write the T D N states, on the CPU
their PyTorch twin; it is trained, packs sequences and takes float32, bfloat16 and float16, computing in float32. `recurrent` is plain
PyTorch; `step` is one token; `layer` is the whole block, its parameters as in the spec: a checkpoint's A_log is log(-A), its matrices are
transposed, and its filter `(D, 1, W)` is w.T here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import selective_recurrence
from twofold.fast.state_space import short_conv
from twofold.fast.state_space.mamba2 import step_sizes

__all__ = ["recurrent", "scan", "step", "layer"]


def scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None, chunk: int | None = None, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, D)` and final states `(B, D, N)`, with gradients for everything, S0 included.

    `cu_seqlens` `(M + 1,)`, from 0 to T, packs M sequences along T: B is 1, S0 and final states are `(M, D, N)`, and an empty sequence
    returns its S0. `chunk`, chosen from the shape if it is None, changes speed and rounding only. A negative delta and a positive A are
    errors on the CPU and, with `check=True`, which waits for the device, on a GPU.
    """
    return selective_recurrence.run(x, delta, A, B, C, D, S0, chunk, cu_seqlens, check)


def recurrent(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    wide = selective_recurrence.demand(x, delta, A, B, C, D)
    state = torch.zeros((len(x), *A.shape), dtype=wide, device=x.device) if S0 is None else S0
    outputs = [x[:, :0]]
    for t in range(x.shape[1]):
        output, state = step(state, x[:, t], delta[:, t], A, B[:, t], C[:, t], D)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def step(state: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """Absorb one token, `(B, D)` and `(B, N)`, then read: the output `(B, D)` and the new state, float32."""
    selective_recurrence.demand(x, delta, A, B, C, D, "B")
    checks.shape(x=(x, "B D"), A=(A, "D N"), state=(state, "B D N"))
    length, row, write, read = (y.to(state.dtype) for y in (delta, x, B, C))
    state = (length[..., None] * A).exp() * state + (length * row)[..., None] * write[:, None]
    return ((state * read[:, None]).sum(-1) + D * row).to(x.dtype), state


def layer(
    u: Tensor, in_proj: Tensor, w: Tensor, b: Tensor | None, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor,
    out_proj: Tensor, S0: tuple[Tensor, Tensor] | None = None, *, chunk: int | None = None, cu_seqlens: Tensor | None = None,
    check: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """The whole block, tokens `(B, T, E)` to tokens; its state is `(states, tails)`, `(B, D, N)` and `(B, W - 1, D)`.

    in_proj `(E, 2 D)` makes x and z side by side, x_proj `(D, R + 2 N)` what the step is computed from, B and C; dt_proj is `(R, D)`,
    dt_bias `(D,)`, out_proj `(D, E)`. One token or many, with a state or without, all go the same way.
    """
    sizes = checks.shape(A=(A, "D N"), dt_proj=(dt_proj, "R D"), dt_bias=(dt_bias, "D"), w=(w, "W D"))
    inner, N, R = sizes["D"], sizes["N"], sizes["R"]
    checks.shape(x_proj=(x_proj, f"{inner} {R + 2 * N}"))
    checks.shape(u=(u, "B T E"), in_proj=(in_proj, f"E {2 * inner}"), out_proj=(out_proj, f"{inner} E"))
    state, tail = (None, None) if S0 is None else S0
    x, z = (u @ in_proj).split(inner, -1)
    x, tail = short_conv.causal(x, w, b, tail, cu_seqlens=cu_seqlens, check=check)
    x = F.silu(x)
    dt, B, C = (x @ x_proj).split([R, N, N], -1)
    y, state = scan(x, step_sizes(dt @ dt_proj, dt_bias), A, B, C, D, state, chunk, cu_seqlens=cu_seqlens, check=check)
    return (y * F.silu(z)) @ out_proj, (state, tail)
