"""Chunked prefill on tensors (B, T, H, D), and which request gets how many tokens of a batch. See `twofold.spec.serving.chunked_prefill`.

Each chunk is one call of `twofold.fast.attention.flash` on the keys up to the chunk's own last position, views of the whole. Tiles of keys
begin at position 0 whatever the chunk, so chunks that are whole tiles of rows, 128 or a multiple, give the bits of one call.
"""

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import flash

__all__ = ["prefill", "schedule"]


def prefill(q: Tensor, k: Tensor, v: Tensor, *, chunk: int, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32.

    The queries are those of the last Tq tokens; query head h reads key head h // (H / Hkv). Differentiable, as `flash.forward` is.
    """
    sizes = checks.shape(q=(q, "B Tq H D"), k=(k, "B Tk Hkv D"), v=(v, "B Tk Hkv Dv"))
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    t_q, t_k = sizes["Tq"], sizes["Tk"]
    if t_q <= chunk:
        return flash.forward(q, k, v, causal=True, scale=scale)
    parts = []
    for start in range(0, t_q, chunk):
        rows = q[:, start : start + chunk]
        end = max(start + rows.shape[1] + t_k - t_q, 0)
        parts.append(flash.forward(rows, k[:, :end], v[:, :end], causal=True, scale=scale))
    outputs, sums = zip(*parts, strict=True)
    return torch.cat(outputs, dim=1), torch.cat(sums, dim=2)


def schedule(requests: Tensor, budget: int) -> Tensor:
    """How many tokens each request gets in the next batch `(n,)`; `requests` are rows of arrival, left, last `(n, 3)`, integers.

    A request that lacks no prompt token (left = 0) decodes.
    """
    checks.shape(requests=(requests, "n 3"))
    checks.dtypes(torch.int64, torch.int32, requests=requests)
    if budget < 0:
        raise ValueError(f"budget must be at least 0, not {budget}")
    arrival, left, last = requests.long().unbind(1)
    order = torch.where(left > 0, arrival, last).argsort(stable=True)
    order = torch.cat([order[left[order] == 0], order[left[order] > 0]])  # decodes first
    wanted = left.clamp(min=1)[order]
    before = wanted.cumsum(0) - wanted
    return torch.empty_like(left).scatter_(0, order, (budget - before).clamp(min=0).minimum(wanted))
