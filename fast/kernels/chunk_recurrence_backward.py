"""The gradients of `chunk_recurrence`, of its plain queries and of ones that read before the update (`chunk_erasure`)."""

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.chunk_recurrence import SUB, Run, _exponents, _met_last, _others, _tile, _within, variants_of

__all__ = ["backward", "gradients", "variants"]

BK = 32


def blocks(itemsize: int, early: bool, reverse: bool) -> tuple[int, int, int]:
    """Tile of K, tile of V and warps."""
    return BK, 16 if early and itemsize == 4 else 32, 4 if early and itemsize == 2 and not reverse else 8


@triton.jit
def gradients_kernel(
    x, y, z, w, g, o, dg, states, dstates, chunks,
    x_b, x_t, x_h, y_b, y_t, y_h, z_b, z_t, z_h, w_b, w_t, w_h, g_b, g_t, g_h, o_b, o_t, o_h, dg_b, dg_t, dg_h, HEADS, GROUP,
    REVERSE: tl.constexpr, EARLY: tl.constexpr, K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr,
    SUB: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk and tile of K. Forward: dq, from d outputs x, values y and keys z. Reverse: dk, from values x, d outputs y and
    queries z, and dg; w is what the gradient belongs to. Early: the same for queries that read before the update; dk lacks the flow through
    the chunk's last state, which the other queries' dk has.

    A gate's gradient is the flow from keys before it to queries from it on. Back in time from the flow through the chunk's last state, each
    query adds q * dq, which the forward run leaves in dg (an early one at the token before, its own gate comes too late for it), and each
    key takes k * dk out. A token's own pair meets no gate: it is left out.
    """
    program = tl.program_id(0).to(tl.int64)
    tile, program = program % tl.cdiv(K, BK), program // tl.cdiv(K, BK)
    head, chunk = program % HEADS, program // HEADS
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end, slot = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK), tl.load(chunks + 4 * chunk + 3)
    x += batch * x_b + head * x_h
    y += batch * y_b + head * y_h
    z += batch * z_b + head // GROUP * z_h
    w += batch * w_b + head // GROUP * w_h
    g += batch * g_b + head * g_h
    o += batch * o_b + head * o_h
    dg += batch * dg_b + head * dg_h + (tile if DECAY == "scalar" else 0)
    states += ((slot + 1 if REVERSE else slot) * HEADS + head) * K * V
    dstates += ((slot + 1) * HEADS + head) * K * V
    row = tile * BK + tl.arange(0, BK)
    every = start + tl.arange(0, CHUNK)
    i, j = tl.arange(0, SUB)[:, None], tl.arange(0, SUB)[None, :]
    count = tl.cdiv(end - start, SUB)  # none where the table's row is spare
    flow = tl.zeros([BK], tl.float32)
    if REVERSE and not EARLY and DECAY != "none":
        for first in range(0, V if count > 0 else 0, BV):
            column = first + tl.arange(0, BV)
            state = _tile(states, row, V, row < K, column, V)
            flow += tl.sum(state * _tile(dstates, row, V, row < K, column, V), 1)
        if DECAY == "scalar":
            flow = tl.sum(flow, 0, keep_dims=True)
    for done in range(0, count):
        anchor = start + (count - 1 - done) * SUB
        own = anchor + tl.arange(0, SUB)
        others = _others(every, anchor, end, REVERSE, SUB)
        scores = tl.zeros([SUB, CHUNK], tl.float32)  # d score with the other sub-chunks' tokens
        pairs = tl.zeros([SUB, SUB], tl.float32)  # d score with the own sub-chunk's tokens
        change = tl.zeros([SUB, BK], tl.float32)
        for first in range(0, V, BV):
            column = first + tl.arange(0, BV)
            a = _tile(x, own, x_t, own < end, column, V)
            scores = tl.dot(a, tl.trans(_tile(y, every, y_t, others, column, V)), scores, input_precision=PRECISION)
            pairs = tl.dot(a, tl.trans(_tile(y, own, y_t, own < end, column, V)), pairs, input_precision=PRECISION)
            if not (REVERSE and EARLY):
                state = _tile(dstates if REVERSE else states, row, V, row < K, column, V).to(a.dtype)
                change = tl.dot(a, tl.trans(state), change, input_precision=PRECISION)
        near, far, rest = _exponents(g, g_t, start, anchor, end, row, K, DECAY, REVERSE, EARLY, CHUNK, SUB)
        b = _tile(z, every, z_t, others, row, K)
        b = (b.to(tl.float32) * tl.exp(far)).to(b.dtype)
        change = tl.exp(near) * tl.dot(scores.to(b.dtype), b, change * tl.exp(rest)[None, :], input_precision=PRECISION)
        alone = tl.sum(tl.where(i == j, pairs, 0.0), 1)[:, None]
        if DECAY == "vector":  # one diagonal after the other, as in the scores
            decay = tl.zeros([SUB, BK], tl.float32)
            for lag in range(1, tl.minimum(end - anchor, SUB)):
                other = own + (lag if REVERSE else -lag)
                mask = (((other >= anchor) & (own < end) & (other < tl.minimum(anchor + SUB, end)))[:, None]) & (row < K)[None, :]
                gate = g + (other if REVERSE or EARLY else other + 1)[:, None] * g_t + row[None, :]
                if not EARLY:
                    decay += tl.load(gate, mask=mask, other=0.0).to(tl.float32)
                then = tl.load(z + other[:, None] * z_t + row[None, :], mask=mask, other=0.0).to(tl.float32)
                diagonal = tl.sum(tl.where((j - i if REVERSE else i - j) == lag, pairs, 0.0), 1)[:, None]
                change += diagonal * tl.exp(decay) * then
                if EARLY:
                    decay += tl.load(gate, mask=mask, other=0.0).to(tl.float32)
            own_z = _tile(z, own, z_t, own < end, row, K)
        else:
            within = _within(_met_last(g, own, g_t, anchor, end, row, K, DECAY, EARLY), EARLY, SUB)
            if REVERSE:
                within = tl.trans(within)
            own_z = _tile(z, own, z_t, own < end, row, K)
            pairs = tl.where(i == j, 0.0, pairs * within).to(own_z.dtype)
            change = tl.dot(pairs, own_z, change, input_precision=PRECISION)
        mask = (own < end)[:, None] & (row < K)[None, :]
        found = change if EARLY else change + alone * own_z.to(tl.float32)
        tl.store(o + own[:, None] * o_t + row[None, :], found.to(o.dtype.element_ty), mask=mask)
        if DECAY != "none":
            change *= _tile(w, own, w_t, own < end, row, K).to(tl.float32)
            gate = own - 1 if EARLY and not REVERSE else own
            mask = ((gate >= start) & (own < end))[:, None]
            if DECAY == "vector":
                place, mask = dg + gate[:, None] * dg_t + row[None, :], mask & (row < K)[None, :]
            else:
                place, change = dg + gate[:, None] * dg_t, tl.sum(change, 1)[:, None]
            if REVERSE or EARLY:
                before = tl.load(place, mask=mask, other=0.0)
                change = before - change if REVERSE else before + change
            if REVERSE and not EARLY:
                total = tl.sum(change, 0)
                change = flow[None, :] + tl.cumsum(change, 0, reverse=True)
                flow += total
            tl.store(place, change, mask=mask)


def backward(q, k, v, g, S0, cu_seqlens, do, dS, chunk: int):
    """dq, dk, dv, dg (None without g) and dS0. The states at the boundaries are computed again rather than kept."""
    with torch.cuda.device_of(q):
        run = Run(q, v, g, cu_seqlens, chunk)
        states = run.boundaries(k, v, S0)
        dstates = run.boundaries(q, do, dS, reverse=True)
        dq, dk, dg = gradients(run, q, k, v, do, states, dstates)
        return dq, dk, run.outputs(k, q, do, dstates, reverse=True), dg, dstates[run.first]


def gradients(run, q, k, v, do, states, dstates, a=None, dread=None):
    """dq, dk and dg of chunks between known states and their gradients; also da where rows a read `dread` before the update."""
    shape = (*v.shape[:3], run.K)
    dtype = lambda parts: q.dtype if parts == 1 else torch.float32  # what is summed further is not rounded yet
    rows = lambda parts: torch.empty(shape, dtype=dtype(parts), device=q.device)
    dq, dk = rows(run.group), rows(run.group if a is None else 2 * run.group)
    width = {"none": 0, "scalar": triton.cdiv(run.K, BK), "vector": run.K}[run.decay]
    dg = torch.empty((*shape[:3], width), dtype=torch.float32, device=q.device)
    passes = [(False, False, do, v, k, q, dq), (True, False, v, do, q, k, dk)]
    if a is not None:
        da, early = rows(run.group), rows(2)
        passes[1:1] = [(False, True, dread, v, k, a, da), (True, True, v, dread, a, k, early)]
    for reverse, reads_early, x, y, z, w, o in passes:
        _, BV, warps = blocks(run.itemsize, reads_early, reverse)
        run.launch(
            gradients_kernel, run.chunks, triton.cdiv(run.K, BK), (x, y, z, w, run.g, o, dg), (states, dstates),
            REVERSE=reverse, EARLY=reads_early, V=run.V, SUB=SUB, BK=BK, BV=BV, num_warps=warps,
        )  # fmt: skip
    dg = dg.sum(-1, keepdim=True) if run.decay == "scalar" else dg
    together = lambda x: (x if run.group == 1 else x.unflatten(2, (-1, run.group)).sum(3)).to(q.dtype)
    if a is None:
        return together(dq), together(dk), dg
    return together(dq), together(dk + early), dg, together(da)


def variants():
    """The gradients of queries and keys, plain and early, in every structure at their largest tiles."""
    for reverse in (False, True):
        for early in (False, True):
            name = "gradients" + "_early" * early + "_reverse" * reverse
            tiles = {itemsize: blocks(itemsize, early, reverse) for itemsize in (2, 4)}
            yield from variants_of(gradients_kernel, name, tiles, {"REVERSE": reverse, "EARLY": early})
