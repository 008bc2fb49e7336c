"""The kernel of recurrences whose channels never meet: h_t = e^{g_t} h_{t-1} + x_t, one number per channel.

A token costs one exponential and one multiplication with an addition, and moves two numbers in and one out, so memory is what such a
kernel waits for. A program owns a tile of channels, one warp wide, and walks over its tokens in their order, exactly as the definition
does; its loads run a few tokens ahead of it. No tree of partial results is built inside a program: it would move the same bytes.

Where sequences and channels are too few to fill a GPU (`chunk_of`), sequences are cut into chunks and the scan has two levels:

- `summaries_kernel`: each chunk as a map h -> e^{total} h + added, all chunks at once;
- `boundaries_kernel`: the states between chunks, one program per sequence and tile, a few multiplications per chunk;
- `outputs_kernel`: every chunk again, from the state before it. `gradients_kernel` is the same back in time.

Back in time the same recurrence carries dh: dh_t = do_t + e^{g_{t+1}} dh_{t+1}, dx_t = dh_t, dg_t = e^{g_t} dh_t h_{t-1}. Its states are
those before a token, e^{g_t} dh_t. The h_{t-1} are computed again rather than kept.

Every exponent is a log-decay or a sum of them, so at most 0; nothing is divided or subtracted, and a log-decay of -inf forgets exactly.
Sequences packed along T share a launch by the table of `chunk_table.py`; its spare rows begin where they end. States are float32.
"""

import torch
import triton
import triton.language as tl

from twofold.fast.kernels.chunk_table import tables
from twofold.fast.kernels.variant import Variant

__all__ = ["boundaries", "backward", "chunk_of", "forward", "variants"]

TILE = 128  # channels per program: 16 bytes of float32 for each thread of one warp
LEAST = 64  # tokens per chunk: below that, summaries and boundaries would be more than a fraction of what moves
PROGRAMS = 2048  # a dozen or more warps for each multiprocessor of a large GPU
STAGES = 4  # tokens that are loaded ahead


