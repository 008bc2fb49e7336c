"""The chunkwise kernel of linear recurrences with a diagonal decay: S_t = Diag(e^{g_t}) S_{t-1} + k_t v_t^T, o_t = q_t S_t.

Three kernels, specialized when compiled by the structure of the decay (none, one per token, one per token and channel):

- `boundaries_kernel`: the states at all chunk boundaries, one program per sequence, head and tile of the state; run backward in time
  over (q, d outputs), it gives the gradients of those states.
- `outputs_kernel`: the outputs inside a chunk, all chunks at once; backward in time, dv. `gradients_kernel`: dq; backward, dk and dg.

A chunk is cut into sub-chunks of 16 tokens. Between two sub-chunks a score is a product of two matrices, both decayed to the
boundary between them; inside a sub-chunk it is summed channel by channel. Every exponent is a sum of log-decays over the tokens
between two others, never a difference of two sums, so it is at most 0, loses no digits, and a log-decay of -inf forgets exactly.

Sequences packed along T share a launch: a table (`chunk_table.py`) gives each chunk its batch row, first token, end of sequence, and the
slot of its state; spare rows begin where they end.

Accumulation and states are float32. Products of matrices take operands in the format of q; float32 ones are multiplied as three tf32
products on NVIDIA ("tf32x3", 22 bits of each operand), as float32 on AMD. No atomics: gradients of shared query and key heads, and of
scalar decays over tiles of K, are written apart and summed in a fixed order.
"""

from itertools import product

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.chunk_table import tables
from twofold.fast.kernels.variant import Variant

__all__ = ["CHUNKS", "backward", "forward", "variants"]

CHUNKS = (16, 32, 64)
SUB = 16  # tokens per sub-chunk: the smallest side of a tensor-core product


@triton.jit
def _tile(base, rows, stride, live, columns, limit):
    """Rows of a matrix whose innermost axis is contiguous; 0 outside."""
    mask = live[:, None] & (columns < limit)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _log_decays(g, rows, stride, live, columns, limit, DECAY: tl.constexpr):
    """Log-decays of tokens: (rows, columns) for one per channel, else (rows, 1); 0 outside."""
    if DECAY == "vector":
        return _tile(g, rows, stride, live, columns, limit).to(tl.float32)
    elif DECAY == "scalar":
        return tl.load(g + rows * stride, mask=live, other=0.0).to(tl.float32)[:, None]
    else:
        return tl.zeros([rows.shape[0], 1], tl.float32)


@triton.jit
def _exponents(
    g, stride, start, anchor, end, columns, limit, DECAY: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr
):
    """Log-decays between a sub-chunk and the tokens before it (as queries) or after it (as keys), in three legs that meet nowhere.

    near: between the sub-chunk's tokens and its edge; far: between that edge and the chunk's other tokens; rest: on to the chunk's edge.
    """
    own = anchor + tl.arange(0, SUB)
    every = start + tl.arange(0, CHUNK)
    if KEYS:
        edge = anchor + SUB
        near = tl.cumsum(_log_decays(g, own + 1, stride, own + 1 < tl.minimum(edge, end), columns, limit, DECAY), 0, reverse=True)
        steps = _log_decays(g, every, stride, (every >= edge) & (every < end), columns, limit, DECAY)
        return near, tl.cumsum(steps, 0), tl.sum(steps, 0)
    else:
        near = tl.cumsum(_log_decays(g, own, stride, own < end, columns, limit, DECAY), 0)
        far = tl.cumsum(_log_decays(g, every + 1, stride, every + 1 < anchor, columns, limit, DECAY), 0, reverse=True)
        return near, far, tl.sum(_log_decays(g, every, stride, every < anchor, columns, limit, DECAY), 0)


@triton.jit
def _within(steps, SUB: tl.constexpr):
    """Decay from token j through token i of one sub-chunk, 0 where j > i, for one log-decay per token: (i, j)."""
    i, j = tl.arange(0, SUB)[:, None], tl.arange(0, SUB)[None, :]
    return tl.exp(tl.where(i >= j, tl.cumsum(tl.where(i > j, steps, 0.0), 0), float("-inf")))


