"""How many tokens of a drafted chain are kept: the token rule and the block rule, from the probabilities at the drafted tokens.

`_accept`, the token rule: token i is kept where `u q(x) < p(x)` (no division), up to the first refusal.

`_reach`, the block rule's first half: P_{i+1} = min(1, P_i p(x) / q(x)), one step after another in float32, as the definition has it.
A logarithm would gain nothing: P lies in [0, 1], and what underflows is kept with a probability below that of any uniform. A step costs two
roundings, so P_i is off by at most 2 i units of 2^-24, relative; where it is cut it is exactly 1, and all error is gone.
It already knows which rows can matter. If the whole draft's coin succeeds, only the bonus row. Else those from the last P_i = 1 on, since
the prefix of that length stays whatever its coin says, and of these only rows where P_i > 0.

`_longest`, its second half, once the rows' masses Z_i are known: the longest prefix whose coin `u (Z_i + 1 - P_i) < Z_i` succeeds.
"""

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.variant import Variant

__all__ = ["accept_torch", "at_draft_torch", "longest_torch", "reach_torch", "variants"]


@triton.jit
def _length(lengths, b, gamma, RAGGED: tl.constexpr):
    length = tl.cast(gamma, tl.int64)  # Triton makes a gamma of 1 a constant
    if RAGGED:
        length = tl.minimum(tl.maximum(tl.load(lengths + b).to(tl.int64), 0), length)
    return length


@triton.jit
def _at_draft(p, q, draft, b, i, length, lenience, gamma, V, p_request, p_row, q_request, q_row, ONEHOT: tl.constexpr):
    """Both probabilities of each drafted token `(GAMMA,)`; 0 and 0 where its id is none."""
    inside = i < length
    x = tl.load(draft + b * gamma + i, mask=inside, other=-1).to(tl.int64)
    known = inside & (x >= 0) & (x < V)
    px = tl.load(p + b * p_request + i * p_row + x, mask=known, other=0.0).to(tl.float32)
    if ONEHOT:
        qx = known.to(tl.float32)
    else:
        qx = lenience * tl.load(q + b * q_request + i * q_row + x, mask=known, other=0.0).to(tl.float32)
    return px, qx


@triton.jit
def _accept(
    p, q, draft, lengths, accept, accepted, lenience, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, ONEHOT: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, GAMMA).to(tl.int64)
    length = _length(lengths, b, gamma, RAGGED)
    px, qx = _at_draft(p, q, draft, b, i, length, lenience, gamma, V, p_request, p_row, q_request, q_row, ONEHOT)
    u = tl.load(accept + b * gamma + i, mask=i < length, other=0.0)
    kept = (qx > 0) & (u * qx < px)  # what q cannot have drawn is refused, and so is a NaN
    refused = tl.min(tl.where(kept, GAMMA, i), axis=0)  # at most the length: what lies beyond is never kept
    tl.store(accepted + b, refused.to(accepted.dtype.element_ty))


@triton.jit
def _reach(
    p, q, draft, lengths, accept, reach, span, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    """P_0 … P_{gamma - 1} into `reach` (B, gamma), the first and last row that can matter into `span` (B, 2)."""
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, GAMMA).to(tl.int64)
    length = _length(lengths, b, gamma, RAGGED)
    px, qx = _at_draft(p, q, draft, b, i, length, 1.0, gamma, V, p_request, p_row, q_request, q_row, False)
    here = tl.full((), 1.0, tl.float32)
    reaches = tl.full((GAMMA,), 1.0, tl.float32)  # P_i
    for step in range(GAMMA):
        reaches = tl.where(i == step, here, reaches)
        target = here * tl.sum(tl.where(i == step, px, 0.0), axis=0)
        drafted = tl.sum(tl.where(i == step, qx, 0.0), axis=0)
        ratio = tl.div_rn(target, tl.where(drafted == 0, 1.0, drafted))
        following = tl.where(drafted == 0, 0.0, tl.where(target >= drafted, 1.0, ratio))  # a NaN stays one
        here = tl.where(step < length, following, here)
    first = tl.max(tl.where((i < length) & (reaches == 1), i, 0), axis=0)
    u = tl.load(accept + b * gamma + length - 1, mask=length > 0, other=0.0)
    whole = u < here  # the coin of the whole draft; an empty one is kept
    tl.store(reach + b * gamma + i, reaches, mask=i < gamma)
    tl.store(span + 2 * b, tl.where(whole, length, first))
    tl.store(span + 2 * b + 1, tl.where(whole, length, length - 1))


