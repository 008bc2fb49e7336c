"""Attention over keys and values that are stored as codes: `split_attention` with a format, and what KIVI's two stores hold together.

In PyTorch the codes become numbers first, then `split_attention_torch` reads those.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels import kv_formats, split_attention, split_attention_torch
from twofold.fast.kernels.combine_splits import combine_torch, combine_triton
from twofold.fast.kernels.kv_formats import Stored, read
from twofold.fast.kernels.split_attention import SIZE, _attention_triton, _launch, demand_places
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
    demand_places(k, table, length)
    stored = tuple(Stored((kind, 8, tokens, 0), parameters, None) for parameters in (k_scale, v_scale))
    options = None, None, table, length, None, SIZE, left, right, scale, softcap
    if backend.triton(q):
        k, v = (x.view(torch.uint8 if x.dtype == torch.float8_e4m3fn else x.dtype) for x in (k, v))  # never one tensor: scales differ
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
        (ring_o, ring_lse), (o, lse) = parts
        return combine_torch(torch.cat([ring_o, o]), torch.cat([ring_lse, lse]), q.dtype)
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
    """`split_attention` with every kind of format, for heads and blocks of several sizes."""
    formats = {
        "e4m3": ("*u8", "fp32", ("e4m3", 8, 1, 0), ("e4m3", 8, 1, 0)),
        "int8": ("*i8", "fp32", ("int8", 8, 0, 0), ("int8", 8, 0, 0)),
        **{f"grid{bits}": ("*i32", "", ("grid", bits, 32, 1), ("grid", bits, 1, 32)) for bits in (2, 3, 4)},
    }
    plain = {variant.name.split("-page")[0]: variant for variant in split_attention.variants()}
    shapes = (64, "bf16", 32, 16), (128, "bf16", 16, 0), (128, "bf16", 32, 256), (256, "bf16", 32, 16), (128, "fp32", 16, 16)
    for (name, (codes, parameters, keys, values)), (width, dtype, rows, page) in itertools.product(formats.items(), shapes):
        like, picked = plain[f"d{width}-{dtype}"], dict[str, tuple[dict, dict, list[int | str]]]()
        for target in (80, 90, 100, 120, "gfx942"):
            tile, options = kv_formats.configuration(target, rows, width, 4 if dtype == "fp32" else 2, keys)
            tag = f"{tile['BLOCK_M']}x{tile['BLOCK_N']}-w{options['num_warps']}-s{options['num_stages']}"
            picked.setdefault(tag, (tile, options, []))[2].append(target)
        types = dict.fromkeys(("k", "v"), codes) | dict.fromkeys(("k_scale", "k_zero", "v_scale", "v_zero"), f"*{parameters or dtype}")
        for tag, (tile, options, targets) in picked.items():
            constants = like.constexprs | tile | {"PAGE": page, "WITHIN": page > 0 and page % tile["BLOCK_N"] == 0}
            constants |= {"K_FORMAT": keys, "V_FORMAT": values}
            tag = f"{name}-d{width}-{dtype}-page{page}-{tag}"
            yield Variant(tag, like.kernel, like.signature | types, constants, options, like.divisible, tuple(targets))
