"""Walk down a token tree from its root, choosing a child at every node, and draw the token that leaves the tree.

Three ways to choose, one kernel (`MATCH`, `REPLACE`, `WITHOUT`): draw from the target's row and look for a child with that token; or try
the children one by one by recursive rejection, drawn with or without replacement. One program per request walks; it reads rows of p and
q at visited nodes only, in blocks of 2048, and of the other nodes nothing.

After j refusals at a node the law still owed is the residual of a residual, but it needs no row of its own. All children there come from
one q, and a draft law q without the tokens tried differs from q by a factor Q and on tokens that have no residual any more, so that

    [[p - a q]_+ - b q]_+ = [p - (a + b) q]_+    and the residual is    [p - S q]_+,    S' = S + W / Q,

with W the mass of the residual before and Q that of q on what was not tried (1 with replacement). A state of three numbers, then: S, W, Q.
They start as 0, 1, 1, whatever rounding left of the rows' own sums, so the first child costs two numbers, and each refusal one pass over
both rows. A child is kept iff `u q(x) W < [p(x) - S q(x)]_+ Q`, without a division.

A child is a node of higher id than its parent. A child whose token q cannot have drawn (outside the vocabulary, probability 0, or, without
replacement, tried before) is passed over as if it were not there. A NaN refuses all that it meets, and then the token is -1.
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend
from twofold.fast.kernels.variant import Variant
from twofold.fast.kernels.verify_chain import BLOCK, _first_past, _first_past_torch

__all__ = ["MATCH", "REPLACE", "WITHOUT", "variants", "walk_tree"]

MATCH, REPLACE, WITHOUT = 0, 1, 2
_MATCH, _REPLACE, _WITHOUT = tl.constexpr(MATCH), tl.constexpr(REPLACE), tl.constexpr(WITHOUT)


@triton.jit
def _residual(p_row, q_row, start, S, V, MODE: tl.constexpr, BLOCK: tl.constexpr):
    """The block of [p - S q]_+ that begins at start, float32, and of q where it was read: not while S is 0. A NaN stays one."""
    inner = tl.arange(0, BLOCK)
    size = tl.minimum(V - start, BLOCK)
    left = tl.load(p_row + start + inner, mask=inner < size, other=0.0).to(tl.float32)
    q = tl.zeros_like(left)
    if MODE != _MATCH:
        q = tl.load(q_row + start + inner, mask=inner < tl.where(S == 0, 0, size), other=0.0).to(tl.float32)
        left -= S * q
    return tl.where(left <= 0, 0.0, left), q


@triton.jit
def _masses(p_row, q_row, x, tried, S, V, MODE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of the residual in each block of the vocabulary `(BLOCKS,)`, and that of q on the tokens x that were not tried."""
    blocks, inner = tl.arange(0, BLOCKS), tl.arange(0, BLOCK)
    masses, rest = tl.zeros((BLOCKS,), tl.float32), tl.cast(0.0, tl.float32)
    for start in range(0, V, BLOCK):
        left, q = _residual(p_row, q_row, start, S, V, MODE, BLOCK)
        masses = tl.where(blocks * BLOCK == start, tl.sum(left, axis=0), masses)
        if MODE == _WITHOUT:
            last = tl.max(tl.where(tried & (x < start + BLOCK), x, -1), axis=0)
            while last >= start:  # take the tried tokens out of this block, one by one
                q = tl.where(inner == last - start, 0.0, q)
                last = tl.max(tl.where(tried & (x < last), x, -1), axis=0)
            rest += tl.sum(q, axis=0)
    return masses, rest


