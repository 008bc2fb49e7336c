"""A sanitizer inside Triton's interpreter: poisoned lanes, bounds, and programs in random order; races are followed elsewhere.

`interpreter.py` tells what each check means and where it is silent.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter as triton_interpreter

from twofold.conformance.interpreter_races import Race, Region, regions

__all__ = ["MemoryFault", "Settings", "install", "settings"]

TensorHandle = triton_interpreter.TensorHandle
Builder = triton_interpreter.InterpreterBuilder


class MemoryFault(RuntimeError):
    """A lane that was not masked off touched memory outside every argument."""


@dataclass
class Settings:
    tf32: bool = False
    poison: bool = True
    bounds: bool = True
    races: bool = True
    shuffle: int | None = 0


settings = Settings()


def install() -> None:
    """Put the checks in place. They read `settings` at every access."""
    _guard_memory()
    _guard_launches()
    _patch_language_once()


@dataclass
class Launch:
    """What is known of the launch that runs now."""

    regions: list[Region] = field(default_factory=list)
    order: list[int] | None = None
    program: int = 0
    reaches_beyond: bool = False  # integers became pointers: addresses outside the arguments may be meant
    synchronizes: bool = False  # atomics may order the programs
    other_given: bool = False  # the load under way has an `other=`
    patched: set[frozenset[int]] = field(default_factory=set)  # the language modules that device functions of this launch have seen patched

    def region_of(self, low: int, high: int) -> Region | None:
        for region in self.regions:
            if any(first <= low and high <= last for first, last, _ in region.views):
                return region
        return None


_launch: Launch | None = None


def _guard_memory() -> None:
    """Every load, store and atomic passes a check of its addresses first. Block pointers and descriptors end here too."""
    load, store = Builder.create_masked_load, Builder.create_masked_store
    exchange, update = Builder.create_atomic_cas, Builder.create_atomic_rmw
    to_pointer, semantic_load = Builder.create_int_to_ptr, TritonSemantic.load

    def semantic(self: Any, pointer: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        if _launch is not None:  # Triton drops an `other` that is false, and a scalar 0 is false in the interpreter
            _launch.other_given = other is not None
        return semantic_load(self, pointer, mask, other, *rest, **named)

    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        mask = _handle(mask)
        _visit(pointers, mask, writes=False)
        forgotten = other is None and not (_launch is not None and _launch.other_given)
        if forgotten and settings.poison and not mask.data.all():
            kind = pointers.get_element_ty()
            other = TensorHandle(np.full(pointers.data.shape, _poison(kind), triton_interpreter._get_np_dtype(kind)), kind)
        return load(self, pointers, mask, other, *rest, **named)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        mask = _handle(mask)
        _visit(pointers, mask, writes=True, value=value)
        return store(self, pointers, value, mask, *rest, **named)

    def atomic(original: Any, mask_at: int | None) -> Any:
        def create_atomic(self: Any, *operands: Any) -> Any:
            if _launch is not None:
                _launch.synchronizes = True
            pointers = operands[0] if mask_at is None else operands[1]
            mask = TensorHandle(np.ones(pointers.data.shape, bool), tl.int1) if mask_at is None else operands[mask_at]
            _visit(pointers, mask, writes=True)
            return original(self, *operands)

        return create_atomic

    def create_int_to_ptr(self: Any, *operands: Any) -> Any:
        if _launch is not None:
            _launch.reaches_beyond = True
        return to_pointer(self, *operands)

    Builder.create_masked_load, Builder.create_masked_store = create_masked_load, create_masked_store
    Builder.create_atomic_cas, Builder.create_atomic_rmw = atomic(exchange, None), atomic(update, 3)
    Builder.create_int_to_ptr, TritonSemantic.load = create_int_to_ptr, semantic


def _handle(mask: Any) -> Any:
    """Block pointers of Triton 3.6 hand over a bare array."""
    return mask if isinstance(mask, TensorHandle) else TensorHandle(np.asarray(mask), tl.int1)


def _poison(kind: Any) -> Any:
    numpy_type = triton_interpreter._get_np_dtype(kind)
    if kind == tl.bfloat16:
        return numpy_type.type(0x7FC0)
    if kind.is_floating() and kind.primitive_bitwidth == 8:
        return numpy_type.type(0x80 if kind in (tl.float8e4b8, tl.float8e5b16) else 0x7F)
    if kind.is_floating():
        return numpy_type.type(np.nan)
    return numpy_type.type(True) if numpy_type == np.bool_ else np.iinfo(numpy_type).max


def _visit(pointers: Any, mask: Any, writes: bool, value: Any = None) -> None:
    """Check the addresses that the unmasked lanes touch."""
    if _launch is None or not (settings.bounds or settings.races):
        return
    addresses = pointers.data if mask.data.all() else np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
    if addresses.size == 0:
        return
    size = triton_interpreter._get_np_dtype(pointers.get_element_ty()).itemsize
    low, high = int(addresses.min()), int(addresses.max()) + size
    region = _launch.region_of(low, high)
    if region is not None:  # the usual case: all lanes inside one argument
        if settings.races and not _launch.synchronizes:
            lanes = None if value is None else _lanes(value.data, mask.data)
            region.visit(addresses.reshape(-1), _launch.program, writes, lanes)
        return
    inside = np.zeros(addresses.shape, bool)
    for first, last, _ in (view for each in _launch.regions for view in each.views):
        inside |= (addresses >= first) & (addresses + np.uint64(size) <= last)
    if settings.bounds and not inside.all() and not _launch.reaches_beyond:
        stray = int(addresses[~inside].reshape(-1)[0])
        count, verb = int((~inside).sum()), "write" if writes else "read"
        raise MemoryFault(f"{count} of {addresses.size} unmasked lanes {verb} outside every argument: {_nearest(stray)}")


def _lanes(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    values = np.broadcast_to(values, mask.shape)
    return values.reshape(-1) if mask.all() else values[mask]


def _nearest(address: int) -> str:
    """Where a stray address lies, in the words of the kernel's arguments."""
    assert _launch is not None
    views = [view for region in _launch.regions for view in region.views]
    if not views:
        return "the kernel was given no tensor that holds anything"
    first, last, name = min(views, key=lambda view: min(abs(address - view[0]), abs(address - view[1])))
    where = f"{first - address} bytes before the start" if address < first else f"{address - last} bytes past the end"
    return f"the first lies {where} of {name} (program {triton_interpreter.interpreter_builder.grid_idx})"


