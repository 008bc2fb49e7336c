"""Verify drafted chains: keep of each draft what its coins allow, then draw one token by inverse CDF at the one row that needs it.

Three launches, no atomics, the same bits on every run:

1. `_accept` or `_reach` of `accept_chain.py`, one program per request: gather p(x) and q(x). The token rule finds its first refusal, the
   block rule every prefix's reach P and the rows that can matter.
2. `_mass`, one program per request, row and block of the vocabulary: the mass of [P p - q]_+, and of p, in its block. The token rule has
   one row, the one drawn from, and P = 1.
3. `_draw`, one program per request: the block rule tosses its coins, which need the masses of whole rows; then find the block where the
   cumulative mass of the row drawn from passes u times the total, read it again, find the token.

So every probability is read at most once, plus one block of the row drawn from; `bytes_read` counts. The token rule reads one row in full,
the others only at the drafted token; so does the block rule where it keeps the whole draft. Sums are in float32: each block of 2048 by
itself, then over the blocks in order. The PyTorch twin makes the same sums with the same blocks.
"""

from itertools import product

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.accept_chain import _accept, _length, _longest, _reach, accept_torch, at_draft_torch, longest_torch, reach_torch
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "bytes_read", "variants", "verify_chain"]

BLOCK = 2048


@triton.jit
def _weights(
    p, q, draft, b, row, v, scale, lenience, refused, gamma, V, p_request, p_row, q_request, q_row, ONEHOT: tl.constexpr
):  # fmt: skip
    """One block of [scale p - q]_+ and of p at this row, float32. On the bonus row q covers nothing; a NaN stays one."""
    end = tl.where(scale > 0, V, 0)  # nothing is left of a row that cannot be reached
    target = tl.load(p + b * p_request + row * p_row + v, mask=v < end, other=0.0).to(tl.float32)
    if ONEHOT:
        x = tl.load(draft + b * gamma + row, mask=refused, other=-1).to(tl.int64)
        covered = (v == x).to(tl.float32)
    else:
        covered = lenience * tl.load(q + b * q_request + row * q_row + v, mask=v < tl.where(refused, end, 0), other=0.0).to(tl.float32)
    left = scale * target - covered
    return tl.where(left <= 0, 0.0, left), tl.where(target <= 0, 0.0, target)


