"""RG-LRU: a linear recurrence per channel whose gate decides both what is kept and how loud the new input is (arXiv:2402.19427).

Layout: inputs x and the gates before their sigmoids gate_x, gate_a `(B, T, D)`, Lambda `(D,)`, reset `(B, T)` of bool or None; states
`(B, D)` in float32. Gates and what they write are computed in float32 whatever the format, outputs are rounded to that of x. `scan` runs
on the kernels of `linear_attention.hgrn`; `recurrent` is plain PyTorch, for reference; `step` is one token. The slope of the root is
clipped at 1000 in the backward pass, as in the released code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import channel_recurrence
from twofold.fast.linear_attention import hgrn

__all__ = ["recurrent", "scan", "step", "block_diagonal"]

RATE = 8.0
STEEPEST = 1000.0  # slope of the root in the backward pass


def scan(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, Lambda: Tensor, reset: Tensor | None = None, S0: Tensor | None = None,
    chunk: int | None = None, *, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, D)` and final states `(B, D)`, with gradients for everything but reset.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, S0 and final states are `(N, D)`, and an empty sequence returns
    its S0. `chunk`, chosen from the shape if it is None, changes speed and rounding only.
    """
    write, g = _gated(x, gate_x, gate_a, Lambda, reset)
    o, state = channel_recurrence.run(write, g, S0, chunk, cu_seqlens)
    return o.to(x.dtype), state


def recurrent(
    x: Tensor, gate_x: Tensor, gate_a: Tensor, Lambda: Tensor, reset: Tensor | None = None, S0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    write, g = _gated(x, gate_x, gate_a, Lambda, reset)
    o, state = hgrn.recurrent(write, g, S0)
    return o.to(x.dtype), state


def step(state: Tensor, x: Tensor, gate_x: Tensor, gate_a: Tensor, Lambda: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fade and add one token, `(B, D)` each, reset `(B,)`: the output in the format of x, and the new state, float32."""
    checks.shape(x=(x, "B D"))
    write, g = _gated(x[:, None], gate_x[:, None], gate_a[:, None], Lambda, None if reset is None else reset[:, None])
    o, state = hgrn.step(state, write[:, 0], g[:, 0])
    return o.to(x.dtype), state


def block_diagonal(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """A gate before its sigmoid `(B, T, D)`: every head's channels `(H, D/H, D/H)` see those of their own head."""
    sizes = checks.shape(W=(W, "H I I"))
    checks.shape(x=(x, f"B T {sizes['H'] * sizes['I']}"), b=(b, f"{sizes['H'] * sizes['I']}"))
    checks.same(x=x, W=W, b=b)
    heads = x.unflatten(-1, (sizes["H"], sizes["I"]))
    return torch.einsum("bthi,hij->bthj", heads, W).flatten(-2) + b


def _gated(x, gate_x, gate_a, Lambda, reset):
    """What is written, and log-decays, in float32 (float64 where x is)."""
    checks.shape(x=(x, "B T D"), gate_x=(gate_x, "B T D"), gate_a=(gate_a, "B T D"), Lambda=(Lambda, "D"))
    checks.dtypes(*channel_recurrence.FLOATS, x=x, Lambda=Lambda)
    checks.same(x=x, gate_x=gate_x, gate_a=gate_a)
    checks.same_device(x=x, Lambda=Lambda, reset=reset)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    log_a = -RATE * F.softplus(Lambda.to(wide), threshold=60) * torch.sigmoid(gate_a.to(wide))
    root = _root(log_a)
    if reset is not None:
        checks.shape(x=(x, "B T D"), reset=(reset, "B T"))
        checks.dtypes(torch.bool, reset=reset)
        root, log_a = root.masked_fill(reset[..., None], 1.0), log_a.masked_fill(reset[..., None], -torch.inf)
    return root * (torch.sigmoid(gate_x.to(wide)) * x.to(wide)), log_a


def _root(log_a):
    """sqrt(1 - a²) as a constant, plus nothing: but that nothing has a slope, which is clipped in 1 - a²."""
    fixed = log_a.detach()
    root = (-torch.expm1(2 * fixed)).sqrt()
    return root - torch.exp(2 * fixed) / root.clamp(min=0.5 / STEEPEST) * (log_a - fixed)
