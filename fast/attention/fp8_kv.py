"""An 8-bit cache on tensors (B, T, H, D), in rows or in pages. See `twofold.spec.attention.fp8_kv`.

Codes are float8_e4m3fn or int8; scales are float32, (·, groups, Hkv), one for `group` tokens of a row or page, for all of them if `group`
is None. With a block table, codes are pools (n_blocks, page, Hkv, D) and scales pools (n_blocks, groups, Hkv): they move with their page.
Scales that heads or rows share have size 1 there, as (1, 1, 1) for a calibrated tensor. Strides of scales are free.

The kernel is `split_attention`, which decodes each byte in registers; bytes of e4m3 also where hardware has no such type. What no sequence
owns is never read. There are no gradients.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from twofold.fast import checks
from twofold.fast.attention._arguments import FLOATS, places, scale_or_default, share_heads, sink_per_head, widths, window_bounds
from twofold.fast.kernels import quantized_cache

__all__ = ["attention", "quantize"]

DTYPES = {"e4m3": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST = {"e4m3": 448, "int8": 127}


def attention(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor, *, group: int | None = None, table: Tensor | None = None,
    length: Tensor | None = None, causal: bool = False, window: tuple[int | None, int | None] | None = None,
    scale: float | None = None, softcap: float | None = None, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, N, H, D), the queries of the last N tokens -> o (B, N, H, Dv) in its dtype, log-sum-exp (B, H, N) in float32.

    `length` (B,) is how many tokens each sequence has, all if left out. `window` = (left, right) allows the positions p - left … p + right,
    None being no bound; `sink` (H,) is one logit per head that takes attention and gives nothing.
    """
    sizes = checks.shape(q=(q, "B N H D"), k=(k, "rows T Hkv D"), v=(v, "rows T Hkv Dv"))
    if table is None:
        checks.shape(q=(q, "B N H D"), k=(k, "B T Hkv D"))
    checks.dtypes(*FLOATS, q=q)
    checks.dtypes(*DTYPES.values(), k=k)
    checks.same(k=k, v=v)
    checks.same_device(q=q, k=k, k_scale=k_scale, v_scale=v_scale)
    widths(sizes, q="D", v="Dv")
    share_heads(sizes)
    checks.contiguous(q=q, k=k, v=v)
    places(q, length, table)
    if table is not None and not k.shape[1]:
        raise ValueError("table needs pages of at least one token")
    checks.positive(softcap=softcap)
    scales = (_per_head(x, k, group, name)[..., None] for name, x in (("k_scale", k_scale), ("v_scale", v_scale)))
    left, right = window_bounds(causal, window)
    return quantized_cache.attention(
        q, k, v, *scales, sink=sink_per_head(q, sink), table=table, length=length, kind="int8" if k.dtype == torch.int8 else "e4m3",
        tokens=group or 0, left=left, right=right, scale=scale_or_default(scale, sizes["D"]), softcap=softcap,
    )  # fmt: skip


def quantize(x: Tensor, group: int | None = None, number: str = "e4m3", *, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes (B, T, H, D) and scales (B, ceil(T / group), H) of every head by itself; a `scale` given is used and returned as it is.

    Overflow saturates. A group that holds NaN or infinity has the scale NaN, and no other group notices.
    """
    checks.shape(x=(x, "B T H D"))
    checks.dtypes(*FLOATS, x=x)
    if number not in DTYPES:
        raise ValueError(f"number must be 'e4m3' or 'int8', not {number!r}")
    if not x.shape[3]:
        raise ValueError(f"x must have at least one element per head, not shape {tuple(x.shape)}")
    top, each = LARGEST[number], _each(x, group)
    if scale is None:
        largest = pad(x.abs().amax(3).float(), (0, 0, 0, -x.shape[1] % each))  # (B, groups · each, H)
        scale = largest.unflatten(1, (-(-x.shape[1] // each), each)).amax(2) / top
        scale = torch.where(scale == 0, 1, scale)
        scale = torch.where(scale.isinf(), torch.nan, scale)
    spread = _per_head(scale, x, group, "scale").repeat_interleave(each, 1)[:, : x.shape[1], :, None]
    ratio = (x.float() / spread).clamp(-top, top)
    return (ratio if number == "e4m3" else ratio.round().nan_to_num(0)).to(DTYPES[number]), scale


def _each(x, group):
    """How many tokens share a scale."""
    if group is not None and group < 1:
        raise ValueError(f"group must be at least 1, or None for one scale for all tokens, not {group}")
    return max(x.shape[1], 1) if group is None else group


def _per_head(scale, x, group, name):
    """Scales (rows, groups, heads) of codes x, those that are shared repeated in place."""
    each = _each(x, group)
    wanted = x.shape[0], -(-x.shape[1] // each), x.shape[2]
    checks.shape(**{name: (scale, "rows groups heads")})
    checks.dtypes(torch.float32, **{name: scale})
    if scale.shape[1] != wanted[1] or any(n not in (1, m) for n, m in zip(scale.shape, wanted, strict=True)):
        raise ValueError(f"{name} must have shape {wanted}, rows and heads may be 1, not {tuple(scale.shape)}")
    return scale.expand(wanted)
