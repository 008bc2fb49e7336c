"""Cascade attention on tensors: a shared prefix in one pass, what is each request's own in others. See `twofold.spec.attention.cascade`.

Passes are FlashAttention-2 and store their parts in the dtype of the inputs; merging is done in float32. Suffixes of requests with few
rows take one pass together, that of `split_kv`, over keys padded to the longest; where gradients are wanted, and for longer chunks, that of
`varlen`, over suffixes side by side. Differentiable throughout.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from twofold.fast import checks
from twofold.fast.attention import dense, flash, split_kv, varlen
from twofold.fast.attention.online_softmax import merge
from twofold.fast.kernels.split_attention_config import FEW

__all__ = ["attention", "shared_prefix", "traffic"]

Level = tuple[Tensor, Tensor, dict[str, Any] | Tensor | None]


def attention(
    q: Tensor,
    levels: Sequence[Level],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the log-sum-exp (B, H, Tq) over the keys of all levels.

    A level is (k, v, mask) with k (B, n, Hkv, D), v (B, n, Hkv, Dv), and as its mask None where every row sees all of it; the options
    `causal` and `window` of `flash.forward` in a dictionary, both aligned to the end of that level; or a boolean tensor that broadcasts to
    (B, H, Tq, n), which `dense.attention` takes, with the level's scores in memory. `sink` (H,) is applied once.
    """
    if not levels:
        raise ValueError("levels must hold at least one level")
    o, lse = reduce(merge, [_part(q, level, i, scale, softcap) for i, level in enumerate(levels)])
    if sink is None:
        return o, lse
    checks.shape(q=(q, "B Tq H D"), sink=(sink, "H"))
    checks.dtypes(torch.float32, q.dtype, sink=sink)
    share = torch.sigmoid(lse.masked_fill(lse == -math.inf, 0) - sink.float()[:, None])  # (B, H, Tq)
    return (share.mT[..., None] * o).to(q.dtype), lse


def shared_prefix(
    qs: Sequence[Tensor], kp: Tensor, vp: Tensor, suffixes: Sequence[tuple[Tensor, Tensor]], *, scale: float | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Returns one pair per request, o (Tq, H, Dv) and lse (H, Tq), for `qs` (Tq, H, D), a prefix (P, Hkv, D) that all see, and suffixes.

    A suffix is (k, v) of shapes (n, Hkv, D) and (n, Hkv, Dv), causal from its end. Lengths differ freely; Tq is at most n, or 1.
    """
    if len(qs) != len(suffixes):
        raise ValueError(f"suffixes must be as many as qs, {len(qs)}, not {len(suffixes)}")
    for i, (q, suffix) in enumerate(zip(qs, suffixes, strict=True)):
        if len(suffix) != 2:
            raise TypeError(f"suffixes[{i}] must be a pair (k, v)")
        names = {f"qs[{i}]": (q, "Tq H D"), "kp": (kp, "P Hkv D"), "vp": (vp, "P Hkv Dv")}
        sizes = checks.shape(**names, **{f"suffixes[{i}]'s k": (suffix[0], "n Hkv D"), f"suffixes[{i}]'s v": (suffix[1], "n Hkv Dv")})
        checks.same(kp=kp, vp=vp, **{f"qs[{i}]": q, f"suffixes[{i}]'s k": suffix[0], f"suffixes[{i}]'s v": suffix[1]})
        if sizes["Tq"] > max(sizes["n"], 1):
            raise ValueError(f"qs[{i}] must have at most {max(sizes['n'], 1)} rows, those of its suffix, not {sizes['Tq']}")
    if not qs:
        return []
    lengths = [len(q) for q in qs]
    o, lse = flash.forward(torch.cat(tuple(qs))[None], kp[None], vp[None], scale=scale)  # one pass, whoever the rows belong to
    shared = zip(o[0].split(lengths), lse[0].split(lengths, -1), strict=True)
    needed = torch.is_grad_enabled() and any(x.requires_grad for x in (*qs, *(x for suffix in suffixes for x in suffix)))
    own = _packed if needed or max(lengths) > FEW else _together
    return [merge(*parts) for parts in zip(shared, own(qs, suffixes, scale), strict=True)]  # type: ignore[misc]


def traffic(prefix: int, suffixes: Sequence[int], d: int, dv: int) -> int:
    """How many elements of keys and values `shared_prefix` reads per key head, for the lengths of the prefix and of each suffix."""
    return (prefix + sum(suffixes)) * (d + dv)


def _together(qs, suffixes, scale):
    """One pass over all suffixes, as when every request writes one token: few rows and padded keys, for the decoding kernel."""
    rows = pad_sequence(list(qs), batch_first=True, padding_side="left")  # aligned to the end, as positions are
    keys, values = (pad_sequence(list(each), batch_first=True) for each in zip(*suffixes, strict=True))  # (R, longest, Hkv, D)
    length = torch.tensor([len(k) for k, _ in suffixes], device=rows.device)
    o, lse = split_kv.attention(rows, keys, values, length=length, causal=True, scale=scale)
    starts = [rows.shape[1] - len(q) for q in qs]
    return [(o[i, start:], lse[i, :, start:]) for i, start in enumerate(starts)]


def _packed(qs, suffixes, scale):
    """One pass as well, over suffixes side by side: any lengths, and gradients."""
    keys, values = zip(*suffixes, strict=True)
    ends = [torch.tensor([0, *map(len, each)], device=qs[0].device).cumsum(0) for each in (qs, keys)]
    o, lse = varlen.attention(*(torch.cat(tuple(each)) for each in (qs, keys, values)), *ends, causal=True, scale=scale)
    lengths = [len(q) for q in qs]
    return list(zip(o.split(lengths), lse.split(lengths, -1), strict=True))


def _part(q, level, i, scale, softcap):
    if not isinstance(level, tuple | list) or len(level) != 3:
        raise TypeError(f"levels[{i}] must be (k, v, mask)")
    k, v, mask = level
    if isinstance(mask, Tensor):
        return dense.attention(q, k, v, mask=mask, scale=scale, softcap=softcap)
    if mask is not None and (not isinstance(mask, dict) or set(mask) - {"causal", "window"}):
        raise TypeError(f"levels[{i}]'s mask must be None, a boolean tensor, or a dictionary of causal and window, not {mask!r}")
    return flash.forward(q, k, v, **(mask or {}), scale=scale, softcap=softcap)
