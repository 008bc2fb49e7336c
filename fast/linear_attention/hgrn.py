"""HGRN: a recurrent network whose channels never meet, so that its past can be summed in any order (arXiv:2311.04823).

Layout: inputs x and log-decays g `(B, T, D)`, g at most 0, in float32 or the format of x; states `(B, D)` in float32. There are no heads.

`scan` is the one to use: on a GPU the Triton kernels of `fast/kernels/channel_scan.py`, on the CPU their PyTorch twin; it is trained,
packs sequences and takes float32, bfloat16 and float16, computing in float32. `recurrent` is plain PyTorch, for reference; `step` is one
token. A positive g is an error on the CPU and, with `check=True`, which waits for the device, on a GPU.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import channel_recurrence

__all__ = ["recurrent", "scan", "step", "log_forget", "lower_bounds"]


def scan(
    x: Tensor, g: Tensor, S0: Tensor | None = None, chunk: int | None = None, *, cu_seqlens: Tensor | None = None, check: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs `(B, T, D)` and final states `(B, D)`, with gradients for everything, S0 included.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, S0 and final states are `(N, D)`, and an empty sequence returns
    its S0. `chunk`, chosen from the shape if it is None, changes speed and rounding only.
    """
    return channel_recurrence.run(x, g, S0, chunk, cu_seqlens, check)


def recurrent(x: Tensor, g: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    sizes = checks.shape(x=(x, "B T D"), g=(g, "B T D"))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = torch.zeros((sizes["B"], sizes["D"]), dtype=wide, device=x.device) if S0 is None else S0
    outputs = [x[:, :0]]
    for t in range(sizes["T"]):
        output, state = step(state, x[:, t], g[:, t])
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def step(state: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Fade, then add one token, `(B, D)` each: the output in the format of x, and the new state, float32."""
    checks.shape(x=(x, "B D"), g=(g, "B D"), state=(state, "B D"))
    state = torch.addcmul(x.to(state.dtype), g.to(state.dtype).exp(), state)
    return state.to(x.dtype), state


def log_forget(f: Tensor, lb: Tensor | None = None) -> Tensor:
    """log(lb + (1 - lb) sigmoid(f)) in float32, for lb in [0, 1) that broadcasts to f, or None for none."""
    keep = torch.nn.functional.logsigmoid(f if f.dtype == torch.float64 else f.float())
    if lb is None:
        return keep
    if not lb.is_cuda and not bool(((lb >= 0) & (lb < 1)).all()):
        raise ValueError(f"lb must lie in [0, 1), not between {lb.min().item()} and {lb.max().item()}")
    bound = lb.to(keep.dtype)
    return torch.where(bound > 0, torch.logaddexp(torch.where(bound > 0, bound, 1).log(), torch.log1p(-bound) + keep), keep)


def lower_bounds(gamma: Tensor) -> Tensor:
    """The bounds of every layer `(L, …)` from learned numbers `(L, …)`: a softmax over the layers, summed up, none in the first."""
    share = torch.softmax(gamma if gamma.dtype == torch.float64 else gamma.float(), 0)
    return share.cumsum(0) - share[:1]
