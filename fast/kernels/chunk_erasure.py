"""The chunkwise kernel of recurrences that read before they write: D_t = v_t + a_t S_{t-1}, S_t = Diag(e^{g_t}) S_{t-1} + k_t D_t^T.

The transition is a diagonal plus the rank-one k_t a_t^T: with a_t = -(decayed key) the memory erases what a key held before it writes
anew, the delta rule. Once D is known, outputs and gradients are those of the diagonal recurrence with values D (`chunk_recurrence.py`,
`chunk_recurrence_backward.py`). Two kernels find D, of which every token needs the earlier ones of its chunk:

- `solve_kernel`: forward substitution through a chunk, all chunks at once, of the part W of D that multiplies the state at the chunk's
  start and of the part U that does not, so D = U + W S. Backward in time, the same for the gradients of D.
- `carry_kernel`: D and the states at all chunk boundaries, chunk by chunk; one program per sequence, head and tile of V holds all of K.

Formats, decays, packing and sums are those of `chunk_recurrence`. Rows of D that others read are kept in the format of q.
"""

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.chunk_recurrence import (
    DECAYS,
    SUB,
    Run,
    _exponents,
    _far_scores,
    _log_decays,
    _near_scores,
    _others,
    _tile,
    side,
    variants_of,
)
from twofold.fast.kernels.chunk_recurrence_backward import gradients

__all__ = ["backward", "forward", "variants"]


