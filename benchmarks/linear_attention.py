"""Gated linear attention and the gated delta rule: the chunked forms, forward and with gradients, over growing length.

Peers that compute the same: the recurrence token by token, the parallel form, the PyTorch twin on the GPU. Softmax attention at the
same size is the yardstick that the family exists for. The floor counts the inputs and outputs once, and four operations per token and entry
of the state: writing a pair, reading it. The delta rule's two more, for looking up what a key holds. Beside it stands what the
transformers library runs for Qwen3-Next where no kernels are installed; it scales the queries by itself.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention

from benchmarks.harness import Case, normal
from twofold.fast import backend
from twofold.fast.linear_attention import gated_delta, gla
from twofold.spec.linear_attention import gla as definition


def cases(device: torch.device) -> Iterator[Case]:
    if device.type == "cuda":
        for t in (512, 1024, 2048, 4096, 8192, 16384):
            yield outputs(device, 16384 // t, t, 16, 128, torch.bfloat16)
        for t in (1024, 2048, 4096, 8192, 16384):
            yield training(device, 16384 // t, t, 16, 128, torch.bfloat16)
        yield outputs(device, 1, 8192, 96, 128, torch.bfloat16)
        for t in (1024, 2048, 4096, 8192, 16384):
            yield erasing(device, 16384 // t, t, 16, 128, torch.bfloat16)
        yield erasing(device, 1, 8192, 96, 128, torch.bfloat16)
    else:
        for t in (128, 512, 1024, 2048, 4096, 8192):
            yield outputs(device, 1, t, 2, 64, torch.float32)
        for t in (512, 1024, 2048, 4096):
            yield training(device, 1, t, 2, 64, torch.float32)
        for t in (512, 1024, 2048, 4096, 8192):
            yield erasing(device, 1, t, 2, 64, torch.float32)


def outputs(device: torch.device, batch: int, t: int, heads: int, d: int, dtype: torch.dtype) -> Case:
    contenders: dict[str, Callable] = {}
    if device.type == "cuda":
        contenders["twofold, PyTorch twin"] = _on_torch(_output(gla.chunked))
    if t <= 1024 or (device.type == "cpu" and t == 4096):
        contenders["token by token, PyTorch"] = _output(gla.recurrent)
    if device.type == "cpu":
        contenders |= {"parallel, PyTorch": _output(gla.parallel)} if t <= 512 else {}
        contenders |= {"spec, chunked, NumPy": partial(specified, definition.chunked)}
        contenders |= {"spec, NumPy": partial(specified, definition.recurrent)} if t <= 1024 else {}
    contenders["twofold"] = _output(gla.chunked)
    return Case(
        chapter="linear_attention.gla", name=f"forward, H {heads}, K = V = {d}", axis="T", at=t,
        shape=f"B {batch}, T {t}, H {heads}, K {d}, V {d}", dtype=dtype,
        bytes=batch * t * heads * d * (4 * dtype.itemsize + 4), flops=4 * d * d * batch * t * heads,
        inputs=partial(_inputs, batch, t, heads, d, dtype), contenders=contenders, yardsticks={"softmax attention (SDPA)": softmax},
    )  # fmt: skip


def erasing(device: torch.device, batch: int, t: int, heads: int, d: int, dtype: torch.dtype) -> Case:
    """The gated delta rule, forward."""

    def inputs(generator: torch.Generator) -> tuple:
        q, k, v = (normal(generator, batch, t, heads, d, dtype=dtype) for _ in range(3))
        gate = logsigmoid(normal(generator, batch, t, heads)) / 16
        return q * d**-0.5, normalize(k.float(), dim=-1).to(dtype), v, gate, normal(generator, batch, t, heads).sigmoid()

    contenders: dict[str, Callable] = {}
    if t <= 1024 or (device.type == "cpu" and t == 4096):
        contenders["token by token, PyTorch"] = lambda *x: gated_delta.recurrent(*x)[0].to(dtype)
    contenders["transformers, PyTorch"] = _transformers()
    if device.type == "cuda":
        contenders["twofold, PyTorch twin"] = _on_torch(lambda *x: gated_delta.chunked(*x)[0])
    contenders["twofold"] = lambda *x: gated_delta.chunked(*x)[0]
    return Case(
        chapter="linear_attention.gated_delta", name=f"forward, H {heads}, K = V = {d}", axis="T", at=t,
        shape=f"B {batch}, T {t}, H {heads}, K {d}, V {d}", dtype=dtype,
        bytes=batch * t * heads * (4 * d * dtype.itemsize + 8), flops=6 * d * d * batch * t * heads, inputs=inputs, contenders=contenders,
    )  # fmt: skip


def _transformers() -> Callable:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule as run

    return lambda q, k, v, g, beta: run(q * q.shape[-1] ** 0.5, k, v, g, beta, output_final_state=True)[0]


def training(device: torch.device, batch: int, t: int, heads: int, d: int, dtype: torch.dtype) -> Case:
    """Forward and the gradients of q, k, v and g."""

    def inputs(generator: torch.Generator) -> tuple:
        trained = tuple(x.requires_grad_() for x in _inputs(batch, t, heads, d, dtype, generator))
        return *trained, normal(generator, batch, t, heads, d, dtype=dtype)

    def gradients(function: Callable, q: Any, k: Any, v: Any, g: Any, do: Any) -> tuple:
        return torch.autograd.grad(function(q, k, v, g), (q, k, v, g), do, allow_unused=True)

    contenders: dict[str, Callable] = {}
    if device.type == "cpu" and t <= 1024:  # keeps a state per token: beyond a GPU's memory at its sizes
        contenders["token by token, PyTorch"] = partial(gradients, _output(gla.recurrent))
    if device.type == "cuda":
        contenders["twofold, PyTorch twin"] = partial(gradients, _on_torch(_output(gla.chunked)))
    contenders["twofold"] = partial(gradients, _output(gla.chunked))
    elements = batch * t * heads * d
    return Case(
        chapter="linear_attention.gla", name=f"forward and backward, H {heads}, K = V = {d}", axis="T", at=t,
        shape=f"B {batch}, T {t}, H {heads}, K {d}, V {d}", dtype=dtype,
        bytes=elements * (7 * dtype.itemsize + 8), flops=3 * 4 * d * elements, inputs=inputs, contenders=contenders,
        yardsticks={"softmax attention (SDPA)": partial(gradients, softmax)},
    )  # fmt: skip


def specified(form: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """A form of `spec/`, head by head."""
    heads = [[form(*(x[b, :, h].numpy() for x in (q, k, v, g)))[0] for h in range(q.shape[2])] for b in range(len(q))]
    return torch.from_numpy(np.array(heads)).transpose(1, 2)


def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _inputs(batch: int, t: int, heads: int, d: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Keys, queries and values, and the log-decays of the paper's gate (tau = 16) in float32."""
    q, k, v = (normal(generator, batch, t, heads, d, dtype=dtype) for _ in range(3))
    return q * d**-0.5, k, v, logsigmoid(normal(generator, batch, t, heads, d)) / 16


def _output(form: Callable) -> Callable:
    return lambda q, k, v, g: form(q, k, v, g)[0]


def _on_torch(function: Callable) -> Callable:
    def forced(*arguments: Any) -> Any:
        with backend.use("torch"):
            return function(*arguments)

    return forced
