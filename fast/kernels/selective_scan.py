"""The kernel of Mamba: N states for every channel, h[d, n] = e^{delta[d] A[d, n]} h[d, n] + delta[d] x[d] B[n], read by C at once.

It is `channel_scan` with a second axis. A program owns a tile of channels with all their states, in registers, and walks over its tokens in
their order; of T D N states none but those at chunk boundaries are ever written, for outputs are read off on the way. Summaries and
boundaries are as there, and chunks as long (`channel_scan.chunk_of`).

Backward, a program goes through its chunk from the last token to the first and needs the state before each. It walks forward once and
leaves a mark every `block` tokens, then takes block by block, last first, walks it again and leaves every state: two square roots of the
chunk in a scratch of its own. Gradients of B and C are summed over tiles of channels, that of A over chunks, in PyTorch, in a fixed order.

Every exponent is delta A or A times a sum of deltas, at most 0. States and sums are float32; no atomics; packing as in `channel_scan`.
"""

import math

import torch
import triton
import triton.language as tl

from twofold.fast.kernels import channel_scan
from twofold.fast.kernels.chunk_table import tables
from twofold.fast.kernels.variant import Variant

__all__ = ["backward", "forward", "variants"]

STAGES = 4  # tokens that are loaded ahead


@triton.jit
def _row(base, t, stride, column, limit):
    """One token's numbers, 0 outside."""
    return tl.load(base + t * stride + column, mask=column < limit, other=0.0).to(tl.float32)


@triton.jit
def summaries_kernel(
    x, delta, A, w, totals, added, chunks, x_b, x_t, delta_b, delta_t, w_b, w_t, D, N, CHUNK,
    REVERSE: tl.constexpr, TILE: tl.constexpr, STATES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Each chunk's total log-decays, and the states behind it if it starts from nothing: x inputs, w what is written. Reverse: x are d
    outputs, w what is read, and the states are gradients."""
    program = tl.program_id(0).to(tl.int64)
    tile, chunk = program % tl.cdiv(D, TILE), program // tl.cdiv(D, TILE)
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK)
    channel, n = tile * TILE + tl.arange(0, TILE), tl.arange(0, STATES)
    place, inside = channel[:, None] * N + n[None, :], (channel < D)[:, None] & (n < N)[None, :]
    x += batch * x_b
    delta += batch * delta_b
    w += batch * w_b
    rate = tl.load(A + place, mask=inside, other=0.0).to(tl.float32)
    state = tl.zeros([TILE, STATES], tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for done in tl.range(0, end - start, num_stages=STAGES):
        t = end - 1 - done if REVERSE else start + done
        length, row = _row(delta, t, delta_t, channel, D), _row(x, t, x_t, channel, D)
        decay, column = tl.exp(length[:, None] * rate), _row(w, t, w_t, n, N)
        if REVERSE:
            state = decay * (state + row[:, None] * column[None, :])
        else:
            state = decay * state + (length * row)[:, None] * column[None, :]
        total += length
    tl.store(totals + chunk * D * N + place, total[:, None] * rate, mask=inside)
    tl.store(added + chunk * D * N + place, state, mask=inside)


@triton.jit
def outputs_kernel(
    x, delta, A, B, C, skip, y, states, ends, chunks, x_b, x_t, delta_b, delta_t, B_b, B_t, C_b, C_t, y_b, y_t, D, N, CHUNK,
    TILE: tl.constexpr, STATES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What the tokens of a chunk read, and apart from what others start with, the states behind the chunk."""
    program = tl.program_id(0).to(tl.int64)
    tile, chunk = program % tl.cdiv(D, TILE), program // tl.cdiv(D, TILE)
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end, slot = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK), tl.load(chunks + 4 * chunk + 3)
    channel, n = tile * TILE + tl.arange(0, TILE), tl.arange(0, STATES)
    place, inside = channel[:, None] * N + n[None, :], (channel < D)[:, None] & (n < N)[None, :]
    x += batch * x_b
    delta += batch * delta_b
    B += batch * B_b
    C += batch * C_b
    y += batch * y_b
    rate, direct = tl.load(A + place, mask=inside, other=0.0).to(tl.float32), _row(skip, 0, 0, channel, D)
    state = tl.load(states + slot * D * N + place, mask=inside, other=0.0)
    for done in tl.range(0, end - start, num_stages=STAGES):
        t = start + done
        length, row = _row(delta, t, delta_t, channel, D), _row(x, t, x_t, channel, D)
        state = tl.exp(length[:, None] * rate) * state + (length * row)[:, None] * _row(B, t, B_t, n, N)[None, :]
        output = tl.sum(state * _row(C, t, C_t, n, N)[None, :], 1) + direct * row
        tl.store(y + t * y_t + channel, output.to(y.dtype.element_ty), mask=channel < D)
    if end > start:  # the slots of spare rows may be others'
        tl.store(ends + (slot + 1) * D * N + place, state, mask=inside)


