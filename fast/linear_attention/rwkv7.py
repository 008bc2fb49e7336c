"""RWKV-7: a memory that fades by channel, and in which each token replaces part of what is stored under a key (arXiv:2503.14456).

Layout: r, k, kappa, iota `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-decays g `(B, T, H, K)`, at most 0; states
`(B, H, K, V)` in float32; released code stores `(B, H, V, K)`, so exchange the last two axes where one is handed to the other.

`chunked` is the operator of `affine.chunked`: Triton kernels on a GPU, their PyTorch twin on the CPU, gradients for everything.
iota * kappa is rounded to the format of kappa. `recurrent` is plain PyTorch; `layer` is the whole time mixing.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import group_norm, normalize

from twofold.fast import checks
from twofold.fast.linear_attention import affine

__all__ = ["recurrent", "chunked", "step", "log_decay", "rate", "keys", "layer"]


def chunked(
    r: Tensor, g: Tensor, k: Tensor, v: Tensor, kappa: Tensor, iota: Tensor, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`.

    With `check=True` rates outside of 0 … 1 and removal keys longer than 1, under which a memory may grow, are errors.
    """
    _demand(r, g, k, v, kappa, iota)
    if check and not bool(((iota >= 0) & (iota <= 1)).all()):
        raise ValueError(f"iota must hold rates in 0 … 1, not {iota.min().item()} … {iota.max().item()}")
    if check and kappa.numel() and (length := kappa.detach().float().norm(dim=-1).max().item()) > 1 + 4 * torch.finfo(kappa.dtype).eps:
        raise ValueError(f"kappa must hold keys of length 1 at most, not {length}")
    return affine.chunked(r, k, v, g, -kappa, iota * kappa, S0, chunk, cu_seqlens=cu_seqlens, check=check)


def recurrent(
    r: Tensor, g: Tensor, k: Tensor, v: Tensor, kappa: Tensor, iota: Tensor, S0: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition, one token after the other."""
    _demand(r, g, k, v, kappa, iota)
    r, k, kappa, iota = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (r, k, kappa, iota))
    o, state = affine.recurrent(r, k, v, g, -kappa, iota * kappa, S0)
    return o.to(v.dtype), state


def step(state: Tensor, r: Tensor, g: Tensor, k: Tensor, v: Tensor, kappa: Tensor, iota: Tensor) -> tuple[Tensor, Tensor]:
    """One token, `(B, Hq, K)`, g `(B, H, K)`, v `(B, H, V)`: the output `(B, H, V)` and the new state, float32."""
    _demand(*(x[:, None] for x in (r, g, k, v, kappa, iota)))
    r, k, kappa, iota = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (r, k, kappa, iota))
    o, state = affine.step(state, r, k, v, g, -kappa, iota * kappa)
    return o.to(v.dtype), state


def log_decay(x: Tensor, w0: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Log-decays `(…, D)` from mixed rows, between -e^{-1/2} and 0."""
    return -math.exp(-0.5) * torch.sigmoid(w0 + torch.tanh(x @ A) @ B)


def rate(x: Tensor, a0: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Shares in 0 … 1 `(…, D)` from mixed rows: how fast to learn, and how much of the first layer's values to take."""
    return torch.sigmoid(a0 + (x @ A) @ B)


def keys(k: Tensor, iota: Tensor, k_k: Tensor, k_a: Tensor) -> tuple[Tensor, Tensor]:
    """Removal and replacement keys, both `(…, K)`: k scaled to length 1 (0 stays 0), and k, weaker where less is removed."""
    return normalize(k * k_k, dim=-1, eps=1e-12), k * (1 + (iota - 1) * k_a)


def layer(
    x: Tensor, mu: Tensor, W: tuple[Tensor, ...], decay: tuple[Tensor, ...], learning: tuple[Tensor, ...], gate: tuple[Tensor, ...],
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm: tuple[Tensor, ...], S0: tuple[Tensor, Tensor] | None = None,
    residual: tuple[Tensor, ...] | None = None, v_first: Tensor | None = None, eps: float = 64e-5, *, chunk: int = 64, check: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:  # fmt: skip
    """Time mixing of rows `(B, T, D)`: the rows out, the state (memories `(B, H, K, K)`, last rows `(B, D)`), the values `(B, T, D)`.

    Parameters are as in the spec; a checkpoint's matrices of r, k, v and the output are transposed. The first layer has no `residual`;
    the others take its values as `v_first`.
    """
    sizes = checks.shape(x=(x, "B T D"), mu=(mu, "6 D"), r_k=(r_k, "H K"), k_k=(k_k, "H K"), k_a=(k_a, "H K"))
    if sizes["H"] * sizes["K"] != sizes["D"]:
        raise ValueError(f"r_k must have as many elements as x has channels, {sizes['D']}, not {sizes['H']} x {sizes['K']}")
    if (residual is None) != (v_first is None):
        raise ValueError("residual and v_first must be given both, or both be None (the first layer)")
    states, last = (None, x.new_zeros(x.shape[0], x.shape[2])) if S0 is None else S0
    checks.shape(x=(x, "B T D"), last=(last, "B D"))
    before = torch.cat([last[:, None], x], 1)
    mixed = x + (before[:, :-1] - x) * mu[:, None, None]
    r, k, v = (mixed[at] @ matrix for at, matrix in zip((0, 2, 3), W))
    if residual is not None and v_first is not None:
        v = v + (v_first - v) * rate(mixed[3], *residual)
    r, g, k, values, iota = (y.unflatten(-1, tuple(r_k.shape)) for y in (r, log_decay(mixed[1], *decay), k, v, rate(mixed[4], *learning)))
    kappa, k = keys(k, iota, k_k, k_a)
    o, states = chunked(r, g, k, values, kappa, iota, states, chunk, check=check)
    o = group_norm(o.flatten(0, 1).flatten(1), sizes["H"], norm[0], norm[1], eps).view(x.shape)
    bonus = ((r * k * r_k).sum(-1, keepdim=True) * values).flatten(2)
    return ((o + bonus) * (torch.sigmoid(mixed[5] @ gate[0]) @ gate[1])) @ W[3], (states, before[:, -1]), v


def _demand(r, g, k, v, kappa, iota):
    rows = {"r": r, "k": k, "kappa": kappa, "iota": iota}
    sizes = checks.shape(**{name: (x, "B T Hq K") for name, x in rows.items()}, v=(v, "B T H V"), g=(g, "B T H K"))
    checks.same(**rows, v=v)
    if not sizes["Hq"] or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"v must have a multiple of the heads of r, {sizes['Hq']}, not {sizes['H']}")
