"""Verify drafted chains: keep each draft as far as its coins allow, then draw one token by inverse CDF at the one row that needs it.

Three launches, no atomics, the same bits on every run:

1. `_accept`, one program per request: gather p(x) and q(x), compare `u q(x) < p(x)` (no division), find the first refusal.
2. `_mass`, one program per request and block of the vocabulary: the mass of the residual, and of p, in its block of the row drawn from.
3. `_draw`, one program per request: find the block where the cumulative mass passes u times the total, read it again, find the token.

So of p and q only one row per request is read in full, once, plus one block of it; the other rows only at the drafted token. Sums are in
float32: each block of 2048 by itself, then over the blocks in order. The PyTorch twin makes the same sums with the same blocks.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant

__all__ = ["BLOCK", "variants", "verify_chain"]

BLOCK = 2048


@triton.jit
def _accept(
    p, q, draft, lengths, accept, accepted, lenience, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, ONEHOT: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, GAMMA).to(tl.int64)
    length = _length(lengths, b, gamma, RAGGED)
    inside = i < length
    x = tl.load(draft + b * gamma + i, mask=inside, other=-1).to(tl.int64)
    u = tl.load(accept + b * gamma + i, mask=inside, other=0.0)
    known = inside & (x >= 0) & (x < V)
    px = tl.load(p + b * p_request + i * p_row + x, mask=known, other=0.0).to(tl.float32)
    if ONEHOT:
        qx = tl.full((GAMMA,), 1.0, tl.float32)
    else:
        qx = lenience * tl.load(q + b * q_request + i * q_row + x, mask=known, other=0.0).to(tl.float32)
    kept = known & (qx > 0) & (u * qx < px)  # what q cannot have drawn is refused, and so is a NaN
    refused = tl.min(tl.where(kept, GAMMA, i), axis=0)  # at most the length: what lies beyond is never kept
    tl.store(accepted + b, refused.to(accepted.dtype.element_ty))


@triton.jit
def _length(lengths, b, gamma, RAGGED: tl.constexpr):
    length = tl.cast(gamma, tl.int64)  # Triton makes a gamma of 1 a constant
    if RAGGED:
        length = tl.minimum(tl.maximum(tl.load(lengths + b).to(tl.int64), 0), length)
    return length


@triton.jit
def _weights(
    p, q, draft, b, row, v, lenience, refused, gamma, V, p_request, p_row, q_request, q_row, ONEHOT: tl.constexpr
):  # fmt: skip
    """One block of [p - q]_+ and of p at this row, float32. On the bonus row q covers nothing; a NaN stays one."""
    inside = v < V
    target = tl.load(p + b * p_request + row * p_row + v, mask=inside, other=0.0).to(tl.float32)
    if ONEHOT:
        x = tl.load(draft + b * gamma + row, mask=refused, other=-1).to(tl.int64)
        covered = (v == x).to(tl.float32)
    else:
        covered = lenience * tl.load(q + b * q_request + row * q_row + v, mask=v < tl.where(refused, V, 0), other=0.0).to(tl.float32)
    left = target - covered
    return tl.where(left <= 0, 0.0, left), tl.where(target <= 0, 0.0, target)


@triton.jit
def _mass(
    p, q, draft, lengths, accepted, mass, lenience, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, ONEHOT: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, block = tl.program_id(0).to(tl.int64) // BLOCKS, tl.program_id(0) % BLOCKS
    row = tl.load(accepted + b).to(tl.int64)
    refused = row < _length(lengths, b, gamma, RAGGED)
    v = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    left, target = _weights(p, q, draft, b, row, v, lenience, refused, gamma, V, p_request, p_row, q_request, q_row, ONEHOT)
    tl.store(mass + (2 * b) * BLOCKS + block, tl.sum(left, axis=0))
    tl.store(mass + (2 * b + 1) * BLOCKS + block, tl.sum(target, axis=0))


@triton.jit
def _first_past(goal, weights, before, indices, SIZE: tl.constexpr):
    """The first index where the cumulative weight passes the goal; the last of positive weight if rounding leaves none."""
    past = (goal < before + tl.cumsum(weights, axis=0)) & (weights > 0)
    first = tl.min(tl.where(past, indices, SIZE), axis=0)
    last = tl.max(tl.where(weights > 0, indices, 0), axis=0)
    return tl.where(first < SIZE, first, last)


@triton.jit
def _draw(
    p, q, draft, lengths, accepted, token, mass, out, lenience, gamma, V, p_request, p_row, q_request, q_row,
    RAGGED: tl.constexpr, ONEHOT: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    masses = tl.load(mass + (2 * b) * BLOCKS + blocks)  # (BLOCKS,)
    covered = tl.sum(masses, axis=0) == 0  # refused where nothing is left: rounding brought us here, so draw from p
    masses = tl.where(covered, tl.load(mass + (2 * b + 1) * BLOCKS + blocks), masses)
    total = tl.sum(masses, axis=0)
    goal = tl.load(token + b) * total
    block = _first_past(goal, masses, 0.0, blocks, BLOCKS)
    before = tl.sum(tl.where(blocks < block, masses, 0.0), axis=0)
    row = tl.load(accepted + b).to(tl.int64)
    refused = row < _length(lengths, b, gamma, RAGGED)
    inner = tl.arange(0, BLOCK)
    v = block.to(tl.int64) * BLOCK + inner
    left, target = _weights(p, q, draft, b, row, v, lenience, refused, gamma, V, p_request, p_row, q_request, q_row, ONEHOT)
    drawn = block.to(tl.int64) * BLOCK + _first_past(goal, tl.where(covered, target, left), before, inner, BLOCK)
    valid = (total > 0) & (total < float("inf"))  # false for a NaN
    tl.store(out + b, tl.where(valid, drawn, -1).to(out.dtype.element_ty))


@torch.library.custom_op("twofold::verify_chain", mutates_args=())
def verify_chain(
    p: torch.Tensor, q: torch.Tensor | None, draft: torch.Tensor, lengths: torch.Tensor | None, accept: torch.Tensor, token: torch.Tensor,
    lenience: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """p (B, gamma + 1, V), q (B, gamma, V) or None for one-hot rows, draft (B, gamma), lengths (B,), uniforms (B, gamma) and (B,)."""
    if backend.triton(p):
        return _verify_triton(p, q, draft.contiguous(), lengths, accept.contiguous(), token.contiguous(), lenience)
    return _verify_torch(p, q, draft, lengths, accept, token, lenience)


@verify_chain.register_fake
def _(p, q, draft, lengths, accept, token, lenience):
    return draft.new_empty(draft.shape[0]), draft.new_empty(draft.shape[0])


def _verify_triton(p, q, draft, lengths, accept, token, lenience):
    (B, gamma), V = draft.shape, p.shape[2]
    accepted, out = draft.new_empty(B), draft.new_empty(B)
    if not B:
        return accepted, out
    blocks = triton.next_power_of_2(triton.cdiv(V, BLOCK))
    mass = torch.empty(B, 2, blocks, device=p.device)
    lengths = lengths if lengths is None else lengths.contiguous()
    strides = p.stride(0), p.stride(1), *((0, 0) if q is None else (q.stride(0), q.stride(1)))
    flags = {"RAGGED": lengths is not None, "ONEHOT": q is None}
    sizes = lenience, gamma, V
    size = triton.next_power_of_2(max(gamma, 1))
    _accept[(B,)](p, q, draft, lengths, accept, accepted, *sizes, *strides, **flags, GAMMA=size, num_warps=1)
    flags |= {"BLOCKS": blocks, "BLOCK": BLOCK}
    _mass[(B * blocks,)](p, q, draft, lengths, accepted, mass, *sizes, *strides, **flags, num_warps=4)
    _draw[(B,)](p, q, draft, lengths, accepted, token, mass, out, *sizes, *strides, **flags, num_warps=4)
    return accepted, out


def _verify_torch(p, q, draft, lengths, accept, token, lenience):
    (B, gamma), V = draft.shape, p.shape[2]
    x, rows = draft.long(), torch.arange(gamma, device=p.device)
    length = torch.full((B,), gamma, device=p.device) if lengths is None else lengths.long().clamp(0, gamma)  # (B,)
    known = (rows < length[:, None]) & (x >= 0) & (x < V)  # (B, gamma)
    at = torch.where(known, x, 0)[:, :, None]
    px = p[:, :gamma].gather(2, at)[:, :, 0].float()
    qx = torch.ones_like(px) if q is None else lenience * q.gather(2, at)[:, :, 0].float()
    kept = known & (qx > 0) & (accept * qx < px)  # what q cannot have drawn is refused, and so is a NaN
    accepted = kept.long().cumprod(1).sum(1)  # (B,)
    refused = (accepted < length)[:, None]
    here = torch.arange(B, device=p.device)
    target = p[here, accepted].float()  # (B, V)
    if gamma == 0:
        covered = torch.zeros_like(target)
    elif q is None:
        covered = torch.arange(V, device=p.device) == x[here, accepted.clamp(max=gamma - 1)][:, None]
    else:
        covered = lenience * q[here, accepted.clamp(max=gamma - 1)].float()
    left = target - torch.where(refused, covered, 0)
    left, target = (torch.where(w <= 0, 0, w) for w in (left, target))  # a NaN stays one
    block = min(BLOCK, V)
    weights = torch.where(left.sum(1, keepdim=True) == 0, target, left)
    weights = torch.nn.functional.pad(weights, (0, -V % block)).unflatten(1, (-1, block))  # (B, blocks, block)
    masses = weights.sum(2)
    total = masses.sum(1)
    goal = (token * total)[:, None]
    chosen = _first_past_torch(goal, masses)  # (B,)
    before = torch.where(torch.arange(masses.shape[1], device=p.device) < chosen[:, None], masses, 0).sum(1, keepdim=True)
    drawn = chosen * block + _first_past_torch(goal, weights[here, chosen], before)
    valid = (total > 0) & (total < float("inf"))
    return accepted.to(draft.dtype), torch.where(valid, drawn, -1).to(draft.dtype)


def _first_past_torch(goal, weights, before=0.0):
    indices = torch.arange(weights.shape[1], device=weights.device)
    past = (goal < before + weights.cumsum(1)) & (weights > 0)
    first = torch.where(past, indices, weights.shape[1]).amin(1)
    last = torch.where(weights > 0, indices, 0).amax(1)
    return torch.where(first < weights.shape[1], first, last)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    strides = dict.fromkeys(("p_request", "p_row", "q_request", "q_row"), "i32")
    for probability, identifier, onehot in (("fp32", "i64", False), ("bf16", "i64", False), ("fp16", "i32", False), ("bf16", "i64", True)):
        q = "constexpr" if onehot else f"*{probability}"
        start = {"p": f"*{probability}", "q": q, "draft": f"*{identifier}", "lengths": "*i32"}
        sizes = {"lenience": "fp32", "gamma": "i32", "V": "i32", **strides}
        flags = {"RAGGED": "constexpr", "ONEHOT": "constexpr"}
        constants = {"RAGGED": True, "ONEHOT": onehot} | ({"q": None} if onehot else {})
        aligned = ("p", "draft", "lengths", "accept", "accepted", "token", "mass", "out", "V", *strides) + (() if onehot else ("q",))
        name = f"{probability}_{identifier}{'_onehot' * onehot}"
        signature = {**start, "accept": "*fp32", "accepted": f"*{identifier}", **sizes, **flags, "GAMMA": "constexpr"}
        yield Variant(f"accept_{name}", _accept, signature, {**constants, "GAMMA": 8}, {"num_warps": 1}, _present(aligned, signature))
        for blocks in (1, 128):  # the extremes: a vocabulary of one block, and of 262,144
            chosen = {**constants, "BLOCKS": blocks, "BLOCK": BLOCK}
            last = {**sizes, **flags, "BLOCKS": "constexpr", "BLOCK": "constexpr"}
            signature = {**start, "accepted": f"*{identifier}", "mass": "*fp32", **last}
            yield Variant(f"mass_{name}_{blocks}", _mass, signature, chosen, {"num_warps": 4}, _present(aligned, signature))
            signature = {**start, "accepted": f"*{identifier}", "token": "*fp32", "mass": "*fp32", "out": f"*{identifier}", **last}
            yield Variant(f"draw_{name}_{blocks}", _draw, signature, chosen, {"num_warps": 4}, _present(aligned, signature))


def _present(names, signature):
    return tuple(name for name in names if name in signature)
