"""Verification of drafted chains: probabilities in, tokens kept and the next token out.

It is all about memory: once the drafted tokens' own probabilities say where a request stops, only that row of p and of q is needed. So the
floor counts those two rows per request, once (a request that keeps everything needs p alone: a few percent here). Peers are the same rule
in PyTorch: over all rows, as fallbacks of serving engines do it, and over the one row that counts.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.harness import Case, normal
from twofold.fast.speculative import chain
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain as definition


def cases(device: torch.device) -> Iterator[Case]:
    if device.type == "cuda":
        for vocabulary in (8192, 32768, 131072, 262144):
            yield verification(device, "V", 64, 7, vocabulary)
        for batch in (1, 4, 16, 64, 256):
            yield verification(device, "B", batch, 7, 131072)
    else:
        for vocabulary in (2048, 8192, 32768, 131072):
            yield verification(device, "V", 8, 4, vocabulary)
        for batch in (1, 4, 16):
            yield verification(device, "B", batch, 4, 32768)


def verification(device: torch.device, axis: str, batch: int, gamma: int, vocabulary: int) -> Case:
    def inputs(generator: torch.Generator) -> tuple:
        logits = 2 * normal(generator, batch, gamma + 1, vocabulary)
        p, q = (logits + normal(generator, *logits.shape)).softmax(-1), logits[:, :-1].softmax(-1)
        draft = torch.multinomial(q.flatten(0, 1), 1, generator=generator).view(batch, gamma)
        accept, token = (torch.rand(*shape, generator=generator, device=generator.device) for shape in ((batch, gamma), (batch,)))
        return p, q, draft, accept, token

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
        bytes=2 * batch * vocabulary * 4, flops=0, inputs=inputs, contenders=contenders,
    )  # fmt: skip


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