@triton.jit
def solve_kernel(
    x, y, r, g, o, chunks, x_b, x_t, x_h, y_b, y_t, y_h, r_b, r_t, r_h, g_b, g_t, g_h, o_b, o_t, o_h, HEADS, GROUP,
    REVERSE: tl.constexpr, DECAYED: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr,
    SUB: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows o with o_t = r_t + (early scores of row t with the chunk's earlier tokens) o, for one tile of WIDTH; reverse: with later ones.

    Forward: rows x read early, of keys y. Reverse: keys x are read early by rows y. DECAYED: r has K columns, decayed to the chunk's edge.
    """
    program = tl.program_id(0).to(tl.int64)
    tile, program = program % tl.cdiv(WIDTH, BV), program // tl.cdiv(WIDTH, BV)
    head, chunk = program % HEADS, program // HEADS
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK)
    x += batch * x_b + head // GROUP * x_h
    y += batch * y_b + head // GROUP * y_h
    r += batch * r_b + head // (GROUP if DECAYED else 1) * r_h
    g += batch * g_b + head * g_h
    o += batch * o_b + head * o_h
    column = tile * BV + tl.arange(0, BV)
    every = start + tl.arange(0, CHUNK)
    i, nth = tl.arange(0, SUB)[:, None], tl.arange(0, CHUNK // SUB)[:, None, None]
    solved = tl.zeros([CHUNK // SUB, SUB, BV], o.dtype.element_ty)
    count = tl.cdiv(end - start, SUB)  # none where the table's row is spare
    for done in range(0, count):
        block = count - 1 - done if REVERSE else done
        anchor = start + block * SUB
        own = anchor + tl.arange(0, SUB)
        others = _others(every, anchor, end, REVERSE, SUB)
        rows = _tile(r, own, r_t, own < end, column, WIDTH).to(tl.float32)
        if DECAYED:
            near, far, rest = _exponents(g, g_t, start, anchor, end, column, WIDTH, DECAY, REVERSE, True, CHUNK, SUB)
            rows *= tl.exp(near + rest[None, :])
        scores = tl.zeros([SUB, CHUNK], tl.float32)
        for first in range(0, K, BK):
            scores, rows_at_edge = _far_scores(
                scores, x, y, g, x_t, y_t, g_t, start, anchor, end, others, first, REVERSE, True, K, DECAY, CHUNK, SUB, BK, PRECISION
            )
        known = tl.reshape(solved, [CHUNK, BV])
        rows = tl.dot(scores.to(known.dtype), known, rows, input_precision=PRECISION)
        if REVERSE:
            scores = tl.trans(_near_scores(y, x, g, y_t, x_t, g_t, anchor, end, True, K, DECAY, SUB, BK, PRECISION))
        else:
            scores = _near_scores(x, y, g, x_t, y_t, g_t, anchor, end, True, K, DECAY, SUB, BK, PRECISION)
        for step in range(1, SUB):  # each row takes what it needs of rows that are final
            at = SUB - 1 - step if REVERSE else step
            weights = tl.sum(tl.where(i == at, scores, 0.0), 0)
            rows += tl.where(i == at, tl.sum(weights[:, None] * rows, 0)[None, :], 0.0)
        tl.store(o + own[:, None] * o_t + column[None, :], rows.to(solved.dtype), mask=(own < end)[:, None] & (column < WIDTH)[None, :])
        solved = tl.where(nth == block, rows.to(solved.dtype)[None, :, :], solved)


@triton.jit
def carry_kernel(
    x, y, a, w, d, g, first, states, sequences, x_b, x_t, x_h, y_b, y_t, y_h, a_b, a_t, a_h, w_b, w_t, w_h, d_b, d_t, d_h, g_b, g_t, g_h,
    HEADS, GROUP,
    REVERSE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr, SUB: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """States at chunk boundaries; rows d, which hold what does not depend on the state at the chunk's edge, are completed in their place.

    Forward: from keys x (y and a are not read). Reverse: gradients of states from queries x, d outputs y and rows a, and of rows d.
    """
    program = tl.program_id(0).to(tl.int64)
    tile, program = program % tl.cdiv(V, BV), program // tl.cdiv(V, BV)
    head, sequence = program % HEADS, program // HEADS
    batch, begin = tl.load(sequences + 4 * sequence), tl.load(sequences + 4 * sequence + 1)
    stop, slot = tl.load(sequences + 4 * sequence + 2), tl.load(sequences + 4 * sequence + 3)
    x += batch * x_b + head // GROUP * x_h
    y += batch * y_b + head * y_h
    a += batch * a_b + head // GROUP * a_h
    w += batch * w_b + head * w_h
    d += batch * d_b + head * d_h
    g += batch * g_b + head * g_h
    row, column = tl.arange(0, BK), tile * BV + tl.arange(0, BV)
    inside = (row < K)[:, None] & (column < V)[None, :]
    place = row[:, None] * V + column[None, :]
    count = tl.cdiv(stop - begin, CHUNK)

    state = tl.load(first + (sequence * HEADS + head) * K * V + place, mask=inside, other=0.0)
    tl.store(states + ((slot + (count if REVERSE else 0)) * HEADS + head) * K * V + place, state, mask=inside)
    for done in range(0, count):
        start = begin + (count - 1 - done if REVERSE else done) * CHUNK
        end = tl.minimum(start + CHUNK, stop)
        edge = state.to(w.dtype.element_ty)  # what the rows of the whole chunk multiply
        blocks = tl.cdiv(end - start, SUB)
        for block in range(0, blocks):
            anchor = start + (blocks - 1 - block if REVERSE else block) * SUB
            times, border = anchor + tl.arange(0, SUB), tl.minimum(anchor + SUB, end)
            rows = _tile(d, times, d_t, times < end, column, V).to(tl.float32)
            rows = tl.dot(_tile(w, times, w_t, times < end, row, K), edge, rows, input_precision=PRECISION).to(edge.dtype)
            tl.store(d + times[:, None] * d_t + column[None, :], rows, mask=(times < end)[:, None] & (column < V)[None, :])
            steps = _log_decays(g, times, g_t, times < border, row, K, DECAY)
            state *= tl.exp(tl.sum(steps, 0))[:, None]
            b = _tile(x, times, x_t, times < end, row, K)
            if REVERSE:
                b = (b.to(tl.float32) * tl.exp(tl.cumsum(steps, 0))).to(b.dtype)
                state = tl.dot(tl.trans(b), _tile(y, times, y_t, times < end, column, V), state, input_precision=PRECISION)
                reach = tl.cumsum(_log_decays(g, times - 1, g_t, (times > anchor) & (times < border), row, K, DECAY), 0)
                b = _tile(a, times, a_t, times < end, row, K)
            else:
                reach = tl.cumsum(_log_decays(g, times + 1, g_t, times + 1 < border, row, K, DECAY), 0, reverse=True)
            b = (b.to(tl.float32) * tl.exp(reach)).to(b.dtype)
            state = tl.dot(tl.trans(b), rows, state, input_precision=PRECISION)
        boundary = slot + (count - 1 - done if REVERSE else done + 1)
        tl.store(states + (boundary * HEADS + head) * K * V + place, state, mask=inside)


def solve_blocks(K: int, width: int, decay: str) -> tuple[int, int, int]:
    """Tile of K, tile of the rows, and warps."""
    return side(K, 32), side(width, 32), 8 if decay == "vector" else 4


def carry_blocks(K: int, V: int, itemsize: int) -> tuple[int, int, int]:
    """All of K, a tile of V that leaves room for two states, and warps. Heads of float32 with K above 128 spill registers."""
    return max(16, triton.next_power_of_2(K)), side(V, 32 if K * itemsize <= 256 else 16), 4 if itemsize == 2 else 8


def forward(q, k, v, g, S0, cu_seqlens, chunk: int, a) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and final states as of `chunk_recurrence.forward`; rows a `(B, T, Hq, K)` read the state before the update."""
    with torch.cuda.device_of(q):
        run = Run(q, v, g, cu_seqlens, chunk)
        written, states = _written(run, k, v, a, S0)
        return run.outputs(q, k, written, states), states[run.final]


def backward(q, k, v, g, S0, cu_seqlens, do, dS, chunk: int, a):
    """dq, dk, dv, dg (None without g), dS0 and da. What was written and the states are computed again rather than kept."""
    with torch.cuda.device_of(q):
        run = Run(q, v, g, cu_seqlens, chunk)
        written, states = _written(run, k, v, a, S0)
        dv = _solve(run, k, a, run.outputs(k, q, do, None, reverse=True), reverse=True)
        dstates = _carry(run, q, do, a, _solve(run, k, a, k, reverse=True, decayed=True), dv, dS, reverse=True)
        dq, dk, dg, da = gradients(run, q, k, written, do, states, dstates, a, dv)
        return dq, dk, dv, dg, dstates[run.first], da


def _written(run, k, v, a, S0):
    """The rows D and the states at the chunk boundaries."""
    written = _solve(run, a, k, v)
    return written, _carry(run, k, written, a, _solve(run, a, k, a, decayed=True), written, S0)


def _solve(run, x, y, r, reverse=False, decayed=False):
    o = torch.empty((*r.shape[:2], run.heads, r.shape[3]), dtype=r.dtype, device=r.device)
    BK, BV, warps = solve_blocks(run.K, r.shape[3], run.decay)
    run.launch(
        solve_kernel, run.chunks, triton.cdiv(r.shape[3], BV), (x, y, r, run.g, o), (),
        REVERSE=reverse, DECAYED=decayed, WIDTH=r.shape[3], SUB=SUB, BK=BK, BV=BV, num_warps=warps,
    )  # fmt: skip
    return o


def _carry(run, x, y, a, w, d, first, reverse=False):
    states, (BK, BV, warps) = run.empty_states(), carry_blocks(run.K, run.V, run.itemsize)
    run.launch(
        carry_kernel, run.sequences, triton.cdiv(run.V, BV), (x, y, a, w, d, run.g), (first, states),
        REVERSE=reverse, V=run.V, SUB=SUB, PRECISION="ieee", BK=BK, BV=BV, num_warps=warps,
    )  # fmt: skip
    return states


def variants():
    """Both kernels in every structure at their largest tiles, for the ahead-of-time compile report."""
    for reverse in (False, True):
        for decayed in (False, True):
            name = "solve" + "_decayed" * decayed + "_reverse" * reverse
            for decay in DECAYS:
                tiles = dict.fromkeys((2, 4), solve_blocks(128, 128, decay))
                yield from variants_of(solve_kernel, name, tiles, {"REVERSE": reverse, "DECAYED": decayed}, [decay])
        carry = "carry" + "_reverse" * reverse
        tiles = {itemsize: carry_blocks(128, 128, itemsize) for itemsize in (2, 4)}
        yield from variants_of(carry_kernel, carry, tiles, {"REVERSE": reverse, "PRECISION": "ieee"})
