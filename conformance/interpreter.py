"""Triton's interpreter as evidence: GPU arithmetic, and a sanitizer for memory, races and program order.

Without a GPU the kernels run in Triton's interpreter (`TRITON_INTERPRET=1`). As it comes, it is silently wrong for bfloat16 and
8-bit floats (see `interpreter_numbers.py`) and kinder than a GPU: a masked lane without `other=` reads 0, a stray access reads whatever
lies there, programs run one after the other. `install()` mends the numbers and makes each of these kindnesses an error or a NaN:

- `poison`: a masked lane of a load without `other=` holds NaN (the largest value for integers).
- `bounds`: an access outside the arguments raises `MemoryFault`. An argument is the view that was passed, not the storage around it.
- `races`: two programs that touch one address, one of them writing, raise `Race`; so do two lanes of one store that disagree.
- `shuffle`: programs run in a random order with this seed (None: in order).
- `tf32`: matrix products of float32 with `input_precision="tf32"` round their operands; off, they are exact to float32.

Two limits, both on the side of silence. A launch that uses atomics may order its programs by them: from its first atomic on, races are not
judged. A launch that turns integers into pointers (a pointer table) reaches memory no argument names: there, stray accesses pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl

from twofold.conformance import interpreter_language, interpreter_memory, interpreter_numbers
from twofold.conformance.interpreter_memory import MemoryFault, Settings, settings
from twofold.conformance.interpreter_races import Race

__all__ = ["MemoryFault", "Race", "install", "self_test", "without"]

_installed = False


def install(tf32: bool = False, poison: bool = True, bounds: bool = True, races: bool = True, shuffle: int | None = 0) -> None:
    """Mend the interpreter, for the whole process. Call it again to change the switches."""
    global _installed
    if not _interpreting():
        raise RuntimeError("the interpreter is off: set TRITON_INTERPRET=1 before Triton is imported")
    settings.__dict__.update(tf32=tf32, poison=poison, bounds=bounds, races=races, shuffle=shuffle)
    if not _installed:
        interpreter_numbers.install(settings)
        interpreter_language.install()
        interpreter_memory.install()
        _installed = True


@contextmanager
def without(*checks: str) -> Iterator[None]:
    """Switch checks off inside the `with`: "poison", "bounds", "races", "shuffle"."""
    before = dict(settings.__dict__)
    for check in checks:
        if check not in ("poison", "bounds", "races", "shuffle"):
            raise ValueError(f"no check named {check!r}")
        setattr(settings, check, None if check == "shuffle" else False)
    try:
        yield
    finally:
        settings.__dict__.update(before)


def _interpreting() -> bool:
    return bool(triton.knobs.runtime.interpret)


def self_test() -> None:
    """Raise "interpreter changed" unless a few tiny kernels show every mend and every check at work."""
    broken = [what for what, holds in _evidence() if not holds]
    if broken:
        found = "; ".join(broken)
        raise RuntimeError(f"interpreter changed: with Triton {triton.__version__}, {found}. Its runs prove nothing until this is mended")


def _evidence() -> Iterator[tuple[str, bool]]:
    before = dict(settings.__dict__)
    settings.__dict__.update(Settings().__dict__)
    try:
        x = torch.tensor([1.0, 1.0078125, -3.0, 2.5] * 64, dtype=torch.bfloat16)
        y = x.roll(1)
        out = torch.empty(3, 256, dtype=torch.bfloat16)
        _bfloat16_sample[(1,)](x, y, out)
        yield "bfloat16 arithmetic does not round like the hardware", torch.equal(out[0], x * y + x)
        yield "bfloat16 comparisons look at bit patterns", torch.equal(out[1], torch.maximum(x, y))
        square = x.view(16, 16).float()
        yield "bfloat16 matrix products multiply bit patterns", torch.equal(out[2].view(16, 16), (square @ square).bfloat16())
        row = torch.ones(8)
        _copy[(1,)](row, masked := torch.empty(8), 8, 4, 8)
        yield "masked lanes without other= are not poisoned", bool(masked[4:].isnan().all()) and torch.equal(masked[:4], row[:4])
        _sum_to[(1,)](row, total := torch.empty(1), 5)
        yield "a range over a bound known only at run time does not run", bool(total == 5)
        yield "a read out of bounds passes", _raises(MemoryFault, row[:6], torch.empty(8), 8, 8, 8)
        yield "a write out of bounds passes", _raises(MemoryFault, row, torch.empty(9)[:6], 8, 8, 8)
        yield "a race passes", _raises(Race, row, torch.empty(8), 0, 8, 8, programs=2)
        order = torch.full((64,), -1, dtype=torch.int32)
        with without("races"):
            _arrival[(64,)](order, torch.zeros(1, dtype=torch.int32))
        yield "programs are not shuffled", order.tolist() != list(range(64)) and sorted(order.tolist()) == list(range(64))
    finally:
        settings.__dict__.update(before)


def _raises(error: type[Exception], x: torch.Tensor, out: torch.Tensor, *sizes: int, programs: int = 1) -> bool:
    try:
        _copy[(programs,)](x, out, *sizes)
    except error:
        return True
    return False


@triton.jit
def _bfloat16_sample(x_ptr, y_ptr, out_ptr):
    i = tl.arange(0, 256)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x * y + x)
    tl.store(out_ptr + 256 + i, tl.where(x > y, x, y))
    square = tl.reshape(x, (16, 16))
    tl.store(out_ptr + 512 + i, tl.reshape(tl.dot(square, square), (256,)).to(tl.bfloat16))


@triton.jit
def _copy(x_ptr, out_ptr, stride, valid, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + tl.program_id(0) * stride + i, tl.load(x_ptr + i, mask=i < valid))


@triton.jit
def _sum_to(x_ptr, out_ptr, count):
    total = tl.load(x_ptr) * 0
    for i in range(tl.load(x_ptr).to(tl.int32) * count):
        total += tl.load(x_ptr + i)
    tl.store(out_ptr, total)


@triton.jit
def _arrival(order_ptr, clock_ptr):
    tl.store(order_ptr + tl.program_id(0), tl.atomic_add(clock_ptr, 1))