@triton.jit
def gradients_kernel(
    x, delta, A, B, C, skip, dy, states, dstates, ends, scratch, dx, ddelta, dA, dB, dC, chunks,
    x_b, x_t, delta_b, delta_t, B_b, B_t, C_b, C_t, dy_b, dy_t, dx_b, dx_t, w_b, w_t, w_tile, D, N, CHUNK, BLOCK, MARKS,
    TILE: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk and tile of channels, and of the states before it. dx and ddelta share their strides, dB and dC theirs.

    Loads do not run ahead here: registers are full, and the states that are read were written just before.
    """
    program = tl.program_id(0).to(tl.int64)
    tile, chunk = program % tl.cdiv(D, TILE), program // tl.cdiv(D, TILE)
    batch, start = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1)
    end, slot = tl.minimum(tl.load(chunks + 4 * chunk + 2), start + CHUNK), tl.load(chunks + 4 * chunk + 3)
    channel, n = tile * TILE + tl.arange(0, TILE), tl.arange(0, STATES)
    place, inside = channel[:, None] * N + n[None, :], (channel < D)[:, None] & (n < N)[None, :]
    x += batch * x_b
    delta += batch * delta_b
    B += batch * B_b
    C += batch * C_b
    dy += batch * dy_b
    dx += batch * dx_b
    ddelta += batch * dx_b
    dB += batch * w_b + tile * w_tile
    dC += batch * w_b + tile * w_tile
    own = tl.arange(0, TILE)[:, None] * STATES + n[None, :]
    marks = scratch + program * (MARKS + BLOCK) * TILE * STATES + own
    held = scratch + (program * (MARKS + BLOCK) + MARKS) * TILE * STATES + own
    rate, direct = tl.load(A + place, mask=inside, other=0.0).to(tl.float32), _row(skip, 0, 0, channel, D)

    state = tl.load(states + slot * D * N + place, mask=inside, other=0.0)
    count = tl.cdiv(end - start, BLOCK)
    for block in range(0, count):
        tl.store(marks + block * TILE * STATES, state)
        first = start + block * BLOCK
        for t in range(first, tl.minimum(first + BLOCK, end)):
            length, row = _row(delta, t, delta_t, channel, D), _row(x, t, x_t, channel, D)
            state = tl.exp(length[:, None] * rate) * state + (length * row)[:, None] * _row(B, t, B_t, n, N)[None, :]

    dstate = tl.load(dstates + (slot + 1) * D * N + place, mask=inside, other=0.0)
    drate = tl.zeros([TILE, STATES], tl.float32)
    for done in range(0, count):
        first = start + (count - 1 - done) * BLOCK
        last = tl.minimum(first + BLOCK, end)
        tl.debug_barrier()  # what one thread wrote another may read
        state = tl.load(marks + (count - 1 - done) * TILE * STATES)
        for t in range(first, last):
            tl.store(held + (t - first) * TILE * STATES, state)
            length, row = _row(delta, t, delta_t, channel, D), _row(x, t, x_t, channel, D)
            state = tl.exp(length[:, None] * rate) * state + (length * row)[:, None] * _row(B, t, B_t, n, N)[None, :]
        tl.debug_barrier()
        for back in range(0, last - first):
            t = last - 1 - back
            length, row, drow = _row(delta, t, delta_t, channel, D), _row(x, t, x_t, channel, D), _row(dy, t, dy_t, channel, D)
            write, read, scaled = _row(B, t, B_t, n, N), _row(C, t, C_t, n, N), length * row
            decay = tl.exp(length[:, None] * rate)
            kept = decay * tl.load(held + (t - first) * TILE * STATES)
            dstate += drow[:, None] * read[None, :]
            tl.store(dC + t * w_t + n, tl.sum((kept + scaled[:, None] * write[None, :]) * drow[:, None], 0), mask=n < N)
            tl.store(dB + t * w_t + n, tl.sum(dstate * scaled[:, None], 0), mask=n < N)
            dscaled, dlog = tl.sum(dstate * write[None, :], 1), dstate * kept
            drate += dlog * length[:, None]
            tl.store(dx + t * dx_t + channel, (length * dscaled + direct * drow).to(dx.dtype.element_ty), mask=channel < D)
            tl.store(ddelta + t * dx_t + channel, row * dscaled + tl.sum(dlog * rate, 1), mask=channel < D)
            dstate *= decay
    tl.store(dA + chunk * D * N + place, drate, mask=inside)
    if end > start:
        tl.store(ends + slot * D * N + place, dstate, mask=inside)


def tiles(kernel, N: int) -> dict[str, int]:
    """Channels and states of a program, and its warps: a pure function of the number of states. Gradients need twice the registers."""
    states = triton.next_power_of_2(N)
    tile = max(1, min(32, 2048 // states))
    return {"TILE": tile, "STATES": states, "num_warps": max(1, min(4, tile * states // (256 if kernel is gradients_kernel else 512)))}


def forward(x, delta, A, B, C, D, S0, cu_seqlens, chunk: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, D)` and final states `(N, D, states)`; A and D contiguous, other innermost axes too."""
    with torch.cuda.device_of(x):
        run = _Run(x, delta, A, S0, cu_seqlens, chunk)
        states = run.states(x, B, S0, reverse=False)
        y, ends = torch.empty(x.shape, dtype=x.dtype, device=x.device), states.clone()
        strides = (s for tensor in (x, delta, B, C, y) for s in tensor.stride()[:2])
        run.launch(outputs_kernel, x, delta, A, B, C, D, y, states, ends, run.chunks, *strides, STAGES=STAGES)
        return y, ends[run.final].view(S0.shape)


def backward(x, delta, A, B, C, D, S0, cu_seqlens, dy, dS, chunk: int | None) -> tuple[torch.Tensor, ...]:
    """dx, ddelta, dA, dB, dC, dD and dS0; those of x, B and C in their format, the others in float32."""
    with torch.cuda.device_of(x):
        run = _Run(x, delta, A, S0, cu_seqlens, chunk)
        states, dstates = run.states(x, B, S0, reverse=False), run.states(dy, C, dS, reverse=True)
        make = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=x.device)
        dx, ddelta = make(*x.shape, dtype=x.dtype), make(*x.shape)
        dB, dC = make(2, run.tiles, *B.shape)
        dA, ends = make(len(run.chunks), *A.shape), dstates.clone()
        longest = min(run.chunk, x.shape[1])
        block = math.isqrt(longest) + 1
        marks = -(-longest // block)
        shape = tiles(gradients_kernel, A.shape[1])
        scratch = make(run.tiles * len(run.chunks), marks + block, shape["TILE"], shape["STATES"])
        strides = (s for tensor in (x, delta, B, C, dy, dx) for s in tensor.stride()[:2])
        gradients = ends, scratch, dx, ddelta, dA, dB, dC
        args = x, delta, A, B, C, D, dy, states, dstates, *gradients, run.chunks, *strides, *dB.stride()[1:3], dB.stride(0)
        run.launch(gradients_kernel, *args, constants=(block, marks))
        dB, dC = dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype)
        dD = (dy.float() * x.float()).sum((0, 1))
        return dx, ddelta, dA.sum(0), dB, dC, dD, ends[run.sequences[:, 3]].view(S0.shape)