@triton.jit
def _draw(p_row, q_row, u, masses, S, V, MODE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """The token where the cumulative residual passes u times the total, -1 where it has no mass or no number."""
    blocks = tl.arange(0, BLOCKS)
    total = tl.sum(masses, axis=0)
    goal = u * total
    block = _first_past(goal, masses, 0.0, blocks, BLOCKS)
    before = tl.sum(tl.where(blocks < block, masses, 0.0), axis=0)
    start = (block.to(tl.int64) * BLOCK).to(tl.int32)
    left, _ = _residual(p_row, q_row, start, S, V, MODE, BLOCK)
    drawn = start + _first_past(goal, left, before, tl.arange(0, BLOCK), BLOCK)
    return tl.where((total > 0) & (total < float("inf")), drawn, -1)  # false for a NaN


@triton.jit
def _try_children(
    p_row, q_row, accept, used, x, child, V, MODE: tl.constexpr, NODES: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The child that is kept (NODES: none), the coins used so far, and the residual: its scale S and its masses `(BLOCKS,)`."""
    ids = tl.arange(0, NODES)
    S, W, Q = tl.cast(0.0, tl.float32), tl.cast(1.0, tl.float32), tl.cast(1.0, tl.float32)
    masses, held = tl.zeros((BLOCKS,), tl.float32), tl.cast(-1.0, tl.float32)  # held: the scale that the masses stand for
    tried = ids < 0
    kept = tl.cast(NODES, tl.int32)
    this = tl.min(tl.where(child, ids, NODES), axis=0)
    while this < NODES:
        token = tl.sum(tl.where(ids == this, x, 0), axis=0)
        px = tl.load(p_row + token, mask=token >= 0, other=0.0).to(tl.float32)
        qx = tl.load(q_row + token, mask=token >= 0, other=0.0).to(tl.float32)
        drawn = (token >= 0) & (qx != 0)
        if MODE == _WITHOUT:
            drawn &= tl.sum((tried & (x == token)).to(tl.int32), axis=0) == 0
        after = tl.min(tl.where(child & (ids > this), ids, NODES), axis=0)
        if drawn:
            u = tl.load(accept + used)
            used += 1
            if u * qx * W < (px - S * qx) * Q:
                kept = this
                after = tl.cast(NODES, tl.int32)
            else:
                tried |= ids == this
                held = S + W / Q
                masses, rest = _masses(p_row, q_row, x, tried, held, V, MODE, BLOCKS, BLOCK)
                mass = tl.sum(masses, axis=0)
                if mass != 0:  # else nothing is left, rounding brought us here: the law still owed stays what it was
                    S = held
                    W = mass
                if MODE == _WITHOUT:
                    Q = rest
        this = after
    if (kept == NODES) & (held != S):
        masses, _ = _masses(p_row, q_row, x, tried, S, V, _REPLACE, BLOCKS, BLOCK)
    return kept, used, S, masses


@triton.jit
def _walk(
    p, q, tokens, parents, lengths, accept, token, path, out, N, V, coins, draws, p_request, p_row, q_request, q_row,
    MODE: tl.constexpr, RAGGED: tl.constexpr, NODES: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, NODES)
    length = tl.cast(N, tl.int64)  # Triton makes an N of 1 a constant
    if RAGGED:
        length = tl.minimum(tl.maximum(tl.load(lengths + b).to(tl.int64), 1), length)
    inside = (ids > 0) & (ids < length)
    parent = tl.load(parents + b * N + ids, mask=inside, other=-1)
    parent = tl.where((parent >= 0) & (parent < ids), parent, -1).to(tl.int32)  # (NODES,)
    x = tl.load(tokens + b * N + ids, mask=inside, other=-1)
    x = tl.where((x >= 0) & (x < V), x, -1).to(tl.int32)  # (NODES,)
    node, depth, used, drawn = tl.cast(0, tl.int32), tl.cast(0, tl.int32), tl.cast(0, tl.int32), tl.cast(-1, tl.int32)
    while node < NODES:
        target = p + b * p_request + node.to(tl.int64) * p_row
        child = parent == node
        if MODE == _MATCH:
            masses, _ = _masses(target, q, x, child, 0.0, V, MODE, BLOCKS, BLOCK)
            drawn = _draw(target, q, tl.load(token + b * draws + depth), masses, 0.0, V, MODE, BLOCKS, BLOCK)
            kept = tl.min(tl.where(child & (x == drawn) & (drawn >= 0), ids, NODES), axis=0)
        else:
            draft = q + b * q_request + node.to(tl.int64) * q_row
            kept, used, S, masses = _try_children(target, draft, accept + b * coins, used, x, child, V, MODE, NODES, BLOCKS, BLOCK)
            if kept == NODES:
                drawn = _draw(target, draft, tl.load(token + b * draws), masses, S, V, MODE, BLOCKS, BLOCK)
        if kept < NODES:
            tl.store(path + b * (N - 1) + depth, kept.to(path.dtype.element_ty))
            depth += 1
        node = kept
    tl.store(out + b, drawn.to(out.dtype.element_ty))


@torch.library.custom_op("twofold::walk_tree", mutates_args=())
def walk_tree(
    p: torch.Tensor, q: torch.Tensor | None, tokens: torch.Tensor, parents: torch.Tensor, lengths: torch.Tensor | None,
    accept: torch.Tensor, token: torch.Tensor, mode: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """p, q (B, N, V), tokens, parents (B, N), lengths (B,); MATCH: q None, accept (B, 0), token (B, N), else (B, N - 1), (B, 1)."""
    if backend.triton(p):
        return _walk_triton(p, q, tokens, parents, lengths, accept, token, mode)
    return _walk_torch(p, q, tokens, parents, lengths, accept, token, mode)


@walk_tree.register_fake
def _(p, q, tokens, parents, lengths, accept, token, mode):
    B, N = tokens.shape
    return tokens.new_empty(B, N - 1), tokens.new_empty(B)


def _walk_triton(p, q, tokens, parents, lengths, accept, token, mode):
    (B, N), V = tokens.shape, p.shape[2]
    path, out = tokens.new_full((B, N - 1), -1), tokens.new_empty(B)
    if not B:
        return path, out
    tokens, parents, accept, token = (each.contiguous() for each in (tokens, parents, accept, token))
    lengths = lengths if lengths is None else lengths.contiguous()
    strides = p.stride(0), p.stride(1), *((0, 0) if q is None else (q.stride(0), q.stride(1)))
    flags = {"MODE": mode, "RAGGED": lengths is not None, "NODES": triton.next_power_of_2(N)}
    blocks = triton.next_power_of_2(triton.cdiv(V, BLOCK))
    arguments = p, q, tokens, parents, lengths, accept, token, path, out, N, V, accept.shape[1], token.shape[1]
    _walk[(B,)](*arguments, *strides, **flags, BLOCKS=blocks, BLOCK=BLOCK, num_warps=16)
    return path, out


def _walk_torch(p, q, tokens, parents, lengths, accept, token, mode):
    (B, N), ids = tokens.shape, torch.arange(tokens.shape[1], device=p.device)
    length = torch.full((B,), N, device=p.device) if lengths is None else lengths.long().clamp(1, N)
    inside = (ids > parents) & (ids < length[:, None])
    x, parent = (torch.where(inside, each.long(), -1) for each in (tokens, parents))  # (B, N)
    path, out = tokens.new_full((B, N - 1), -1), tokens.new_full((B,), -1)
    rows = torch.arange(B, device=p.device)  # the requests that still walk
    node, used = torch.zeros_like(rows), torch.zeros_like(rows)
    for depth in range(N):
        child = parent[rows] == node[:, None]  # (rows, N)
        if mode == MATCH:
            drawn = _draw_torch(p[rows, node].float(), token[rows, depth])
            out[rows] = drawn.to(out.dtype)
            kept = torch.where(child & (x[rows] == drawn[:, None]) & (drawn >= 0)[:, None], ids, N).amin(1)
        else:
            kept, used, S = _try_children_torch(p, q, accept, used, x[rows], child, rows, node, mode)
            end = (kept == N).nonzero()[:, 0]
            left = _residual_torch(p, q, rows[end], node[end], S[end])[0]
            out[rows[end]] = _draw_torch(left, token[rows[end], 0]).to(out.dtype)
        on = kept < N
        if not on.any():
            break
        rows, node, used = rows[on], kept[on], used[on]
        path[rows, depth] = node.to(path.dtype)
    return path, out


def _try_children_torch(p, q, accept, used, x, child, rows, node, mode):
    """For each row: the child that is kept (N: none), the coins used so far, and the scale S of the residual."""
    ids, (N, V) = torch.arange(x.shape[1], device=x.device), p.shape[1:]
    S, W, Q = torch.zeros(len(rows), device=p.device), torch.ones(len(rows), device=p.device), torch.ones(len(rows), device=p.device)
    tried, kept = torch.zeros_like(child), torch.full_like(rows, N)
    while child.any():  # the next child of every row at once
        this = torch.where(child, ids, N).amin(1)
        token = torch.where(ids == this[:, None], x, -1).amax(1)
        known = (token >= 0) & (token < V)
        at = torch.where(known, token, 0)
        px, qx = p[rows, node, at].float(), q[rows, node, at].float()
        drawn = known & (qx != 0)
        if mode == WITHOUT:
            drawn &= ~(tried & (x == token[:, None])).any(1)
        u = accept[rows, used.clamp(max=N - 2)]
        used = used + drawn.long()
        keeps = drawn & (u * qx * W < (px - S * qx) * Q)
        kept = torch.where(keeps, this, kept)
        child = child & (ids > this[:, None]) & ~keeps[:, None]
        refused = (drawn & ~keeps).nonzero()[:, 0]
        if not len(refused):
            continue
        tried[refused, this[refused]] = True
        scale = S[refused] + W[refused] / Q[refused]
        left, draft = _residual_torch(p, q, rows[refused], node[refused], scale)
        mass = _in_blocks(left).sum(2).sum(1)
        some = mass != 0  # else nothing is left, rounding brought us here: the law still owed stays what it was
        S[refused], W[refused] = torch.where(some, scale, S[refused]), torch.where(some, mass, W[refused])
        if mode == WITHOUT:
            gone = torch.where(tried[refused], x[refused], token[refused, None])  # (refused, N)
            Q[refused] = _in_blocks(draft.scatter(1, gone, 0)).sum(2).sum(1)
    return kept, used, S


def _residual_torch(p, q, rows, node, S):
    """[p - S q]_+ and q `(rows, V)`, float32; where S is 0, q is not read. A NaN stays one."""
    target, draft = p[rows, node].float(), q[rows, node].float()
    left = target - torch.where((S == 0)[:, None], 0, S[:, None] * draft)
    return torch.where(left <= 0, 0, left), draft


def _in_blocks(weights):
    block = min(BLOCK, weights.shape[1])
    return torch.nn.functional.pad(weights, (0, -weights.shape[1] % block)).unflatten(1, (-1, block))  # (rows, blocks, block)


def _draw_torch(weights, u):
    """The token of each row where its cumulative weight passes u times the total, -1 where it has no mass or no number."""
    weights = _in_blocks(torch.where(weights <= 0, 0, weights))
    masses = weights.sum(2)
    total = masses.sum(1)
    goal = (u * total)[:, None]
    chosen = _first_past_torch(goal, masses)  # (rows,)
    before = torch.where(torch.arange(masses.shape[1], device=u.device) < chosen[:, None], masses, 0).sum(1, keepdim=True)
    inner = weights[torch.arange(len(u), device=u.device), chosen]
    drawn = chosen * weights.shape[2] + _first_past_torch(goal, inner, before)
    return torch.where((total > 0) & (total < float("inf")), drawn, -1)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    strides = dict.fromkeys(("p_request", "p_row", "q_request", "q_row"), "i32")
    for name, mode, probability, identifier in (
        ("match_bf16", MATCH, "bf16", "i64"), ("replace_fp32", REPLACE, "fp32", "i64"), ("replace_bf16", REPLACE, "bf16", "i64"),
        ("without_bf16", WITHOUT, "bf16", "i64"), ("without_fp16", WITHOUT, "fp16", "i32"),
    ):  # fmt: skip
        q = "constexpr" if mode == MATCH else f"*{probability}"
        signature = {"p": f"*{probability}", "q": q, "tokens": f"*{identifier}", "parents": f"*{identifier}", "lengths": "*i32"}
        signature |= {"accept": "*fp32", "token": "*fp32", "path": f"*{identifier}", "out": f"*{identifier}"}
        signature |= {"N": "i32", "V": "i32", "coins": "i32", "draws": "i32", **strides}
        constants = {"MODE": mode, "RAGGED": True, "NODES": 64, "BLOCKS": 64, "BLOCK": BLOCK}
        signature |= dict.fromkeys(constants, "constexpr")
        aligned = ("p", "tokens", "parents", "lengths", "accept", "token", "path", "out", "V", *strides) + (() if mode == MATCH else ("q",))
        yield Variant(name, _walk, signature, constants | ({"q": None} if mode == MATCH else {}), {"num_warps": 16}, aligned)
