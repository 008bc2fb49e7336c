"""RWKV-6: gated linear attention that reads before it writes, with a bonus for the token's own pair (arXiv:2404.05892).

Layout: r, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, log-decays g `(B, T, H, K)`, at most 0, u `(H, K)`; states
`(B, H, K, V)` in float32.

To read before the write is to read after the write of the token before. So the kernels of `linear_attention.gla` are asked each token's
query one place early, and their outputs are put one place later; the first token of a sequence asks the state that came in. The bonus is
added in float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence
from twofold.fast.linear_attention import gla

__all__ = ["recurrent", "chunked", "step", "mix"]


def chunked(
    r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor, S0: Tensor | None = None, chunk: int = 64, *,
    cu_seqlens: Tensor | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    bonus = _bonus(r, k, v, u)
    early, states = diagonal_recurrence.run(pad(r[:, 1:], (0, 0, 0, 0, 0, min(r.shape[1], 1))), k, v, g, S0, chunk, cu_seqlens, check)
    if not r.shape[1]:
        return early, states
    found = pad(early[:, :-1], (0, 0, 0, 0, 1, 0)).to(bonus.dtype)  # of the first token of a sequence nothing yet
    if cu_seqlens is not None:  # … or what it would have found in the sequence before
        starts = (torch.arange(r.shape[1], device=r.device)[:, None] == cu_seqlens[:-1]).any(1)
        found = found.masked_fill(starts[:, None, None], 0)
    if S0 is not None:
        found = _with_first(found, r, S0, cu_seqlens)
    return (found + bonus).to(v.dtype), states


def recurrent(r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    state = torch.zeros((v.shape[0], v.shape[2], k.shape[3], v.shape[3]), device=v.device) if S0 is None else S0
    outputs = [v[:, :0]]
    for t in range(r.shape[1]):
        output, state = step(state, r[:, t], k[:, t], v[:, t], g[:, t], u)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def step(state: Tensor, r: Tensor, k: Tensor, v: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """One token, `(B, Hq, K)`, `(B, H, V)`, `(B, H, K)`: the output `(B, H, V)`, read before the write, and the new state, float32."""
    bonus = _bonus(r[:, None], k[:, None], v[:, None], u)[:, 0]
    _, after = gla.step(state, r, k, v, g)
    return ((_rows(r, v, state.dtype)[..., None, :] @ state).squeeze(-2) + bonus).to(v.dtype), after


def mix(x: Tensor, mu_x: Tensor, mu: Tensor, A: Tensor, B: Tensor, last: Tensor | None = None) -> Tensor:
    """Rows `(Bt, T, D)` mixed with the rows before them, in five ways `(5, Bt, T, D)`; `last` `(Bt, D)` stands before the first row."""
    sizes = checks.shape(x=(x, "Bt T D"), mu_x=(mu_x, "D"), mu=(mu, "five D"), B=(B, "five R D"))
    checks.shape(x=(x, "Bt T D"), A=(A, f"D {sizes['five'] * sizes['R']}"))
    before = pad(x[:, :-1], (0, 0, min(x.shape[1], 1), 0))
    if last is not None and x.shape[1]:
        checks.shape(x=(x, "Bt T D"), last=(last, "Bt D"))
        before = torch.cat([last[:, None], before[:, 1:]], 1)
    d = before - x
    m = torch.tanh((x + mu_x * d) @ A).unflatten(-1, (sizes["five"], sizes["R"]))  # (Bt, T, 5, R)
    return x + d * (mu[:, None, None] + torch.einsum("btcr,crd->cbtd", m, B))


def _bonus(r, k, v, u):
    """What each token adds of itself (B, T, H, V), in float32."""
    sizes = checks.shape(r=(r, "B T Hq K"), k=(k, "B T Hq K"), v=(v, "B T H V"), u=(u, "H K"))
    checks.same_device(r=r, u=u)
    if not sizes["Hq"] or sizes["H"] % sizes["Hq"]:
        raise ValueError(f"v must have a multiple of the heads of r, {sizes['Hq']}, not {sizes['H']}")
    wide = torch.float64 if r.dtype == torch.float64 else torch.float32
    return (_rows(r, v, wide) * _rows(k, v, wide) * u.to(wide)).sum(-1, keepdim=True) * v.to(wide)


def _rows(x, v, dtype):
    """Queries or keys (…, Hq, K) for every head of v."""
    return x.repeat_interleave(v.shape[-2] // x.shape[-2], -2).to(dtype)


def _with_first(found, r, S0, cu_seqlens):
    """The first token of each sequence asks the state that came in; a sequence without tokens does not."""
    if cu_seqlens is None:
        first = _rows(r[:, :1], found, S0.dtype)[..., None, :] @ S0[:, None]  # (B, 1, H, 1, V)
        return torch.cat([found[:, :1] + first.squeeze(-2).to(found.dtype), found[:, 1:]], 1)
    at = cu_seqlens[:-1].long().clamp(max=r.shape[1] - 1)
    first = (_rows(r[0, at], found, S0.dtype)[..., None, :] @ S0).squeeze(-2)  # (N, H, V)
    first = first * (cu_seqlens.diff() > 0)[:, None, None]
    return found.index_add(1, at, first[None].to(found.dtype))
