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

__all__ = ["CHUNKS", "DECAYS", "SUB", "Run", "blocks", "forward", "precision", "side", "variants", "variants_of"]

CHUNKS = (16, 32, 64)
DECAYS = ("none", "scalar", "vector")
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
    g, stride, start, anchor, end, columns, limit,
    DECAY: tl.constexpr, KEYS: tl.constexpr, EARLY: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """Log-decays between a sub-chunk and the tokens before it (as queries) or after it (as keys), in three legs that meet nowhere.

    near: between the sub-chunk's tokens and its edge; far: between that edge and the chunk's other tokens; rest: on to the chunk's edge.
    """
    own = anchor + tl.arange(0, SUB)
    every = start + tl.arange(0, CHUNK)
    if KEYS:
        edge = anchor + SUB
        near = tl.cumsum(_log_decays(g, own + 1, stride, own + 1 < tl.minimum(edge, end), columns, limit, DECAY), 0, reverse=True)
        steps = _log_decays(g, every, stride, (every >= edge) & (every < end), columns, limit, DECAY)
        rest = tl.sum(steps, 0)
        if EARLY:
            steps = _log_decays(g, every - 1, stride, (every > edge) & (every < end), columns, limit, DECAY)
        return near, tl.cumsum(steps, 0), rest
    else:
        near = tl.cumsum(_met_last(g, own, stride, anchor, end, columns, limit, DECAY, EARLY), 0)
        far = tl.cumsum(_log_decays(g, every + 1, stride, every + 1 < anchor, columns, limit, DECAY), 0, reverse=True)
        return near, far, tl.sum(_log_decays(g, every, stride, every < anchor, columns, limit, DECAY), 0)


@triton.jit
def _others(every, anchor, end, REVERSE: tl.constexpr, SUB: tl.constexpr):
    """Which tokens of a chunk come before a sub-chunk (reverse: after it)."""
    if REVERSE:
        return (every >= anchor + SUB) & (every < end)
    else:
        return every < anchor


@triton.jit
def _met_last(g, own, stride, anchor, end, columns, limit, DECAY: tl.constexpr, EARLY: tl.constexpr):
    """The last log-decay that a query of a sub-chunk meets: its token's or, where it reads before the update, that of the token before."""
    last = own - 1 if EARLY else own
    return _log_decays(g, last, stride, (last >= anchor) & (last < end), columns, limit, DECAY)


@triton.jit
def _within(steps, EARLY: tl.constexpr, SUB: tl.constexpr):
    """Decay that query i meets of key j of one sub-chunk, 0 where it comes too late, for one log-decay per token (`_met_last`): (i, j)."""
    gap = tl.arange(0, SUB)[:, None] - tl.arange(0, SUB)[None, :] - (1 if EARLY else 0)
    return tl.exp(tl.where(gap >= 0, tl.cumsum(tl.where(gap > 0, steps, 0.0), 0), float("-inf")))


