"""Flexible attention on tensors (B, T, H, D): a mask and a score as plain functions, compiled into the tiled kernel.

See `twofold.spec.attention.flex`. Functions take b, h, i, j (a score takes s first) and use operators, numbers and indexed tensors:

    mask_mod = lambda b, h, i, j: (j <= i) & (document[b, i] == document[b, j])
    score_mod = lambda s, b, h, i, j: s - slope[h] * (i - j)

They are called once, with terms that write down what is done to them: join conditions with `&`, `|` and `~`, not with `and`, `or`, `not` or
`if`. Other numbers and other tensors need no other kernel. Indexed tensors get no gradient. An index must lie inside its tensor for every
row and key.

Query head h reads key head h // (H / Hkv). A row that sees no key has output 0, log-sum-exp -inf and gradients 0. Both results are
differentiable. What the mask hides must be finite: 0 times a NaN is a NaN.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import masks
from twofold.fast.attention.flash import _options
from twofold.fast.kernels import tiled_attention_operator as operator
from twofold.fast.kernels.attention_mods import evaluate, trace
from twofold.fast.kernels.tiled_attention import Blocks

__all__ = ["attention", "sparse", "block_mask"]

Mod = Callable | None
AT_ONCE = 2**24  # pairs of rows and keys that `block_mask` asks about at a time


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask_mod: Mod = None, score_mod: Mod = None, *, scale: float | None = None,
    softcap: float | None = None, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32. Every tile is visited.

    `softcap` comes after the scale and before `score_mod`; `sink` (H,) is one logit per head that takes attention and gives nothing.
    """
    scale = _options(q, k, v, scale, softcap, sink)
    return operator.forward(q, k, v, sink, None, None, scale, softcap, None, _traced(q, mask_mod, score_mod))


def sparse(
    q: Tensor, k: Tensor, v: Tensor, mask_mod: Mod, score_mod: Mod, blocks: Blocks, bq: int, bk: int, *, scale: float | None = None,
    softcap: float | None = None, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same, visiting only the blocks that `block_mask` lists, forward and backward; bq and bk are those it was made with."""
    scale = _options(q, k, v, scale, softcap, sink)
    for name, size, of_lists in (("bq", bq, blocks.rows), ("bk", bk, blocks.keys)):
        if size != of_lists or size % 16:
            raise ValueError(f"{name} must be a multiple of 16 and that of blocks, {of_lists}, not {size}")
    for name, ends, size, length in (("rows", blocks.lines[0], bq, q.shape[1]), ("keys", blocks.columns[0], bk, k.shape[1])):
        if (len(ends) - 1) * size < length:
            raise ValueError(f"blocks must be made for at least {length} {name}, not for {(len(ends) - 1) * size}")
    checks.same_device(q=q, blocks=blocks.lines[0])
    return operator.forward(q, k, v, sink, None, None, scale, softcap, None, _traced(q, mask_mod, score_mod), blocks)


def block_mask(
    mask_mod: Mod, nq: int, nk: int, bq: int, bk: int, *, batch: int = 1, heads: int = 1, device: torch.device | str | None = None
) -> Blocks:
    """Lists of full and partial blocks, for lines of rows and, transposed, for columns of keys.

    They serve `batch` sequences and `heads` heads at once: a block is full if it is for all of them. Lists made for a longer problem serve
    a shorter one.
    """
    for name, number, least in (("nq", nq, 0), ("nk", nk, 0), ("bq", bq, 1), ("bk", bk, 1), ("batch", batch, 1), ("heads", heads, 1)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")
    mods = trace(mask_mod, None)
    b, h = torch.arange(batch, device=device)[:, None, None, None], torch.arange(heads, device=device)[:, None, None]
    j = torch.arange(nk, device=device)
    kinds = [torch.zeros(0, -(-nk // bk), dtype=torch.int8, device=device)]
    step = max(AT_ONCE // max(nk * batch * heads, 1) // bq, 1) * bq
    for start in range(0, nq, step):
        i = torch.arange(start, min(start + step, nq), device=device)[:, None]
        allowed = torch.ones(1, dtype=torch.bool, device=device)
        allowed = allowed if mods.mask is None else evaluate(mods.mask, mods.tables, mods.numbers, b=b, h=h, i=i, j=j)
        of_all = masks.blocks(allowed.expand(batch, heads, len(i), nk), bq, bk)
        kinds.append(torch.where(of_all.amin((0, 1)) == 2, 2, (of_all.amax((0, 1)) > 0).to(torch.int8)))
    kind = torch.cat(kinds)  # (lines, columns)
    return Blocks(bq, bk, (*_lists(kind == 2), *_lists(kind == 1)), (*_lists(kind.T == 2), *_lists(kind.T == 1)))


def _lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Where the entries of each line begin, and the entries."""
    counts = chosen.sum(1)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(), chosen.nonzero()[:, 1].int()


def _traced(q, mask_mod, score_mod):
    mods = trace(mask_mod, score_mod)
    for table in mods.tables:
        if table.device != q.device:
            raise ValueError(f"tensors that mask_mod and score_mod index must be on the device of q, {q.device}, not on {table.device}")
    return mods