def _patch_language_once() -> None:
    """Triton patches its language anew for every call of a device function; once per launch is enough, and takes a quarter off the time."""
    patch = triton_interpreter._patch_lang
    modules: dict[Any, frozenset[int]] = {}

    def _patch_lang(function: Any) -> Any:
        if function not in modules:
            modules[function] = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if _launch is not None:
            if modules[function] in _launch.patched:
                return None  # nobody undoes the patch of a device function; only the launch's own, the first, is undone
            _launch.patched.add(modules[function])
        return patch(function)

    triton_interpreter._patch_lang = _patch_lang


def _guard_launches() -> None:
    """Learn the arguments of every launch, and permute its programs."""
    Executor = triton_interpreter.GridExecutor
    call, to_host = Executor.__call__, Executor._init_args_hst
    set_grid, set_program = Builder.set_grid_dim, Builder.set_grid_idx

    def __call__(self: Any, *arguments: Any, **named: Any) -> Any:
        global _launch
        _launch = Launch()
        try:
            with np.errstate(all="ignore"):  # a GPU overflows, divides by zero and wraps in silence
                return call(self, *arguments, **named)
        except triton_interpreter.InterpreterError as error:
            cause: BaseException | None = error
            while cause is not None:  # our own findings come out as themselves
                if isinstance(cause, (MemoryFault, Race)):
                    raise cause from None
                cause = cause.__cause__
            raise
        finally:
            _launch = None

    def _init_args_hst(self: Any, arguments: Any, named: Any) -> Any:
        host, named_host = to_host(self, arguments, named)
        if _launch is not None:
            _launch.regions = regions([*zip(self.arg_names, host), *named_host.items()])
        return host, named_host

    def set_grid_dim(self: Any, *grid: int) -> None:
        set_grid(self, *grid)
        if _launch is not None and settings.shuffle is not None:
            _launch.order = list(range(int(np.prod(grid))))
            random.Random(settings.shuffle).shuffle(_launch.order)

    def set_grid_idx(self: Any, x: int, y: int, z: int) -> None:
        if _launch is not None:
            _, ny, nz = self.grid_dim
            turn = (x * ny + y) * nz + z
            chosen = turn if _launch.order is None else _launch.order[turn]
            x, y, z = chosen // (ny * nz), chosen // nz % ny, chosen % nz
            _launch.program = chosen + 1  # 0 is nobody
        set_program(self, x, y, z)

    Executor.__call__, Executor._init_args_hst = __call__, _init_args_hst
    Builder.set_grid_dim, Builder.set_grid_idx = set_grid_dim, set_grid_idx
