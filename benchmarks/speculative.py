"""Verification of drafted chains: probabilities or logits in, tokens kept and the next token out.

It is all about memory. By token, once the drafted tokens' own probabilities say where a request stops, only that row of p and of q is
needed. So the floor counts those two rows per request, once (a request that keeps everything needs p alone: a few percent here). As a
block, every row decides, and the floor is all of p and q. From logits, every row must be read for its law. Peers are the same rules in
PyTorch: over all rows, as fallbacks of serving engines do it, and by token over the one row that counts.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.harness import Case, normal
from twofold.fast.speculative import block, chain, from_logits
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain as definition


def cases(device: torch.device) -> Iterator[Case]:
    if device.type == "cuda":
        for vocabulary in (8192, 32768, 131072, 262144):
            yield verification(device, "V", 64, 7, vocabulary)
        for batch in (1, 4, 16, 64, 256):
            yield verification(device, "B", batch, 7, 131072)
        for vocabulary in (32768, 131072, 262144):
            yield as_a_block(64, 7, vocabulary)
            yield of_logits(64, 7, vocabulary, torch.bfloat16)
    else:
        for vocabulary in (2048, 8192, 32768, 131072):
            yield verification(device, "V", 8, 4, vocabulary)
        for batch in (1, 4, 16):
            yield verification(device, "B", batch, 4, 32768)
        for vocabulary in (2048, 8192, 32768):
            yield as_a_block(8, 4, vocabulary)
            yield of_logits(8, 4, vocabulary, torch.float32)


def drafted(batch: int, gamma: int, vocabulary: int) -> Callable[[torch.Generator], tuple]:
    """p, q, a draft drawn from q, and the uniforms."""

    def inputs(generator: torch.Generator) -> tuple:
        logits = 2 * normal(generator, batch, gamma + 1, vocabulary)
        p, q = (logits + normal(generator, *logits.shape)).softmax(-1), logits[:, :-1].softmax(-1)
        draft = torch.multinomial(q.flatten(0, 1), 1, generator=generator).view(batch, gamma)
        accept, token = (torch.rand(*shape, generator=generator, device=generator.device) for shape in ((batch, gamma), (batch,)))
        return p, q, draft, accept, token

    return inputs


def verification(device: torch.device, axis: str, batch: int, gamma: int, vocabulary: int) -> Case:
    contenders: dict[str, Callable] = {
        "PyTorch, all rows": partial(eager, every=True),
        "PyTorch, one row": partial(eager, every=False),
        "twofold": lambda p, q, draft, accept, token: chain.verify(p, q, draft, accept=accept, token=token),
    }
    if device.type == "cpu" and vocabulary <= 8192:
        contenders["spec, NumPy"] = specified
    return Case(
        chapter="speculative.chain", name=f"verify, {f'B {batch}' if axis == 'V' else f'V {vocabulary}'}", axis=axis,
        at=vocabulary if axis == "V" else batch, shape=f"B {batch}, gamma {gamma}, V {vocabulary}", dtype=torch.float32,
        bytes=2 * batch * vocabulary * 4, flops=0, inputs=drafted(batch, gamma, vocabulary), contenders=contenders,
    )  # fmt: skip


def as_a_block(batch: int, gamma: int, vocabulary: int) -> Case:
    contenders: dict[str, Callable] = {
        "PyTorch": eager_block,
        "twofold": lambda p, q, draft, accept, token: block.verify(p, q, draft, accept=accept, token=token),
    }
    return Case(
        chapter="speculative.block", name=f"verify, B {batch}", axis="V", at=vocabulary, shape=f"B {batch}, gamma {gamma}, V {vocabulary}",
        dtype=torch.float32, bytes=2 * batch * gamma * vocabulary * 4, flops=0, inputs=drafted(batch, gamma, vocabulary),
        contenders=contenders,
    )  # fmt: skip


def of_logits(batch: int, gamma: int, vocabulary: int, dtype: torch.dtype) -> Case:
    settings = {"T": 0.8, "k": 50, "mass": 0.95}

    def inputs(generator: torch.Generator) -> tuple:
        drafts = 2 * normal(generator, batch, gamma + 1, vocabulary)
        logits, drafts = (drafts + normal(generator, *drafts.shape)).to(dtype), drafts[:, :-1].to(dtype)
        draft = drafts.argmax(-1)
        accept, token = (torch.rand(*shape, generator=generator, device=generator.device) for shape in ((batch, gamma), (batch,)))
        return logits, drafts, draft, accept, token

    contenders: dict[str, Callable] = {
        "PyTorch, sorted rows": lambda logits, drafts, draft, accept, token: eager(
            *(warped(rows.float(), **settings) for rows in (logits, drafts)), draft, accept, token, every=False
        ),
        "twofold": lambda logits, drafts, draft, accept, token: from_logits.verify(
            logits, draft, drafts, **settings, accept=accept, token=token
        ),
    }
    return Case(
        chapter="speculative.from_logits", name=f"verify, top-50 and top-p, B {batch}", axis="V", at=vocabulary,
        shape=f"B {batch}, gamma {gamma}, V {vocabulary}", dtype=dtype, flops=0, inputs=inputs, contenders=contenders,
        bytes=(2 * gamma + 1) * batch * vocabulary * dtype.itemsize,
    )  # fmt: skip


def warped(logits: torch.Tensor, T: float, k: int, mass: float) -> torch.Tensor:
    """Temperature, top-k and top-p by sorting every row, as sampling code usually does it."""
    ordered, ids = (logits / T).sort(-1, descending=True)
    ordered[..., k:] = -torch.inf
    p = ordered.softmax(-1)
    p = torch.where(p.cumsum(-1) - p < mass, p, 0)
    return torch.zeros_like(p).scatter(-1, ids, p / p.sum(-1, keepdim=True))


def eager_block(p: torch.Tensor, q: torch.Tensor, draft: torch.Tensor, accept: torch.Tensor, token: torch.Tensor) -> tuple:
    """Block verification in plain PyTorch: the scan over positions, then the residual's mass in every row."""
    gamma, which = draft.shape[1], torch.arange(len(p), device=p.device)
    px, qx = (x[:, :gamma].gather(-1, draft[..., None])[..., 0] for x in (p, q))
    reach = [torch.ones_like(token)]
    for i in range(gamma):
        reach.append((reach[-1] * px[:, i] / qx[:, i]).clamp_max(1))
    P = torch.stack(reach, 1)  # (B, gamma + 1)
    left = (P[:, 1:-1, None] * p[:, 1:-1] - q[:, 1:]).clamp_min(0).sum(-1)
    chance = torch.cat([left / (left + 1 - P[:, 1:-1]), P[:, -1:]], 1)
    places = torch.arange(1, gamma + 1, device=p.device)
    kept = torch.where(accept < chance, places, 0).amax(1)
    drafted = q[which, kept.clamp_max(gamma - 1)] * (kept < gamma)[:, None]
    row = (torch.where(kept < gamma, P[which, kept], 1)[:, None] * p[which, kept] - drafted).clamp_min(0)
    total = row.cumsum(-1)
    return kept, torch.searchsorted(total, (token * total[:, -1])[:, None], right=True)[:, 0]