@triton.jit
def summaries_kernel(
    x, g, totals, added, chunks, x_b, x_t, g_b, g_t, CHANNELS, CHUNK, REVERSE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr
):
    """Each chunk's sum of log-decays, and the state behind it if it starts from nothing. Reverse: x are d outputs."""
    program = tl.program_id(0).to(tl.int64)
    tile, chunk = program % tl.cdiv(CHANNELS, TILE), program // tl.cdiv(CHANNELS, TILE)
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < CHANNELS
    x += batch * x_b + column
    g += batch * g_b + column
    state = tl.zeros([TILE], tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for done in tl.range(0, end - start, num_stages=STAGES):
        t = end - 1 - done if REVERSE else start + done
        decay = tl.load(g + t * g_t, mask=inside, other=0.0).to(tl.float32)
        write = tl.load(x + t * x_t, mask=inside, other=0.0).to(tl.float32)
        if REVERSE:
            state = tl.exp(decay) * (state + write)
        else:
            state = tl.exp(decay) * state + write
        total += decay
    tl.store(totals + chunk * CHANNELS + column, total, mask=inside)
    tl.store(added + chunk * CHANNELS + column, state, mask=inside)


@triton.jit
def boundaries_kernel(
    totals, added, first, states, sequences, CHANNELS, CHUNK, REVERSE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr
):
    """The states at all chunk boundaries of a sequence, in either direction."""
    program = tl.program_id(0).to(tl.int64)
    tile, sequence = program % tl.cdiv(CHANNELS, TILE), program // tl.cdiv(CHANNELS, TILE)
    begin, stop = tl.load(sequences + 4 * sequence + 1), tl.load(sequences + 4 * sequence + 2)
    slot = tl.load(sequences + 4 * sequence + 3)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < CHANNELS
    count = tl.cdiv(stop - begin, CHUNK)
    chunk = slot - sequence  # of the sequence's first: a sequence of c chunks has c + 1 boundaries
    state = tl.load(first + sequence * CHANNELS + column, mask=inside, other=0.0)
    tl.store(states + (slot + (count if REVERSE else 0)) * CHANNELS + column, state, mask=inside)
    for done in tl.range(0, count, num_stages=STAGES):
        nth = count - 1 - done if REVERSE else done
        total = tl.load(totals + (chunk + nth) * CHANNELS + column, mask=inside, other=0.0)
        state = tl.exp(total) * state + tl.load(added + (chunk + nth) * CHANNELS + column, mask=inside, other=0.0)
        tl.store(states + (slot + (nth if REVERSE else nth + 1)) * CHANNELS + column, state, mask=inside)


@triton.jit
def outputs_kernel(
    x, g, o, states, ends, chunks, x_b, x_t, g_b, g_t, o_b, o_t, CHANNELS, CHUNK,
    BEFORE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The states after a chunk's tokens (before them, for gradients), and apart from what others start with, the state behind the chunk."""
    program = tl.program_id(0).to(tl.int64)
    tile, chunk = program % tl.cdiv(CHANNELS, TILE), program // tl.cdiv(CHANNELS, TILE)
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end, slot = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK), tl.load(chunks + 4 * chunk + 3)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < CHANNELS
    x += batch * x_b + column
    g += batch * g_b + column
    o += batch * o_b + column
    state = tl.load(states + slot * CHANNELS + column, mask=inside, other=0.0)
    for done in tl.range(0, end - start, num_stages=STAGES):
        t = start + done
        decay = tl.load(g + t * g_t, mask=inside, other=0.0).to(tl.float32)
        write = tl.load(x + t * x_t, mask=inside, other=0.0).to(tl.float32)
        if BEFORE:
            tl.store(o + t * o_t, state.to(o.dtype.element_ty), mask=inside)
        state = tl.exp(decay) * state + write
        if not BEFORE:
            tl.store(o + t * o_t, state.to(o.dtype.element_ty), mask=inside)
    if end > start:  # the slots of spare rows may be others'
        tl.store(ends + (slot + 1) * CHANNELS + column, state, mask=inside)


@triton.jit
def gradients_kernel(
    do, g, before, dx, dg, states, ends, chunks, do_b, do_t, g_b, g_t, before_b, before_t, dx_b, dx_t, dg_b, dg_t, CHANNELS, CHUNK,
    TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx and dg of one chunk, from its last token to its first, and the gradient of the state before it."""
    program = tl.program_id(0).to(tl.int64)
    tile, chunk = program % tl.cdiv(CHANNELS, TILE), program // tl.cdiv(CHANNELS, TILE)
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end, slot = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK), tl.load(chunks + 4 * chunk + 3)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < CHANNELS
    do += batch * do_b + column
    g += batch * g_b + column
    before += batch * before_b + column
    dx += batch * dx_b + column
    dg += batch * dg_b + column
    state = tl.load(states + (slot + 1) * CHANNELS + column, mask=inside, other=0.0)
    for done in tl.range(0, end - start, num_stages=STAGES):
        t = end - 1 - done
        decay = tl.load(g + t * g_t, mask=inside, other=0.0).to(tl.float32)
        held = tl.load(before + t * before_t, mask=inside, other=0.0)
        dh = state + tl.load(do + t * do_t, mask=inside, other=0.0).to(tl.float32)
        state = tl.exp(decay) * dh
        tl.store(dx + t * dx_t, dh.to(dx.dtype.element_ty), mask=inside)
        tl.store(dg + t * dg_t, state * held, mask=inside)
    if end > start:
        tl.store(ends + slot * CHANNELS + column, state, mask=inside)


def chunk_of(tokens: int, length: int, sequences: int, channels: int) -> int:
    """Tokens per program: whole sequences where those and their tiles fill a GPU, else as few as fill it, but not fewer than `LEAST`."""
    chunk = max(LEAST, triton.next_power_of_2(length))
    while chunk > LEAST and max(sequences, tokens // chunk) * triton.cdiv(channels, TILE) < PROGRAMS:
        chunk //= 2
    return chunk


def boundaries(totals, added, first, states, sequences, chunk: int, reverse: bool) -> None:
    """Fill `states`, `(slots, channels)`, from the summaries of all chunks."""
    channels = states.shape[1]
    if programs := len(sequences) * triton.cdiv(channels, TILE):
        args = totals, added, first, states, sequences, channels, chunk
        boundaries_kernel[programs,](*args, REVERSE=reverse, TILE=TILE, STAGES=STAGES, num_warps=1)


def forward(x, g, S0, cu_seqlens, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, D)` and final states `(N, D)`; innermost axes contiguous."""
    with torch.cuda.device_of(x):
        run = _Run(x, g, S0, cu_seqlens, chunk)
        o = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        return o, run.outputs(x, o, S0, before=False)[run.final]


def backward(x, g, S0, cu_seqlens, do, dS, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, dg (float32) and dS0."""
    with torch.cuda.device_of(x):
        run = _Run(x, g, S0, cu_seqlens, chunk)
        before = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        run.outputs(x, before, S0, before=True)
        dx, dg = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(before)
        return dx, dg, run.gradients(do, before, dx, dg, dS)[run.sequences[:, 3]]


class _Run:
    """What the launches of one call share."""

    def __init__(self, x, g, S0, cu_seqlens, chunk):
        batch, length, channels = x.shape
        self.chunk = chunk or chunk_of(batch * length, length, len(S0), channels)
        self.whole = self.chunk >= length
        self.sequences, self.chunks, self.final = tables(batch, length, cu_seqlens, self.chunk, x.device)
        self.g, self.channels = g, channels

    def outputs(self, x, o, first, before):
        states = self._states(x, first, reverse=False)
        ends = states.clone()
        args = x, self.g, o, states, ends, self.chunks, *x.stride()[:2], *self.g.stride()[:2], *o.stride()[:2]
        self._launch(outputs_kernel, *args, BEFORE=before)
        return ends

    def gradients(self, do, before, dx, dg, last):
        states = self._states(do, last, reverse=True)
        ends = states.clone()
        strides = (stride for tensor in (do, self.g, before, dx, dg) for stride in tensor.stride()[:2])
        self._launch(gradients_kernel, do, self.g, before, dx, dg, states, ends, self.chunks, *strides)
        return ends

    def _states(self, x, first, reverse):
        """The states that chunks start with: of whole sequences what is given, else by both levels."""
        states = torch.empty((len(self.chunks) + len(self.sequences), self.channels), dtype=torch.float32, device=x.device)
        if self.whole:
            states[self.final if reverse else self.sequences[:, 3]] = first
            return states
        totals, added = torch.empty((2, len(self.chunks), self.channels), dtype=torch.float32, device=x.device)
        args = x, self.g, totals, added, self.chunks, *x.stride()[:2], *self.g.stride()[:2]
        self._launch(summaries_kernel, *args, REVERSE=reverse)
        boundaries(totals, added, first, states, self.sequences, self.chunk, reverse)
        return states

    def _launch(self, kernel, *args, **constants):
        if programs := len(self.chunks) * triton.cdiv(self.channels, TILE):
            kernel[programs,](*args, self.channels, self.chunk, **constants, TILE=TILE, STAGES=STAGES, num_warps=1)


def variants():
    """Every kernel in both directions and formats, for the ahead-of-time compile report; float16 takes what bfloat16 takes."""
    directions = (
        (summaries_kernel, {"REVERSE": False}), (summaries_kernel, {"REVERSE": True}),
        (boundaries_kernel, {"REVERSE": False}), (boundaries_kernel, {"REVERSE": True}),
        (outputs_kernel, {"BEFORE": False}), (outputs_kernel, {"BEFORE": True}), (gradients_kernel, {}),
    )  # fmt: skip
    for kernel, direction in directions:
        for element in ("fp32",) if kernel is boundaries_kernel else ("bf16", "fp32"):
            constants = direction | {"TILE": TILE, "STAGES": STAGES}
            tensors = dict.fromkeys(("x", "do", "dx"), f"*{element}") | dict.fromkeys(("sequences", "chunks"), "*i64")
            tensors |= dict.fromkeys(("g", "dg", "before", "totals", "added", "first", "states", "ends"), "*fp32")
            tensors["o"] = "*fp32" if direction.get("BEFORE") else f"*{element}"
            names = kernel.arg_names
            yield Variant(
                name=f"{kernel.__name__.removesuffix('_kernel')}{'_reverse' if any(direction.values()) else ''}-{element}",
                kernel=kernel,
                signature={n: "constexpr" if n in constants else tensors.get(n, "i32") for n in names},
                constexprs={n: value for n, value in constants.items() if n in names},
                options={"num_warps": 1},
                divisible=tuple(n for n in names if n not in constants),
            )
