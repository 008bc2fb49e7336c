"""Attention: forward, forward with gradients, and one query against a long cache, in rows and in pages.

Peers are PyTorch's own kernels and the materialized formula. Operations are counted over the scores that the mask leaves: 4 D each forward,
3.5 times that with gradients. On Hopper a model of the multiprocessor gives two predictions beside the measurements: each score costs
4 D matrix operations, one exp2 (16 a clock and multiprocessor) and about 4.5 other float32 operations (128 a clock); in a kernel that
overlaps nothing the three times add up, in one that overlaps all of them the longest remains.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Case, normal
from twofold.fast.attention import flash, fp8_kv, paged, split_kv
from twofold.spec.attention import dense

CLOCK = 1.83e9  # of an H100 or H200 under load
PAGES = (1, 16, 256)  # tokens per block


def cases(device: torch.device) -> Iterator[Case]:
    if device.type == "cuda":
        for d, heads in ((128, 16), (64, 32)):
            for causal in (False, True):
                for t in (512, 1024, 2048, 4096, 8192, 16384):
                    yield forward(device, 16384 // t, heads, t, d, causal, torch.bfloat16)
        for t in (1024, 2048, 4096, 8192, 16384):
            yield training(device, 16384 // t, 16, t, 128, torch.bfloat16)
        for batch, lengths in ((64, (1024, 4096, 8192)), (1, (8192, 32768, 131072))):
            for t in lengths:
                yield decode(device, batch, 32, 8, t, 128, torch.bfloat16)
    else:
        for causal in (False, True):
            for t in (128, 256, 512, 1024, 2048, 4096):
                yield forward(device, 1, 4, t, 64, causal, torch.float32)
        for t in (128, 256, 512, 1024, 2048):
            yield training(device, 1, 4, t, 64, torch.float32)
        for dtype in (torch.float32, torch.bfloat16):
            for t in (1024, 4096, 16384):
                yield decode(device, 1, 8, 2, t, 64, dtype)


def forward(device: torch.device, batch: int, heads: int, t: int, d: int, causal: bool, dtype: torch.dtype) -> Case:
    scores = batch * heads * (t * (t + 1) // 2 if causal else t * t)
    contenders = _peers(device, causal) | {"twofold": lambda q, k, v: flash.forward(q, k, v, causal=causal)[0]}
    if t <= 8192:
        contenders["PyTorch, materialized"] = partial(materialized, causal=causal)
    if device.type == "cpu" and t <= 1024:
        contenders["spec, NumPy"] = partial(specified, causal=causal)
    return Case(
        chapter="attention.flash", name=f"forward{', causal' if causal else ''}, D {d}", axis="T", at=t,
        shape=f"B {batch}, H {heads}, T {t}, D {d}", dtype=dtype,
        bytes=batch * heads * t * (4 * d * dtype.itemsize + 4), flops=4 * d * scores,
        inputs=lambda generator: tuple(normal(generator, batch, t, heads, d, dtype=dtype) for _ in range(3)),
        contenders=contenders, prediction=_overlap(device, scores, d, dtype),
    )  # fmt: skip


def training(device: torch.device, batch: int, heads: int, t: int, d: int, dtype: torch.dtype) -> Case:
    """Forward and all three gradients, as a training step runs them."""

    def inputs(generator: torch.Generator) -> tuple:
        q, k, v = (normal(generator, batch, t, heads, d, dtype=dtype).requires_grad_() for _ in range(3))
        return q, k, v, normal(generator, batch, t, heads, d, dtype=dtype)

    def gradients(function: Callable[..., torch.Tensor], q: Any, k: Any, v: Any, do: Any) -> tuple:
        return torch.autograd.grad(function(q, k, v), (q, k, v), do)

    functions = _peers(device, causal=True) | {"twofold": lambda q, k, v: flash.forward(q, k, v, causal=True)[0]}
    if t <= 4096:
        functions["PyTorch, materialized"] = partial(materialized, causal=True)
    elements = batch * heads * t * d
    return Case(
        chapter="attention.flash", name=f"forward and backward, causal, D {d}", axis="T", at=t, shape=f"B {batch}, H {heads}, T {t}, D {d}",
        dtype=dtype, bytes=8 * elements * dtype.itemsize, flops=3.5 * 4 * d * batch * heads * t * (t + 1) // 2,
        inputs=inputs, contenders={who: partial(gradients, function) for who, function in functions.items()},
    )  # fmt: skip


def decode(device: torch.device, batch: int, heads: int, kv_heads: int, t: int, d: int, dtype: torch.dtype) -> Case:
    """One query per request against t cached keys, shared by groups of heads: all about reading the cache once.

    The same keys lie in rows, in pages at random places, and as 8-bit integers, which is another function and half the bytes.
    """

    def inputs(generator: torch.Generator) -> tuple:
        k, v = (normal(generator, batch, t, kv_heads, d, dtype=dtype) for _ in range(2))
        pools = {}
        for page in PAGES:
            n = batch * t // page
            table = torch.randperm(n, generator=generator, device=generator.device).int().view(batch, -1)
            pools[page] = *(_scattered(x, table, page) for x in (k, v)), table
        length = torch.full((batch,), t, dtype=torch.int32, device=k.device)
        return normal(generator, batch, 1, heads, d, dtype=dtype), k, v, pools, length, [fp8_kv.quantize(x, number="int8") for x in (k, v)]

    def in_pages(q: Any, k: Any, v: Any, pools: Any, length: Any, codes: Any, page: int) -> torch.Tensor:
        return paged.attention(q, *pools[page], length)[0]

    def in_integers(q: Any, k: Any, v: Any, pools: Any, length: Any, codes: Any) -> torch.Tensor:
        (k_codes, k_scale), (v_codes, v_scale) = codes
        return fp8_kv.attention(q, k_codes, v_codes, k_scale, v_scale)[0]

    rows = lambda function: lambda q, k, v, *rest: function(q, k, v)
    contenders = _peers(device, causal=False) | {
        "twofold": lambda q, k, v: split_kv.attention(q, k, v)[0],
        "twofold, one chunk": lambda q, k, v: split_kv.attention(q, k, v, splits=1)[0],
        "twofold, flash": lambda q, k, v: flash.forward(q, k, v)[0],
        "PyTorch, materialized": partial(materialized, causal=False),
    }
    return Case(
        chapter="attention.split_kv", name=f"decode, B {batch}, D {d}", axis="T", at=t,
        shape=f"B {batch}, H {heads}/{kv_heads}, T {t}, D {d}", dtype=dtype,
        bytes=2 * batch * kv_heads * t * d * dtype.itemsize, flops=4 * d * batch * heads * t, inputs=inputs,
        contenders={who: rows(function) for who, function in contenders.items()}
        | {f"twofold, pages of {page}": partial(in_pages, page=page) for page in PAGES},
        yardsticks={"twofold, 8-bit integers": in_integers},
    )  # fmt: skip


def _scattered(x: torch.Tensor, table: torch.Tensor, page: int) -> torch.Tensor:
    """Tokens (B, T, Hkv, D) as a pool (n_blocks, page, Hkv, D), block i of sequence b at table[b, i]."""
    pool = torch.empty(table.numel(), page, *x.shape[2:], dtype=x.dtype, device=x.device)
    pool[table.flatten().long()] = x.reshape(table.numel(), page, *x.shape[2:])
    return pool


def materialized(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """The formula, every score in memory."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, *(x.repeat_interleave(group, 2) if group > 1 else x for x in (k, v))))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def specified(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """The definition of `spec/`, head by head."""
    mask = np.tri(q.shape[1], dtype=bool) if causal else None
    heads = [[dense.attention(*(x[b, :, h].numpy() for x in (q, k, v)), mask=mask)[0] for h in range(q.shape[2])] for b in range(len(q))]
    return torch.from_numpy(np.array(heads)).transpose(1, 2)


def _peers(device: torch.device, causal: bool) -> dict[str, Callable]:
    if device.type == "cpu":
        return {"PyTorch SDPA": partial(_sdpa, causal=causal)}
    sides = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
    return {f"PyTorch SDPA, {name}": partial(_sdpa, causal=causal, side=side) for name, side in sides.items()}


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, side: SDPBackend | None = None) -> torch.Tensor:
    call = partial(scaled_dot_product_attention, is_causal=causal, enable_gqa=q.shape[2] != k.shape[2])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if side is None:
        return call(q, k, v).transpose(1, 2)
    with sdpa_kernel([side]):
        return call(q, k, v).transpose(1, 2)


def _overlap(device: torch.device, scores: int, d: int, dtype: torch.dtype) -> Callable[[dict[str, float]], dict[str, float]] | None:
    if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability(device) != (9, 0):
        return None
    rate = torch.cuda.get_device_properties(device).multi_processor_count * CLOCK
    other = [scores / (16 * rate), 4.5 * scores / (128 * rate)]

    def predict(limits: dict[str, float]) -> dict[str, float]:
        parts = [4 * d * scores / limits[str(dtype).removeprefix("torch.")], *other]
        return {"nothing overlaps": sum(parts), "all overlaps": max(parts)}

    return predict