@triton.jit
def _longest(accept, reach, span, mass, b, gamma, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """How many tokens the block rule keeps, and whether every row that it looked at has a finite mass (false for a NaN)."""
    first, last = tl.load(span + 2 * b), tl.load(span + 2 * b + 1)
    r, blocks = tl.arange(0, ROWS).to(tl.int64), tl.arange(0, BLOCKS)
    row = first + r
    there = row <= last
    left = tl.load(mass + ((b * ROWS + r[:, None]) * 2) * BLOCKS + blocks[None, :], mask=there[:, None], other=0.0)  # (ROWS, BLOCKS)
    left = tl.sum(left, axis=1)  # Z
    within = there & (r > 0)
    P = tl.load(reach + b * gamma + row, mask=within, other=0.0)
    u = tl.load(accept + b * gamma + row - 1, mask=within, other=0.0)
    kept = within & (u * (left + (1 - P)) < left)  # what lies before is kept anyway
    return tl.max(tl.where(kept, row, first), axis=0), tl.min((left < float("inf")).to(tl.int32), axis=0) == 1


def at_draft_torch(p, q, draft, lengths, lenience):
    """The twin of `_at_draft`: both probabilities `(B, gamma)`, and the lengths `(B,)`."""
    (B, gamma), V = draft.shape, p.shape[2]
    x, rows = draft.long(), torch.arange(gamma, device=p.device)
    length = torch.full((B,), gamma, device=p.device) if lengths is None else lengths.long().clamp(0, gamma)
    known = (rows < length[:, None]) & (x >= 0) & (x < V)
    at = torch.where(known, x, 0)[:, :, None]
    px = p[:, :gamma].gather(2, at)[:, :, 0].float()
    qx = torch.ones_like(px) if q is None else lenience * q.gather(2, at)[:, :, 0].float()
    return torch.where(known, px, 0), torch.where(known, qx, 0), length


def accept_torch(px, qx, accept):
    """The token rule: how many tokens are kept `(B,)`."""
    kept = (qx > 0) & (accept * qx < px)  # what q cannot have drawn is refused, and so is a NaN
    return kept.long().cumprod(1).sum(1)


def reach_torch(px, qx, accept, length):
    """P_0 … P_gamma `(B, gamma + 1)`, and the first and last row that can matter, `(B,)` each."""
    reach = torch.ones(len(px), 1, device=px.device)
    for step in range(px.shape[1]):
        target, drafted = reach[:, -1] * px[:, step], qx[:, step]
        following = torch.where(target >= drafted, 1, target / drafted)  # a NaN stays one
        reach = torch.cat([reach, torch.where(drafted == 0, 0, following)[:, None]], 1)
    i = torch.arange(reach.shape[1], device=px.device)
    first = torch.where((reach == 1) & (i < length[:, None]), i, 0).amax(1)
    coin = torch.nn.functional.pad(accept, (1, 0)).gather(1, length[:, None])  # an empty draft is kept
    whole = (coin < reach.gather(1, length[:, None]))[:, 0]
    return reach, torch.where(whole, length, first), torch.where(whole, length, length - 1)


def longest_torch(left, reach, accept, first):
    """How many tokens the block rule keeps `(B,)`; `left` is Z of every row `(B, gamma + 1)`, 0 where it was not looked at."""
    i = torch.arange(left.shape[1], device=left.device)
    coin = torch.nn.functional.pad(accept, (1, 0))
    kept = (i > first[:, None]) & (coin * (left + (1 - reach)) < left)
    return torch.where(kept, i, first[:, None]).amax(1)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    strides = dict.fromkeys(("p_request", "p_row", "q_request", "q_row"), "i32")
    options = {"num_warps": 1}
    for probability, identifier, onehot in (("fp32", "i64", False), ("bf16", "i64", False), ("fp16", "i32", False), ("bf16", "i64", True)):
        q = "constexpr" if onehot else f"*{probability}"
        start = {"p": f"*{probability}", "q": q, "draft": f"*{identifier}", "lengths": "*i32", "accept": "*fp32"}
        sizes = {"gamma": "i32", "V": "i32", **strides, "RAGGED": "constexpr"}
        constants = {"RAGGED": True, "GAMMA": 8} | ({"q": None} if onehot else {})
        aligned = tuple(name for name in (*start, "V", *strides) if name not in constants)
        name = f"{probability}_{identifier}{'_onehot' * onehot}"
        signature = {**start, "accepted": f"*{identifier}", "lenience": "fp32", **sizes, "ONEHOT": "constexpr", "GAMMA": "constexpr"}
        yield Variant(f"accept_{name}", _accept, signature, {**constants, "ONEHOT": onehot}, options, (*aligned, "accepted"))
        if not onehot:
            signature = {**start, "reach": "*fp32", "span": "*i64", **sizes, "GAMMA": "constexpr"}
            yield Variant(f"reach_{name}", _reach, signature, constants, options, (*aligned, "reach", "span"))