@triton.jit
def _far_scores(
    scores, x, y, g, x_t, y_t, g_t, start, anchor, end, others, first,
    REVERSE: tl.constexpr, EARLY: tl.constexpr, K: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the decayed inner products of a sub-chunk with the chunk's tokens before it (reverse: after it) over one tile of K.

    Returns them, and the sub-chunk's rows decayed to the chunk's edge.
    """
    own, every, row = anchor + tl.arange(0, SUB), start + tl.arange(0, CHUNK), first + tl.arange(0, BK)
    near, far, rest = _exponents(g, g_t, start, anchor, end, row, K, DECAY, REVERSE, EARLY, CHUNK, SUB)
    a, b = _tile(x, own, x_t, own < end, row, K), _tile(y, every, y_t, others, row, K)
    b = (b.to(tl.float32) * tl.exp(far)).to(b.dtype)
    scores = tl.dot((a.to(tl.float32) * tl.exp(near)).to(a.dtype), tl.trans(b), scores, input_precision=PRECISION)
    return scores, (a.to(tl.float32) * tl.exp(near + rest[None, :])).to(a.dtype)


@triton.jit
def _near_scores(
    q, k, g, q_t, k_t, g_t, anchor, end,
    EARLY: tl.constexpr, K: tl.constexpr, DECAY: tl.constexpr, SUB: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Decayed inner products of a sub-chunk's queries with its own keys: (SUB, SUB), lower triangular, strictly where they read early."""
    own = anchor + tl.arange(0, SUB)
    i, j = tl.arange(0, SUB)[:, None], tl.arange(0, SUB)[None, :]
    scores = tl.zeros([SUB, SUB], tl.float32)
    for first in range(0, K, BK):
        columns = first + tl.arange(0, BK)
        x = _tile(q, own, q_t, own < end, columns, K)
        if DECAY == "vector":  # one diagonal after the other: from its query's token back, a key meets one more decay each time
            decay = tl.zeros([SUB, BK], tl.float32)
            for lag in range(1 if EARLY else 0, tl.minimum(end - anchor, SUB)):
                past = own - lag
                mask = ((past >= anchor) & (own < end))[:, None] & (columns < K)[None, :]
                y = tl.load(k + past[:, None] * k_t + columns[None, :], mask=mask, other=0.0).to(tl.float32)
                score = tl.sum(x.to(tl.float32) * y * tl.exp(decay), 1)
                scores += tl.where(i - j == lag, score[:, None], 0.0)
                decay += tl.load(g + past[:, None] * g_t + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        else:
            scores = tl.dot(x, tl.trans(_tile(k, own, k_t, own < end, columns, K)), scores, input_precision=PRECISION)
    if DECAY != "vector":
        scores *= _within(_met_last(g, own, g_t, anchor, end, own, K, DECAY, EARLY), EARLY, SUB)
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
    x, y, z, g, o, states, chunks, x_b, x_t, x_h, y_b, y_t, y_h, z_b, z_t, z_h, g_b, g_t, g_h, o_b, o_t, o_h, HEADS, GROUP,
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
    if states is not None:
        states += ((slot + 1 if REVERSE else slot) * HEADS + head) * K * V
    column = tile * BV + tl.arange(0, BV)
    every = start + tl.arange(0, CHUNK)
    for block in range(0, tl.cdiv(end - start, SUB)):  # none where the table's row is spare
        anchor = start + block * SUB
        own = anchor + tl.arange(0, SUB)
        others = _others(every, anchor, end, REVERSE, SUB)
        scores = tl.zeros([SUB, CHUNK], tl.float32)
        output = tl.zeros([SUB, BV], tl.float32)
        for first in range(0, K, BK):
            scores, a = _far_scores(
                scores, x, y, g, x_t, y_t, g_t, start, anchor, end, others, first, REVERSE, False, K, DECAY, CHUNK, SUB, BK, PRECISION
            )
            if states is not None:
                row = first + tl.arange(0, BK)
                output = tl.dot(a, _tile(states, row, V, row < K, column, V).to(a.dtype), output, input_precision=PRECISION)
        c = _tile(z, every, z_t, others, column, V)
        output = tl.dot(scores.to(c.dtype), c, output, input_precision=PRECISION)
        if REVERSE:
            scores = tl.trans(_near_scores(y, x, g, y_t, x_t, g_t, anchor, end, False, K, DECAY, SUB, BK, PRECISION))
        else:
            scores = _near_scores(x, y, g, x_t, y_t, g_t, anchor, end, False, K, DECAY, SUB, BK, PRECISION)
        c = _tile(z, own, z_t, own < end, column, V)
        output = tl.dot(scores.to(c.dtype), c, output, input_precision=PRECISION)
        mask = (own < end)[:, None] & (column < V)[None, :]
        tl.store(o + own[:, None] * o_t + column[None, :], output.to(o.dtype.element_ty), mask=mask)


def blocks(K: int, V: int, itemsize: int, boundaries: bool) -> tuple[int, int, int]:
    """Tile of K, tile of V and warps: a pure function of the shape."""
    if boundaries:
        return side(K, 64 if itemsize == 2 else 32), side(V, 64), 4
    return side(K, 32), side(V, 64 if itemsize == 2 else 32), 2 * itemsize


def side(size: int, most: int) -> int:
    """Side of a tile: a power of two, 16 at least."""
    return min(most, max(16, triton.next_power_of_2(size)))


def precision(itemsize: int, hip: bool) -> str:
    return "tf32x3" if itemsize == 4 and not hip else "ieee"


def forward(q, k, v, g, S0, cu_seqlens, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, H, V)` and final states `(N, H, K, V)`; g is `(B, T, H, K)`, `(B, T, H, 1)` or None; innermost axes contiguous."""
    with torch.cuda.device_of(q):
        run = Run(q, v, g, cu_seqlens, chunk)
        states = run.boundaries(k, v, S0)
        return run.outputs(q, k, v, states), states[run.final]


class Run:
    """The launches of one call, and what they share."""

    def __init__(self, q, v, g, cu_seqlens, chunk):
        self.sequences, self.chunks, self.final = tables(q.shape[0], q.shape[1], cu_seqlens, chunk, q.device)
        self.first = self.sequences[:, 3]  # slots of the states before the first tokens
        self.g, self.decay = (q, "none") if g is None else (g, "scalar" if g.shape[-1] == 1 else "vector")
        self.heads, self.group = v.shape[2], v.shape[2] // q.shape[2]
        self.K, self.V, self.itemsize = q.shape[3], v.shape[3], q.element_size()
        self.constants = {"DECAY": self.decay, "CHUNK": chunk, "K": self.K, "PRECISION": precision(self.itemsize, bool(torch.version.hip))}

    def empty_states(self):
        slots = len(self.chunks) + len(self.sequences)
        return torch.empty((slots, self.heads, self.K, self.V), dtype=torch.float32, device=self.g.device)

    def launch(self, kernel, table, tiles, tensors, states, **constants):
        """One program per row of a table, head and tile; the strides of the tensors follow in their order."""
        strides = (stride for x in tensors for stride in x.stride()[:3])
        if programs := len(table) * self.heads * tiles:
            arguments = *tensors, *states, table, *strides, self.heads, self.group
            kernel[programs,](*arguments, **self.constants | constants, num_stages=2)

    def boundaries(self, x, y, first, reverse=False):
        states, (BK, BV, warps) = self.empty_states(), blocks(self.K, self.V, self.itemsize, True)
        tiles = triton.cdiv(self.K, BK) * triton.cdiv(self.V, BV)
        self.launch(
            boundaries_kernel, self.sequences, tiles, (x, y, self.g), (first, states),
            REVERSE=reverse, V=self.V, BK=BK, BV=BV, num_warps=warps,
        )  # fmt: skip
        return states

    def outputs(self, x, y, z, states, reverse=False):
        o, (BK, BV, warps) = torch.empty(z.shape, dtype=z.dtype, device=z.device), blocks(self.K, self.V, self.itemsize, False)
        self.launch(
            outputs_kernel, self.chunks, triton.cdiv(self.V, BV), (x, y, z, self.g, o), (states,),
            REVERSE=reverse, V=self.V, SUB=SUB, BK=BK, BV=BV, num_warps=warps,
        )  # fmt: skip
        return o


def variants():
    """Both kernels in every structure at their largest tiles, for the ahead-of-time compile report."""
    for kernel in boundaries_kernel, outputs_kernel:
        tiles = {itemsize: blocks(128, 128, itemsize, kernel is boundaries_kernel) for itemsize in (2, 4)}
        for reverse in (False, True):
            name = kernel.__name__.removesuffix("_kernel") + "_reverse" * reverse
            yield from variants_of(kernel, name, tiles, {"REVERSE": reverse})


def variants_of(kernel, name, tiles, switches, decays=DECAYS):
    """A kernel for heads of 128 by 128, with these switches, in every decay and format; float16 takes what bfloat16 takes."""
    for decay, (element, itemsize, hip) in product(decays, (("bf16", 2, False), ("fp32", 4, False), ("fp32", 4, True))):
        BK, BV, warps = tiles[itemsize]
        constants = {"K": 128, "V": 128, "WIDTH": 128, "DECAY": decay, "CHUNK": 64, "SUB": SUB, "BK": BK, "BV": BV}
        constants |= {"PRECISION": precision(itemsize, hip)} | switches
        floats = dict.fromkeys(("g", "dg", "first", "states", "dstates"), "*fp32")
        integers = dict.fromkeys(("sequences", "chunks"), "*i64") | dict.fromkeys(("HEADS", "GROUP"), "i32")
        names = kernel.arg_names
        strides = {f"{x}_{axis}": "i32" for x in names for axis in "bth"}
        odd = {f"{x}_{axis}" for x in ("g", "dg") for axis in "bth" if decay != "vector"}
        types = strides | integers | floats | dict.fromkeys(constants, "constexpr")
        yield Variant(
            name=f"{name}-{decay}-{element}{'-hip' if hip else ''}",
            kernel=kernel,
            signature={n: types.get(n, f"*{element}") for n in names},
            constexprs={n: value for n, value in constants.items() if n in names},
            options={"num_warps": warps, "num_stages": 2},
            divisible=tuple(n for n in names if types.get(n, "*").startswith("*") or n in strides.keys() - odd),
            architectures=() if itemsize == 2 else ("gfx942",) if hip else (80, 90, 100, 120),
        )
