"""Quantized weights: the product with few and many tokens, the integer product, and quantizing itself.

With few tokens a product reads its weight once and does little else, so 4-bit codes may save up to a factor of 4 over 16-bit weights;
with many it is all arithmetic, and they save nothing. The floor counts codes, scales, zeros, tokens and outputs once. Peers compute the
same from the same codes; the product with the weight before quantization is the yardstick.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import linear

from benchmarks.harness import Case, normal
from twofold.fast.number_formats import bit_packing
from twofold.fast.quantization import round_to_nearest
from twofold.spec.quantization import round_to_nearest as definition

GROUP = 128


def cases(device: torch.device) -> Iterator[Case]:
    if device.type == "cuda":
        for rows, columns in ((4096, 4096), (14336, 4096), (8192, 8192), (28672, 8192)):
            for tokens in (1, 4, 16, 64, 256, 1024, 4096):
                yield low_bit(rows, columns, tokens, torch.bfloat16)
        for tokens in (32, 128, 512, 2048, 8192):  # PyTorch's integer product wants more than 16
            yield integer(8192, 8192, tokens, torch.bfloat16)
        for rows in (1024, 4096, 16384, 65536):
            yield encode(device, rows, 4096, torch.bfloat16)
    else:
        for tokens in (1, 4, 16, 64, 256):
            yield low_bit(2048, 2048, tokens, torch.float32)
        for tokens in (32, 128, 512):
            yield integer(1024, 1024, tokens, torch.float32)
        for rows in (64, 256, 1024):
            yield encode(device, rows, 4096, torch.float32)


def low_bit(rows: int, columns: int, tokens: int, dtype: torch.dtype) -> Case:
    """4-bit codes in 32-bit words, 16-bit scales and whole zeros per group of 128, activations of `dtype`."""

    def inputs(generator: torch.Generator) -> tuple:
        weight = normal(generator, rows, columns, dtype=dtype)
        codes, scale, zero = round_to_nearest.encode(weight, 4, GROUP, "zero_point", dtype=torch.float16)
        return normal(generator, tokens, columns, dtype=dtype), weight, codes, bit_packing.pack(codes, 4), scale, zero

    def ours(x: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor):
        return round_to_nearest.matmul(x, words, scale, zero, 4, GROUP, "zero_point", packed=True)

    parameters = 2 * 2 * rows * (columns // GROUP)
    return Case(
        chapter="quantization.round_to_nearest", name=f"4-bit weight {rows} x {columns}, G {GROUP}", axis="M", at=tokens,
        shape=f"M {tokens}, N {rows}, K {columns}", dtype=dtype, flops=2 * tokens * rows * columns,
        bytes=rows * columns / 2 + parameters + tokens * (rows + columns) * dtype.itemsize, inputs=inputs,
        contenders={"PyTorch, dequantize and multiply": dequantized, "twofold": ours},
        yardsticks={"PyTorch, weight not quantized": lambda x, weight, *_: linear(x, weight)},
    )  # fmt: skip


def integer(rows: int, columns: int, tokens: int, dtype: torch.dtype) -> Case:
    """8-bit codes on both sides, one scale per token and per channel, output in `dtype`."""

    def inputs(generator: torch.Generator) -> tuple:
        x, weight = normal(generator, tokens, columns, dtype=dtype), normal(generator, rows, columns, dtype=dtype)
        (x_codes, x_scale, _), (codes, scale, _) = (round_to_nearest.encode(values, 8, None, "absmax") for values in (x, weight))
        return x, weight, x_codes, x_scale, codes, scale

    def ours(x: torch.Tensor, weight: torch.Tensor, *quantized: torch.Tensor) -> torch.Tensor:
        return round_to_nearest.matmul_int8(*quantized, dtype=x.dtype)

    return Case(
        chapter="quantization.round_to_nearest", name=f"8-bit weight and activations {rows} x {columns}", axis="M", at=tokens,
        shape=f"M {tokens}, N {rows}, K {columns}", dtype=torch.int8, flops=2 * tokens * rows * columns,
        bytes=rows * columns + tokens * (columns + rows * dtype.itemsize), inputs=inputs,
        contenders={"PyTorch, _int_mm": integer_product, "twofold": ours},
        yardsticks={"PyTorch, nothing quantized": lambda x, weight, *_: linear(x, weight)},
    )  # fmt: skip


def encode(device: torch.device, rows: int, columns: int, dtype: torch.dtype) -> Case:
    """Scale, zero and 4-bit codes of every group of 128, codes one per byte: one read, one write."""
    contenders = {
        "PyTorch, eager": eager_encode,
        "twofold": lambda weight: round_to_nearest.encode(weight, 4, GROUP, "zero_point", dtype=torch.float32),
    }
    if device.type == "cpu":
        contenders["spec, NumPy"] = lambda weight: definition.encode(weight.numpy(), 4, GROUP, "zero_point")
    return Case(
        chapter="quantization.round_to_nearest", name=f"quantize rows of {columns}, G {GROUP}", axis="N", at=rows,
        shape=f"N {rows}, K {columns}", dtype=dtype, bytes=rows * (columns * (dtype.itemsize + 1) + columns // GROUP * 8), flops=0,
        inputs=partial(_weight, rows, columns, dtype), contenders=contenders,
    )  # fmt: skip


def dequantized(
    x: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, words: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
) -> torch.Tensor:
    """The weight back in full, then an ordinary product."""
    groups = codes.view(len(codes), -1, GROUP)
    return linear(x, ((groups - zero[..., None]) * scale[..., None]).view(codes.shape).to(x.dtype))


def integer_product(
    x: torch.Tensor, weight: torch.Tensor, x_codes: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    return (torch._int_mm(x_codes, codes.t()) * (x_scale * scale.t())).to(x.dtype)


def eager_encode(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return ((groups / scale).round() + zero).clamp(0, 15).to(torch.uint8).view(weight.shape), scale[..., 0], zero[..., 0]


def _weight(rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (normal(generator, rows, columns, dtype=dtype),)