@triton.jit
def _near_scores(
    q, k, g, q_t, k_t, g_t, anchor, end,
    K: tl.constexpr, DECAY: tl.constexpr, SUB: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decayed inner products of a sub-chunk's queries with its own keys: (SUB, SUB), lower triangular."""
    own = anchor + tl.arange(0, SUB)
    i, j = tl.arange(0, SUB)[:, None], tl.arange(0, SUB)[None, :]
    scores = tl.zeros([SUB, SUB], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        x = _tile(q, own, q_t, own < end, columns, K)
        if DECAY == "vector":  # one diagonal after the other: from its query's token back, a key meets one more decay each time
            decay = tl.zeros([SUB, BK], tl.float32)
            for lag in range(0, tl.minimum(end - anchor, SUB)):
                past = own - lag
                mask = ((past >= anchor) & (own < end))[:, None] & (columns < K)[None, :]
                y = tl.load(k + past[:, None] * k_t + columns[None, :], mask=mask, other=0.0).to(tl.float32)
                score = tl.sum(x.to(tl.float32) * y * tl.exp(decay), 1)
                scores += tl.where(i - j == lag, score[:, None], 0.0)
                decay += tl.load(g + past[:, None] * g_t + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        else:
            scores = tl.dot(x, tl.trans(_tile(k, own, k_t, own < end, columns, K)), scores, input_precision=PRECISION)
    if DECAY != "vector":
        scores *= _within(_log_decays(g, own, g_t, own < end, own, K, DECAY), SUB)
    return scores


@triton.jit
def boundaries_kernel(
    x, y, g, first, states, sequences, x_b, x_t, x_h, y_b, y_t, y_h, g_b, g_t, g_h, HEADS, GROUP,
    REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Forward: states from keys and values. Reverse: gradients of states from queries and d outputs; only the side of the decay differs."""
    program = tl.program_id(0).to(tl.int64)
    tile_v, program = program % tl.cdiv(V, BV), program // tl.cdiv(V, BV)
    tile_k, program = program % tl.cdiv(K, BK), program // tl.cdiv(K, BK)
    head, sequence = program % HEADS, program // HEADS
    batch, begin = tl.load(sequences + 4 * sequence), tl.load(sequences + 4 * sequence + 1)
    stop, slot = tl.load(sequences + 4 * sequence + 2), tl.load(sequences + 4 * sequence + 3)
    x += batch * x_b + head // GROUP * x_h
    y += batch * y_b + head * y_h
    g += batch * g_b + head * g_h
    row, column = tile_k * BK + tl.arange(0, BK), tile_v * BV + tl.arange(0, BV)
    inside = (row < K)[:, None] & (column < V)[None, :]
    place = row[:, None] * V + column[None, :]
    count = tl.cdiv(stop - begin, CHUNK)

    state = tl.load(first + (sequence * HEADS + head) * K * V + place, mask=inside, other=0.0)
    tl.store(states + ((slot + (count if REVERSE else 0)) * HEADS + head) * K * V + place, state, mask=inside)
    for done in range(0, count):
        start = begin + (count - 1 - done if REVERSE else done) * CHUNK
        end = tl.minimum(start + CHUNK, stop)
        times = start + tl.arange(0, CHUNK)
        steps = _log_decays(g, times, g_t, times < end, row, K, DECAY)
        if REVERSE:  # from the chunk's start through the token
            reach = tl.cumsum(steps, 0)
        else:  # from just after the token to the chunk's end
            reach = tl.cumsum(_log_decays(g, times + 1, g_t, times + 1 < end, row, K, DECAY), 0, reverse=True)
        a = _tile(x, times, x_t, times < end, row, K)
        a = (a.to(tl.float32) * tl.exp(reach)).to(a.dtype)
        b = _tile(y, times, y_t, times < end, column, V)
        state = tl.dot(tl.trans(a), b, tl.exp(tl.sum(steps, 0))[:, None] * state, input_precision=PRECISION)
        boundary = slot + (count - 1 - done if REVERSE else done + 1)
        tl.store(states + (boundary * HEADS + head) * K * V + place, state, mask=inside)


@triton.jit
def outputs_kernel(
    x, y, z, g, states, o, chunks, x_b, x_t, x_h, y_b, y_t, y_h, z_b, z_t, z_h, g_b, g_t, g_h, o_b, o_t, o_h, HEADS, GROUP,
    REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the tokens of one chunk read, sub-chunk by sub-chunk: from the boundary's state, from other sub-chunks, from their own.

    Forward: queries x read keys y with values z, giving outputs. Reverse: keys x are read by queries y with d outputs z, giving dv.
    """
    program = tl.program_id(0).to(tl.int64)
    tile, program = program % tl.cdiv(V, BV), program // tl.cdiv(V, BV)
    head, chunk = program % HEADS, program // HEADS
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end, slot = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK), tl.load(chunks + 4 * chunk + 3)
    x += batch * x_b + head // GROUP * x_h
    y += batch * y_b + head // GROUP * y_h
    z += batch * z_b + head * z_h
    g += batch * g_b + head * g_h
    o += batch * o_b + head * o_h
    states += ((slot + 1 if REVERSE else slot) * HEADS + head) * K * V
    column = tile * BV + tl.arange(0, BV)
    every = start + tl.arange(0, CHUNK)
    for block in range(0, tl.cdiv(end - start, SUB)):  # none where the table's row is spare
        anchor = start + block * SUB
        own = anchor + tl.arange(0, SUB)
        if REVERSE:
            others = (every >= anchor + SUB) & (every < end)
        else:
            others = every < anchor
        scores = tl.zeros([SUB, CHUNK], tl.float32)
        output = tl.zeros([SUB, BV], tl.float32)
        for first in range(0, K, BK):
            row = first + tl.arange(0, BK)
            near, far, rest = _exponents(g, g_t, start, anchor, end, row, K, DECAY, REVERSE, CHUNK, SUB)
            a, b = _tile(x, own, x_t, own < end, row, K), _tile(y, every, y_t, others, row, K)
            b = (b.to(tl.float32) * tl.exp(far)).to(b.dtype)
            scores = tl.dot((a.to(tl.float32) * tl.exp(near)).to(a.dtype), tl.trans(b), scores, input_precision=PRECISION)
            state = _tile(states, row, V, row < K, column, V).to(a.dtype)
            a = (a.to(tl.float32) * tl.exp(near + rest[None, :])).to(a.dtype)
            output = tl.dot(a, state, output, input_precision=PRECISION)
        c = _tile(z, every, z_t, others, column, V)
        output = tl.dot(scores.to(c.dtype), c, output, input_precision=PRECISION)
        if REVERSE:
            scores = tl.trans(_near_scores(y, x, g, y_t, x_t, g_t, anchor, end, K, DECAY, SUB, BK, PRECISION))
        else:
            scores = _near_scores(x, y, g, x_t, y_t, g_t, anchor, end, K, DECAY, SUB, BK, PRECISION)
        c = _tile(z, own, z_t, own < end, column, V)
        output = tl.dot(scores.to(c.dtype), c, output, input_precision=PRECISION)
        mask = (own < end)[:, None] & (column < V)[None, :]
        tl.store(o + own[:, None] * o_t + column[None, :], output.to(o.dtype.element_ty), mask=mask)


@triton.jit
def gradients_kernel(
    x, y, z, w, g, states, dstates, o, dg, chunks,
    x_b, x_t, x_h, y_b, y_t, y_h, z_b, z_t, z_h, w_b, w_t, w_h, g_b, g_t, g_h, o_b, o_t, o_h, e_b, e_t, e_h, HEADS, GROUP,
    REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk and tile of K. Forward: dq, from d outputs x, values y and keys z. Reverse: dk, from values x, d outputs y and
    queries z, and dg; w is what the gradient belongs to.

    A gate's gradient is the flow from keys before it to queries from it on. Back in time from the flow through the chunk's last state, each
    query adds q * dq, which the forward run leaves in dg, and each key takes k * dk out. A token's own pair meets no gate: it is left out.
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
    dg += batch * e_b + head * e_h + (tile if DECAY == "scalar" else 0)
    states += ((slot + 1 if REVERSE else slot) * HEADS + head) * K * V
    dstates += ((slot + 1) * HEADS + head) * K * V
    row = tile * BK + tl.arange(0, BK)
    every = start + tl.arange(0, CHUNK)
    i, j = tl.arange(0, SUB)[:, None], tl.arange(0, SUB)[None, :]
    count = tl.cdiv(end - start, SUB)  # none where the table's row is spare
    flow = tl.zeros([BK], tl.float32)
    if REVERSE and DECAY != "none":
        for first in range(0, V if count > 0 else 0, BV):
            column = first + tl.arange(0, BV)
            state = _tile(states, row, V, row < K, column, V)
            flow += tl.sum(state * _tile(dstates, row, V, row < K, column, V), 1)
        if DECAY == "scalar":
            flow = tl.sum(flow, 0, keep_dims=True)
    for done in range(0, count):
        anchor = start + (count - 1 - done) * SUB
        own = anchor + tl.arange(0, SUB)
        if REVERSE:
            others = (every >= anchor + SUB) & (every < end)
        else:
            others = every < anchor
        scores = tl.zeros([SUB, CHUNK], tl.float32)  # d score with the other sub-chunks' tokens
        pairs = tl.zeros([SUB, SUB], tl.float32)  # d score with the own sub-chunk's tokens
        change = tl.zeros([SUB, BK], tl.float32)
        for first in range(0, V, BV):
            column = first + tl.arange(0, BV)
            a = _tile(x, own, x_t, own < end, column, V)
            scores = tl.dot(a, tl.trans(_tile(y, every, y_t, others, column, V)), scores, input_precision=PRECISION)
            pairs = tl.dot(a, tl.trans(_tile(y, own, y_t, own < end, column, V)), pairs, input_precision=PRECISION)
            state = _tile(dstates if REVERSE else states, row, V, row < K, column, V).to(a.dtype)
            change = tl.dot(a, tl.trans(state), change, input_precision=PRECISION)
        near, far, rest = _exponents(g, g_t, start, anchor, end, row, K, DECAY, REVERSE, CHUNK, SUB)
        b = _tile(z, every, z_t, others, row, K)
        b = (b.to(tl.float32) * tl.exp(far)).to(b.dtype)
        change = tl.exp(near) * tl.dot(scores.to(b.dtype), b, change * tl.exp(rest)[None, :], input_precision=PRECISION)
        alone = tl.sum(tl.where(i == j, pairs, 0.0), 1)[:, None]
        if DECAY == "vector":  # one diagonal after the other, as in the scores
            decay = tl.zeros([SUB, BK], tl.float32)
            for lag in range(1, tl.minimum(end - anchor, SUB)):
                other = own + (lag if REVERSE else -lag)
                mask = (((other >= anchor) & (own < end) & (other < tl.minimum(anchor + SUB, end)))[:, None]) & (row < K)[None, :]
                gate = g + (other if REVERSE else other + 1)[:, None] * g_t + row[None, :]
                decay += tl.load(gate, mask=mask, other=0.0).to(tl.float32)
                then = tl.load(z + other[:, None] * z_t + row[None, :], mask=mask, other=0.0).to(tl.float32)
                diagonal = tl.sum(tl.where((j - i if REVERSE else i - j) == lag, pairs, 0.0), 1)[:, None]
                change += diagonal * tl.exp(decay) * then
            own_z = _tile(z, own, z_t, own < end, row, K)
        else:
            within = _within(_log_decays(g, own, g_t, own < end, row, K, DECAY), SUB)
            if REVERSE:
                within = tl.trans(within)
            own_z = _tile(z, own, z_t, own < end, row, K)
            pairs = tl.where(i == j, 0.0, pairs * within).to(own_z.dtype)
            change = tl.dot(pairs, own_z, change, input_precision=PRECISION)
        mask = (own < end)[:, None] & (row < K)[None, :]
        tl.store(o + own[:, None] * o_t + row[None, :], (change + alone * own_z.to(tl.float32)).to(o.dtype.element_ty), mask=mask)
        if DECAY != "none":
            change *= _tile(w, own, w_t, own < end, row, K).to(tl.float32)
            if DECAY == "vector":
                place = dg + own[:, None] * e_t + row[None, :]
            else:
                place, mask = dg + own[:, None] * e_t, (own < end)[:, None]
                change = tl.sum(change, 1)[:, None]
            if REVERSE:
                change = tl.load(place, mask=mask, other=0.0) - change
                total = tl.sum(change, 0)
                change = flow[None, :] + tl.cumsum(change, 0, reverse=True)
                flow += total
            tl.store(place, change, mask=mask)


def blocks(kernel, K: int, V: int, itemsize: int) -> tuple[int, int, int]:
    """Tile of K, tile of V and warps of a kernel: a pure function of the shape."""
    side = lambda size, most: min(most, max(16, triton.next_power_of_2(size)))
    if kernel is boundaries_kernel:
        return side(K, 64 if itemsize == 2 else 32), side(V, 64), 4
    if kernel is gradients_kernel:
        return 32, 32, 8
    return side(K, 32), side(V, 64 if itemsize == 2 else 32), 2 * itemsize


def precision(itemsize: int, hip: bool) -> str:
    return "tf32x3" if itemsize == 4 and not hip else "ieee"


def _launch(kernel, programs: int, *args, K: int, V: int, itemsize: int, **constants) -> None:
    BK, BV, warps = blocks(kernel, K, V, itemsize)
    tiles = (1 if kernel is outputs_kernel else triton.cdiv(K, BK)) * (1 if kernel is gradients_kernel else triton.cdiv(V, BV))
    constants |= {"K": K, "V": V, "BK": BK, "BV": BV, "PRECISION": precision(itemsize, torch.version.hip is not None)}
    constants |= {"SUB": SUB} if "SUB" in kernel.arg_names else {}
    if programs:
        kernel[programs * tiles,](*args, **constants, num_warps=warps, num_stages=2)


def forward(q, k, v, g, S0, cu_seqlens, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, H, V)` and final states `(N, H, K, V)`; g is `(B, T, H, K)`, `(B, T, H, 1)` or None; innermost axes contiguous."""
    with torch.cuda.device_of(q):
        run = _Run(q, k, v, g, cu_seqlens, chunk)
        states = run.boundaries(k, v, S0, reverse=False)
        o = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        run.outputs(q, k, v, states, o, reverse=False)
        return o, states[run.final]


def backward(q, k, v, g, S0, cu_seqlens, do, dS, chunk: int):
    """dq, dk, dv, dg (None without g) and dS0. The states at the boundaries are computed again rather than kept."""
    with torch.cuda.device_of(q):
        run = _Run(q, k, v, g, cu_seqlens, chunk)
        states = run.boundaries(k, v, S0, reverse=False)
        dstates = run.boundaries(q, do, dS, reverse=True)
        dv = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        run.outputs(k, q, do, dstates, dv, reverse=True)
        dq, dk, dg = run.gradients(q, k, v, do, states, dstates)
        return dq, dk, dv, dg, dstates[run.sequences[:, 3]]


class _Run:
    """What the launches of one call share."""

    def __init__(self, q, k, v, g, cu_seqlens, chunk):
        self.sequences, self.chunks, self.final = tables(q.shape[0], q.shape[1], cu_seqlens, chunk, q.device)
        self.g, self.decay = (q, "none") if g is None else (g, "scalar" if g.shape[-1] == 1 else "vector")
        self.heads, self.group = v.shape[2], v.shape[2] // q.shape[2]
        self.common = dict(DECAY=self.decay, CHUNK=chunk, K=q.shape[3], V=v.shape[3], itemsize=q.element_size())

    def boundaries(self, x, y, first, reverse):
        slots = len(self.chunks) + len(self.sequences)
        states = torch.empty((slots, *first.shape[1:]), dtype=torch.float32, device=x.device)
        args = x, y, self.g, first, states, self.sequences, *x.stride()[:3], *y.stride()[:3], *self.g.stride()[:3], self.heads, self.group
        _launch(boundaries_kernel, len(self.sequences) * self.heads, *args, REVERSE=reverse, **self.common)
        return states

    def outputs(self, x, y, z, states, o, reverse):
        strides = *x.stride()[:3], *y.stride()[:3], *z.stride()[:3], *self.g.stride()[:3], *o.stride()[:3]
        args = x, y, z, self.g, states, o, self.chunks, *strides, self.heads, self.group
        _launch(outputs_kernel, len(self.chunks) * self.heads, *args, REVERSE=reverse, **self.common)

    def gradients(self, q, k, v, do, states, dstates):
        shape = (*v.shape[:3], q.shape[3])
        dq, dk = (torch.empty(shape, dtype=q.dtype if self.group == 1 else torch.float32, device=q.device) for _ in range(2))
        tiles = triton.cdiv(q.shape[3], blocks(gradients_kernel, q.shape[3], v.shape[3], q.element_size())[0])
        width = {"none": 0, "scalar": tiles, "vector": q.shape[3]}[self.decay]
        dg = torch.empty((*v.shape[:3], width), dtype=torch.float32, device=q.device)
        for reverse, x, y, z, w, o in (False, do, v, k, q, dq), (True, v, do, q, k, dk):
            strides = (s for tensor in (x, y, z, w, self.g, o, dg) for s in tensor.stride()[:3])
            args = x, y, z, w, self.g, states, dstates, o, dg, self.chunks, *strides, self.heads, self.group
            _launch(gradients_kernel, len(self.chunks) * self.heads, *args, REVERSE=reverse, **self.common)
        if self.group > 1:
            dq, dk = (x.unflatten(2, (-1, self.group)).sum(3).to(q.dtype) for x in (dq, dk))
        return dq, dk, dg.sum(-1, keepdim=True) if self.decay == "scalar" else dg


def variants():
    """Every kernel and structure at its largest tiles, for the ahead-of-time compile report; float16 takes what bfloat16 takes."""
    kernels = boundaries_kernel, outputs_kernel, gradients_kernel
    formats = ("bf16", 2, False), ("fp32", 4, False), ("fp32", 4, True)
    for kernel, reverse, decay, (element, itemsize, hip) in product(kernels, (False, True), ("none", "scalar", "vector"), formats):
        BK, BV, warps = blocks(kernel, 128, 128, itemsize)
        constants = {"REVERSE": reverse, "K": 128, "V": 128, "DECAY": decay, "CHUNK": 64, "SUB": SUB}
        constants |= {"BK": BK, "BV": BV, "PRECISION": precision(itemsize, hip)}
        tensors = dict.fromkeys(("x", "y", "z", "w", "o"), f"*{element}")
        tensors |= dict.fromkeys(("g", "dg", "first", "states", "dstates"), "*fp32") | dict.fromkeys(("sequences", "chunks"), "*i64")
        names, strides = kernel.arg_names, tuple(f"{name}_{axis}" for name in "xyzwgoe" for axis in "bth")
        yield Variant(
            name=f"{kernel.__name__.removesuffix('_kernel')}{'_reverse' if reverse else ''}-{decay}-{element}{'-hip' if hip else ''}",
            kernel=kernel,
            signature={n: "constexpr" if n in constants else tensors.get(n, "i32") for n in names},
            constexprs={n: value for n, value in constants.items() if n in names},
            options={"num_warps": warps, "num_stages": 2},
            divisible=tuple(n for n in names if n in tensors or (n in strides and (decay == "vector" or n[0] not in "ge"))),
            architectures=() if itemsize == 2 else ("gfx942",) if hip else (80, 90, 100, 120),
        )