class _Run:
    """What the launches of one call share."""

    def __init__(self, x, delta, A, S0, cu_seqlens, chunk):
        batch, length, channels = x.shape
        self.delta, self.A = delta, A
        self.tiles = triton.cdiv(channels, tiles(outputs_kernel, A.shape[1])["TILE"])
        self.chunk = chunk or channel_scan.chunk_of(batch * length, length, len(S0), self.tiles * channel_scan.TILE)
        self.whole = self.chunk >= length
        self.sequences, self.chunks, self.final = tables(batch, length, cu_seqlens, self.chunk, x.device)

    def states(self, x, w, first, reverse):
        """The states that chunks start with: of whole sequences what is given, else by both levels."""
        size, first = self.A.numel(), first.reshape(len(first), -1)
        states = torch.empty((len(self.chunks) + len(self.sequences), size), dtype=torch.float32, device=x.device)
        if self.whole:
            states[self.final if reverse else self.sequences[:, 3]] = first
            return states
        totals, added = torch.empty((2, len(self.chunks), size), dtype=torch.float32, device=x.device)
        strides = *x.stride()[:2], *self.delta.stride()[:2], *w.stride()[:2]
        self.launch(summaries_kernel, x, self.delta, self.A, w, totals, added, self.chunks, *strides, REVERSE=reverse, STAGES=STAGES)
        channel_scan.boundaries(totals, added, first, states, self.sequences, self.chunk, reverse)
        return states

    def launch(self, kernel, *args, constants=(), **more):
        if programs := len(self.chunks) * self.tiles:
            kernel[programs,](*args, *self.A.shape, self.chunk, *constants, **more, **tiles(kernel, self.A.shape[1]))


def variants():
    """Every kernel in both directions and formats with 16 states, as released models have, and with 64."""
    for kernel, direction in (
        (summaries_kernel, {"REVERSE": False}), (summaries_kernel, {"REVERSE": True}), (outputs_kernel, {}), (gradients_kernel, {}),
    ):  # fmt: skip
        for states, element in ((16, "bf16"), (16, "fp32"), (64, "bf16"), (64, "fp32")):
            shape = tiles(kernel, states)
            warps = shape.pop("num_warps")
            constants = direction | shape | {"STAGES": STAGES}
            tensors = dict.fromkeys(("x", "w", "B", "C", "y", "dy", "dx"), f"*{element}") | {"chunks": "*i64"}
            tensors |= dict.fromkeys(("delta", "A", "skip", "totals", "added", "states", "dstates", "ends", "scratch"), "*fp32")
            tensors |= dict.fromkeys(("ddelta", "dA", "dB", "dC"), "*fp32")
            names = kernel.arg_names
            yield Variant(
                name=f"{kernel.__name__.removesuffix('_kernel')}{'_reverse' if any(direction.values()) else ''}-{states}-{element}",
                kernel=kernel,
                signature={n: "constexpr" if n in constants else tensors.get(n, "i32") for n in names},
                constexprs={n: value for n, value in constants.items() if n in names},
                options={"num_warps": warps},
                divisible=tuple(n for n in names if n not in constants and n not in ("BLOCK", "MARKS")),
            )
