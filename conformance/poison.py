"""Memory that punishes: canaries around what must not be written, NaN in what must not be read, garbage in what was never set.

    with guarded(out) as inside:                 # the same tensor, canaries on both sides of its storage
        kernel(x, inside)                        # leaving the block checks them

    with poisoned_empty():                       # torch.empty gives NaN (the largest integer), not whatever lay there
        result = forward(x)

    forward(nan_outside(cache, valid))           # NaN wherever `valid` is false
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["guarded", "nan_outside", "poison_of", "poisoned_empty"]

MARGIN = 1024  # bytes of canary on either side
CANARY = 0xA5  # as a byte; as bfloat16 or float32 a small negative number that no test expects


def poison_of(dtype: torch.dtype) -> float | int | bool:
    """What a value must be so that reading it shows: NaN, or the largest integer."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


@contextmanager
def guarded(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A copy of the tensor, of the same strides, between canaries; leaving the block raises if one was overwritten.

    Gaps between the rows of a strided tensor are canaries too. What the block wrote is copied back into `tensor`.
    """
    item = tensor.element_size()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0
    storage = torch.full((2 * MARGIN + span * item,), CANARY, dtype=torch.uint8, device=tensor.device)
    inside = storage.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), MARGIN // item)
    inside.copy_(tensor)
    allowed = torch.zeros(storage.numel() // item, dtype=torch.bool, device=tensor.device)
    allowed.as_strided(tensor.shape, tensor.stride(), MARGIN // item).fill_(True)
    yield inside
    touched = (storage != CANARY) & ~allowed.repeat_interleave(item)
    if touched.any():
        first = int(touched.nonzero()[0]) - MARGIN
        where = f"{-first} bytes before its start" if first < 0 else f"{first} bytes after its start, of the {span * item} that it spans"
        raise AssertionError(f"{int(touched.sum())} bytes outside the tensor were overwritten, the first {where}")
    tensor.copy_(inside)


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """`torch.empty`, `empty_like`, `new_empty`, `empty_strided` and `resize_` give NaN or the largest integer inside the block.

    PyTorch does it itself in its deterministic mode. An operation that has no deterministic form still runs, with a warning.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    mode: Any = torch.utils.deterministic
    filled = mode.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        mode.fill_uninitialized_memory = True
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        mode.fill_uninitialized_memory = filled


def nan_outside(tensor: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """A copy with poison wherever `valid` is false, of the same strides; `valid` spans the leading axes, all of them or some."""
    valid = valid.to(tensor.device, torch.bool).reshape(*valid.shape, *[1] * (tensor.ndim - valid.ndim))
    storage = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    wide = torch.float32 if tensor.element_size() == 1 and tensor.is_floating_point() else tensor.dtype  # 8-bit floats cannot select
    poison = torch.tensor(poison_of(tensor.dtype), dtype=wide, device=tensor.device)
    return storage.copy_(torch.where(valid, tensor.to(wide), poison).to(tensor.dtype))