@triton.jit
def _mass(
    p, q, draft, lengths, accepted, reach, span, mass, lenience, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, ONEHOT: tl.constexpr, JOINT: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    b, r, block = program // (ROWS * BLOCKS), program // BLOCKS % ROWS, program % BLOCKS
    if JOINT:
        row, last = tl.load(span + 2 * b) + r, tl.load(span + 2 * b + 1)
    else:
        row = tl.load(accepted + b).to(tl.int64)
        last = row
    refused = row < _length(lengths, b, gamma, RAGGED)
    if row <= last:
        scale = _scale(reach, b, row, gamma, refused, JOINT)
        v = block * BLOCK + tl.arange(0, BLOCK)
        left, target = _weights(p, q, draft, b, row, v, scale, lenience, refused, gamma, V, p_request, p_row, q_request, q_row, ONEHOT)
        tl.store(mass + (2 * (b * ROWS + r)) * BLOCKS + block, tl.sum(left, axis=0))
        tl.store(mass + (2 * (b * ROWS + r) + 1) * BLOCKS + block, tl.sum(target, axis=0))


@triton.jit
def _scale(reach, b, row, gamma, refused, JOINT: tl.constexpr):
    """What the target's row is multiplied by: P under the block rule, 1 under the token rule and on the bonus row."""
    if JOINT:
        return tl.load(reach + b * gamma + row, mask=refused, other=1.0)
    return tl.full((), 1.0, tl.float32)


@triton.jit
def _first_past(goal, weights, before, indices, SIZE: tl.constexpr):
    """The first index where the cumulative weight passes the goal; the last of positive weight if rounding leaves none."""
    past = (goal < before + tl.cumsum(weights, axis=0)) & (weights > 0)
    first = tl.min(tl.where(past, indices, SIZE), axis=0)
    last = tl.max(tl.where(weights > 0, indices, 0), axis=0)
    return tl.where(first < SIZE, first, last)


@triton.jit
def _draw(
    p, q, draft, lengths, accept, accepted, token, reach, span, mass, out, lenience, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, ONEHOT: tl.constexpr, JOINT: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    if JOINT:
        row, sound = _longest(accept, reach, span, mass, b, gamma, ROWS, BLOCKS)
        tl.store(accepted + b, row.to(accepted.dtype.element_ty))
        masses_at = mass + 2 * (b * ROWS + row - tl.load(span + 2 * b)) * BLOCKS
    else:
        row, sound = tl.load(accepted + b).to(tl.int64), True
        masses_at = mass + 2 * b * BLOCKS
    blocks = tl.arange(0, BLOCKS)
    masses = tl.load(masses_at + blocks)  # (BLOCKS,)
    covered = tl.sum(masses, axis=0) == 0  # refused where nothing is left: rounding brought us here, so draw from p
    masses = tl.where(covered, tl.load(masses_at + BLOCKS + blocks), masses)
    total = tl.sum(masses, axis=0)
    goal = tl.load(token + b) * total
    block = _first_past(goal, masses, 0.0, blocks, BLOCKS)
    before = tl.sum(tl.where(blocks < block, masses, 0.0), axis=0)
    refused = row < _length(lengths, b, gamma, RAGGED)
    scale = _scale(reach, b, row, gamma, refused, JOINT)
    inner = tl.arange(0, BLOCK)
    v = block.to(tl.int64) * BLOCK + inner
    left, target = _weights(p, q, draft, b, row, v, scale, lenience, refused, gamma, V, p_request, p_row, q_request, q_row, ONEHOT)
    drawn = block.to(tl.int64) * BLOCK + _first_past(goal, tl.where(covered, target, left), before, inner, BLOCK)
    valid = sound & (total > 0) & (total < float("inf"))  # false for a NaN
    tl.store(out + b, tl.where(valid, drawn, -1).to(out.dtype.element_ty))


@torch.library.custom_op("twofold::verify_chain", mutates_args=())
def verify_chain(
    p: torch.Tensor, q: torch.Tensor | None, draft: torch.Tensor, lengths: torch.Tensor | None, accept: torch.Tensor, token: torch.Tensor,
    lenience: float, joint: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """p (B, gamma + 1, V), q (B, gamma, V) or None for one-hot rows, draft (B, gamma), lengths (B,), uniforms (B, gamma) and (B,).

    `joint` is the block rule, for rows of q and lenience 1.
    """
    if backend.triton(p):
        return _verify_triton(p, q, draft.contiguous(), lengths, accept.contiguous(), token.contiguous(), lenience, joint)
    return _verify_torch(p, q, draft, lengths, accept, token, lenience, joint)


@verify_chain.register_fake
def _(p, q, draft, lengths, accept, token, lenience, joint=False):
    return draft.new_empty(draft.shape[0]), draft.new_empty(draft.shape[0])


def _verify_triton(p, q, draft, lengths, accept, token, lenience, joint):
    (B, gamma), V = draft.shape, p.shape[2]
    accepted, out = draft.new_empty(B), draft.new_empty(B)
    if not B:
        return accepted, out
    blocks, size = triton.next_power_of_2(triton.cdiv(V, BLOCK)), triton.next_power_of_2(max(gamma, 1))
    rows = size if joint else 1
    reach = torch.empty(B, gamma, device=p.device) if joint else None
    span = torch.empty(B, 2, dtype=torch.int64, device=p.device) if joint else None
    mass = torch.empty(B, rows, 2, blocks, device=p.device)
    lengths = lengths if lengths is None else lengths.contiguous()
    strides = p.stride(0), p.stride(1), *((0, 0) if q is None else (q.stride(0), q.stride(1)))
    sizes, flags = (gamma, V, *strides), {"RAGGED": lengths is not None}
    if joint:
        _reach[(B,)](p, q, draft, lengths, accept, reach, span, *sizes, **flags, GAMMA=size, num_warps=1)
    else:
        _accept[(B,)](p, q, draft, lengths, accept, accepted, lenience, *sizes, **flags, ONEHOT=q is None, GAMMA=size, num_warps=1)
    flags |= {"ONEHOT": q is None, "JOINT": joint, "ROWS": rows, "BLOCKS": blocks, "BLOCK": BLOCK, "num_warps": 4}
    _mass[(B * rows * blocks,)](p, q, draft, lengths, accepted, reach, span, mass, lenience, *sizes, **flags)
    _draw[(B,)](p, q, draft, lengths, accept, accepted, token, reach, span, mass, out, lenience, *sizes, **flags)
    return accepted, out


def _verify_torch(p, q, draft, lengths, accept, token, lenience, joint):
    (B, gamma), V = draft.shape, p.shape[2]
    px, qx, length = at_draft_torch(p, q, draft, lengths, lenience)
    here, scale, sound = torch.arange(B, device=p.device), 1.0, True
    if joint:
        reach, first, last = reach_torch(px, qx, accept, length)
        left = _left_torch(p, q, reach, first, last, length)  # (B, gamma + 1)
        accepted, sound = longest_torch(left, reach, accept, first), (left < float("inf")).all(1)
        scale = torch.where(accepted < length, reach[here, accepted], 1)[:, None]
    else:
        accepted = accept_torch(px, qx, accept)  # (B,)
    refused = (accepted < length)[:, None]
    target = p[here, accepted].float()  # (B, V)
    if gamma == 0:
        covered = torch.zeros_like(target)
    elif q is None:
        covered = torch.arange(V, device=p.device) == draft.long()[here, accepted.clamp(max=gamma - 1)][:, None]
    else:
        covered = lenience * q[here, accepted.clamp(max=gamma - 1)].float()
    left = scale * target - torch.where(refused, covered, 0)
    left, target = (torch.where(w <= 0, 0, w) for w in (left, target))  # a NaN stays one
    weights = _blocks(torch.where(left.sum(1, keepdim=True) == 0, target, left))  # (B, blocks, block)
    masses = weights.sum(2)
    total = masses.sum(1)
    goal = (token * total)[:, None]
    chosen = _first_past_torch(goal, masses)  # (B,)
    before = torch.where(torch.arange(masses.shape[1], device=p.device) < chosen[:, None], masses, 0).sum(1, keepdim=True)
    drawn = chosen * weights.shape[2] + _first_past_torch(goal, weights[here, chosen], before)
    valid = sound & (total > 0) & (total < float("inf"))
    return accepted.to(draft.dtype), torch.where(valid, drawn, -1).to(draft.dtype)


def _left_torch(p, q, reach, first, last, length):
    """Z, the mass of [P p - q]_+, of each row from the first to the last that can matter, 0 elsewhere `(B, gamma + 1)`."""
    i = torch.arange(reach.shape[1], device=p.device)
    looked_at = (i >= first[:, None]) & (i <= last[:, None]) & (i < length[:, None]) & (reach != 0)  # a NaN is looked at
    b, row = looked_at.nonzero(as_tuple=True)
    left = torch.zeros_like(reach)
    if len(b):
        left[b, row] = _blocks((reach[b, row, None] * p[b, row].float() - q[b, row].float()).clamp_min_(0)).sum(2).sum(1)
    return left


def _blocks(rows):
    """Rows `(…, V)` in blocks of the vocabulary `(…, blocks, block)`, the last filled up with zeros."""
    block = min(BLOCK, rows.shape[1])
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % block)).unflatten(1, (-1, block))


def _first_past_torch(goal, weights, before=0.0):
    indices = torch.arange(weights.shape[1], device=weights.device)
    past = (goal < before + weights.cumsum(1)) & (weights > 0)
    first = torch.where(past, indices, weights.shape[1]).amin(1)
    last = torch.where(weights > 0, indices, 0).amax(1)
    return torch.where(first < weights.shape[1], first, last)


def bytes_read(V, itemsize, gamma, rows=1, refused=True, onehot=False):
    """How many bytes of p and q one request reads: the drafted tokens', `rows` rows in full, and one block of the row drawn from again.

    The token rule draws from one row. The block rule looks at one row where it keeps the whole draft, else at gamma at most: those from the
    last prefix of reach 1 on whose reach is not 0. `refused` is false where the whole draft is kept; q has no row there.

    >>> bytes_read(2048 * 64, 2, gamma=7)                                  # bfloat16, a row of p and a row of q
    532508
    >>> bytes_read(2048 * 64, 2, gamma=7, rows=7) / bytes_read(2048 * 64, 2, gamma=7) > 6
    True
    """
    sides = 2 if refused and not onehot else 1
    return itemsize * (gamma * (1 if onehot else 2) + sides * (rows * V + min(BLOCK, V)))


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    names = ("p_request", "p_row", "q_request", "q_row")
    last = {"lenience": "fp32", "gamma": "i32", "V": "i32", **dict.fromkeys(names, "i32")}
    last |= dict.fromkeys(("RAGGED", "ONEHOT", "JOINT", "ROWS", "BLOCKS", "BLOCK"), "constexpr")
    types = ("fp32", "i64"), ("bf16", "i64"), ("fp16", "i32")
    for (probability, identifier), rule in [*product(types, ("token", "joint")), (("bf16", "i64"), "onehot")]:
        joint = rule == "joint"
        absent = (() if joint else ("reach", "span")) + (("q",) if rule == "onehot" else ())
        constants = {"RAGGED": True, "ONEHOT": rule == "onehot", "JOINT": joint, "ROWS": 8 if joint else 1, "BLOCK": BLOCK}
        start = {"p": f"*{probability}", "q": f"*{probability}", "draft": f"*{identifier}", "lengths": "*i32"}
        state = {"reach": "*fp32", "span": "*i64", "mass": "*fp32"}
        for blocks in (1, 128):  # the extremes: a vocabulary of one block, and of 262,144
            middle = {"mass": {"accepted": f"*{identifier}", **state}}
            middle["draw"] = {"accept": "*fp32", "accepted": f"*{identifier}", "token": "*fp32", **state, "out": f"*{identifier}"}
            for kernel in (_mass, _draw):
                name = kernel.__name__.lstrip("_")
                signature = {**start, **middle[name], **last} | dict.fromkeys(absent, "constexpr")
                aligned = tuple(x for x in (*start, *middle[name], "V", *names) if x not in absent)
                chosen = {**constants, "BLOCKS": blocks, **dict.fromkeys(absent)}
                yield Variant(f"{name}_{probability}_{identifier}_{rule}_{blocks}", kernel, signature, chosen, {"num_warps": 4}, aligned)
