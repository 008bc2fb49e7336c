"""Attention of twofold for models of the transformers library.

    import twofold.transformers

    twofold.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="twofold")

That library asks an implementation for two functions. `mask` says once per forward pass and kind of layer who sees whom; `attention` runs
in every layer. Where rows see all keys up to their own position, within their window, nothing needs to be said: `mask` returns None, rows
are aligned to the end of the keys, and `attention.flash` reads what it must, or `attention.split_kv` for the few rows of a decoding step.
Everything else is a boolean tensor that the tiled kernel reads, pair by pair, as `attention.flex` does: padding, packed sequences, chunks,
prefixes, room in a static cache that is not filled yet. It is made by the library itself, so it means what it means there.

Grouped key heads, soft caps, sinks, windows and gradients work; dropout, position biases and returned weights are refused. A row that sees
no key, as padding may, has output 0 here and the mean of all values in "eager".
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["attention", "mask", "register"]


def register(name: str = "twofold") -> None:
    """Make both functions known to the library as `attn_implementation=name`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int | Tensor = 0, kv_offset: int = 0, *,
    attention_mask: Tensor | None = None, local_size: int | None = None, allow_is_causal_skip: bool = False,
    allow_is_bidirectional_skip: bool = False, **how: Any,
) -> Tensor | None:  # fmt: skip
    """Who sees whom, (B, 1, Tq, Tk); None if rows see all keys, or all up to their own position.

    Rows stand at positions q_offset + i and keys at kv_offset + j; attention_mask (B, T) is False where a token is padding; local_size is
    the width of a window or of a chunk, and can be left to nobody unless no position reaches it.
    """
    from transformers.masking_utils import sdpa_mask

    end = kv_offset + kv_length
    aligned = isinstance(q_offset, int) and q_offset + q_length == end
    if (allow_is_causal_skip and aligned) or allow_is_bidirectional_skip:
        near = local_size is None or end <= local_size
        if near and (attention_mask is None or _whole(attention_mask, end)):
            return None
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask=attention_mask, local_size=local_size,
        allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **how,
    )  # fmt: skip


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, dropout: float = 0.0,
    scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None,
    is_causal: bool | None = None, position_bias: Tensor | None = None, output_attentions: bool = False, **ignored: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query (B, H, Tq, D), key (B, Hkv, Tk, D), value (B, Hkv, Tk, Dv) -> (B, Tq, H, Dv), and None in place of the weights.

    `attention_mask` is what `mask` returned, or one of the caller's own, boolean, of a shape that broadcasts to (B, H, Tq, Tk); where there
    is one it alone decides. `sliding_window` counts the row's own position; `s_aux` (H,) are sinks.
    """
    from twofold.fast.attention import flash, flex, split_kv
    from twofold.fast.kernels.split_attention_config import FEW

    for name, given in (("dropout", dropout), ("position_bias", position_bias is not None), ("output_attentions", output_attentions)):
        if given:
            raise ValueError(f"{name} is not supported by this attention; use attn_implementation='eager'")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap, "sink": s_aux}
    if attention_mask is not None:
        return flex.attention(q, k, v, _reads(attention_mask, q, k), **options)[0], None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = None
    if sliding_window is not None:  # the library's windows of two sides allow a distance of their size, those of one side not
        window = (sliding_window - 1, 0) if causal else (sliding_window, sliding_window)
    options |= {"causal": causal, "window": window}
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, s_aux))
    run = split_kv.attention if q.shape[1] <= FEW and not trained else flash.forward
    return run(q, k, v, **options)[0], None


def _whole(attention_mask: Tensor, end: int) -> bool:
    """Whether no token is padding; what the tensor is too short for is."""
    return attention_mask.shape[1] >= end and bool(attention_mask[:, :end].all())


def _reads(seen: Tensor, q: Tensor, k: Tensor):
    """A mask function that reads a tensor."""
    full = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    if seen.dtype != torch.bool:
        raise TypeError(f"attention_mask must be boolean, not {seen.dtype}; use attn_implementation='eager' for one that is added")
    if seen.ndim != 4 or any(n not in (1, m) for n, m in zip(seen.shape, full, strict=True)):
        raise ValueError(f"attention_mask must broadcast to (B, H, Tq, Tk) = {full}, not have shape {tuple(seen.shape)}")
    seen = seen.expand(full[0], -1, *full[2:])
    if seen.shape[1] > 1:
        return lambda b, h, i, j: seen[b, h, i, j]
    by_row = seen[:, 0].contiguous()
    return lambda b, h, i, j: by_row[b, i, j]