def eager(p: torch.Tensor, q: torch.Tensor, draft: torch.Tensor, accept: torch.Tensor, token: torch.Tensor, every: bool) -> tuple:
    """The rule in plain PyTorch; with `every`, the residual of all rows is made before one is chosen."""
    px, qx = (x[:, : draft.shape[1]].gather(-1, draft[..., None])[..., 0] for x in (p, q))
    kept = (accept * qx < px).long().cumprod(1).sum(1)
    which = torch.arange(len(p), device=p.device)
    if every:
        row = torch.cat([(p[:, :-1] - q).clamp_min(0), p[:, -1:]], 1)[which, kept]
    else:
        drafted = q[which, kept.clamp_max(draft.shape[1] - 1)] * (kept < draft.shape[1])[:, None]
        row = (p[which, kept] - drafted).clamp_min(0)
    total = row.cumsum(-1)
    return kept, torch.searchsorted(total, (token * total[:, -1])[:, None], right=True)[:, 0]


def specified(p: torch.Tensor, q: torch.Tensor, draft: torch.Tensor, accept: torch.Tensor, token: torch.Tensor) -> tuple:
    """The definition of `spec/`, request by request."""
    rows = [
        definition.verify(p[b].numpy(), q[b].numpy(), draft[b].tolist(), Tape(accept[b].tolist(), [float(token[b])])) for b in range(len(p))
    ]
    return tuple(np.array(rows).T)
