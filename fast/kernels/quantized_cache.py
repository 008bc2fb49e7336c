"""Attention over keys and values that are stored as codes: `split_attention` with a format, and what KIVI's two stores hold together.

In PyTorch the codes become numbers first, then `split_attention_torch` reads those.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels import split_attention, split_attention_torch
from twofold.fast.kernels.combine_splits import combine_torch, combine_triton
from twofold.fast.kernels.kv_formats import Stored, read
from twofold.fast.kernels.split_attention import SIZE, _attention_triton, _launch
from twofold.fast.kernels.variant import Variant

__all__ = ["attend", "attention", "variants"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor, *, sink: Tensor | None = None, table: Tensor | None = None,
    length: Tensor | None = None, kind: str, tokens: int, left: int | None = None, right: int | None = None,
    scale: float, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, N, H, D), bytes k (·, T, Hkv, D) and v (·, T, Hkv, DV), scales (·, groups, Hkv, 1) -> o (B, N, H, DV), lse (B, H, N)."""
    return _attention(q, k, v, k_scale, v_scale, sink, table, length, kind, tokens, left, right, scale, softcap)


def attend(
    q: Tensor, keys: tuple[Tensor, Tensor, Tensor], values: tuple[Tensor, Tensor, Tensor], old: Tensor, recent_k: Tensor, recent_v: Tensor,
    recent: Tensor, bits: int, group: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every query over the first old[b] tokens of a store (words, scale, zero) and the first recent[b] slots of a ring (B, R, Hkv, ·)."""
    return _attend(q, *keys, *values, old, recent_k, recent_v, recent, bits, group, scale)


@torch.library.custom_op("twofold::quantized_cache_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor, v_scale: Tensor, sink: Tensor | None, table: Tensor | None, length: Tensor | None,
    kind: str, tokens: int, left: int | None, right: int | None, scale: float, softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    stored = tuple(Stored((kind, 8, tokens, 0), parameters, None) for parameters in (k_scale, v_scale))
    options = None, None, table, length, None, SIZE, left, right, scale, softcap
    if backend.triton(q):
        k, v = (x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x for x in (k, v))
        return _attention_triton(q, k, v, sink, *options, stored)
    keys, values = (read(x, each, x.shape[3], q.dtype) for x, each in zip((k, v), stored, strict=True))
    return split_attention_torch.attention(q, keys, values, sink, *options)


@_attention.register_fake
def _(q, k, v, k_scale, v_scale, sink, table, length, kind, tokens, left, right, scale, softcap):
    b, n, heads, _ = q.shape
    return q.new_empty(b, n, heads, v.shape[3]), q.new_empty(b, heads, n, dtype=torch.float32)


@torch.library.custom_op("twofold::quantized_cache_attend", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, k_scale: Tensor, k_zero: Tensor, v: Tensor, v_scale: Tensor, v_zero: Tensor, old: Tensor,
    recent_k: Tensor, recent_v: Tensor, recent: Tensor, bits: int, group: int, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (b, n, heads, _), dv = q.shape, recent_v.shape[3]
    if not n:
        return q.new_empty(b, 0, heads, dv), q.new_empty(b, heads, 0, dtype=torch.float32)
    stored = Stored(("grid", bits, group, 1), k_scale, k_zero), Stored(("grid", bits, 1, group), v_scale, v_zero)
    ring = None, None, None, recent, None, SIZE, None, None, scale, None
    codes = None, None, None, old, None, SIZE, None, None, scale, None
    if not backend.triton(q):
        k, v = (read(x, each, like.shape[3], q.dtype) for x, each, like in zip((k, v), stored, (recent_k, recent_v), strict=True))
        parts = split_attention_torch.partials(q, recent_k, recent_v, *ring), split_attention_torch.partials(q, k, v, *codes)
        return combine_torch(*(torch.cat(both) for both in zip(*parts, strict=True)), q.dtype)
    first, rest = triton.cdiv(recent_k.shape[1], SIZE), triton.cdiv(k.shape[1], SIZE)
    o = q.new_empty(first + rest, b, n, heads, dv, dtype=torch.float32)
    lse = q.new_empty(first + rest, b, heads, n, dtype=torch.float32)
    _launch(o[:first], lse[:first], True, q, recent_k, recent_v, None, *ring)  # first: its place must not depend on the store's size
    _launch(o[first:], lse[first:], True, q, k, v, None, *codes, stored)
    return combine_triton(o, lse, q.dtype)


@_attend.register_fake
def _(q, k, k_scale, k_zero, v, v_scale, v_zero, old, recent_k, recent_v, recent, bits, group, scale):
    b, n, heads, _ = q.shape
    return q.new_empty(b, n, heads, recent_v.shape[3]), q.new_empty(b, heads, n, dtype=torch.float32)


def variants() -> Iterator[Variant]:
    """The configurations of `split_attention` for heads of 128 in 16 bits, with every format."""
    bytes_of, words_of = {"k": "*u8", "v": "*u8"}, {"k": "*i32", "v": "*i32"}
    scales, groups = dict.fromkeys(("k_scale", "v_scale"), "*fp32"), dict.fromkeys(("k_scale", "k_zero", "v_scale", "v_zero"), "*bf16")
    formats = {
        "e4m3": (bytes_of | scales, ("e4m3", 8, 1, 0), ("e4m3", 8, 1, 0)),
        "int8": ({"k": "*i8", "v": "*i8"} | scales, ("int8", 8, 0, 0), ("int8", 8, 0, 0)),
        "grid2": (words_of | groups, ("grid", 2, 32, 1), ("grid", 2, 1, 32)),
        "grid3": (words_of | groups, ("grid", 3, 32, 1), ("grid", 3, 1, 32)),
        "grid4": (words_of | groups, ("grid", 4, 32, 1), ("grid", 4, 1, 32)),
    }
    for variant in split_attention.variants():
        if variant.name.startswith("d128-bf16"):
            for name, (types, of_keys, of_values) in formats.items():
                constants = variant.constexprs | {"K_FORMAT": of_keys, "V_FORMAT": of_values}
                yield replace(variant, name=f"{name}-{variant.name}", signature=variant.signature | types, constexprs=constants)
