"""The memory of one launch, and who touches which element of it: two programs, one of them writing, are a race."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter as triton_interpreter

__all__ = ["Race", "Region", "regions"]

SHADOWED = 2**27  # units of storage above which races are not followed: the shadows would not fit


class Race(RuntimeError):
    """The result depends on which program, or which lane, comes first."""


@dataclass
class Region:
    """One storage: the footprints of the arguments that view it, and who has read and written each unit of it.

    A shadow holds 0 for nobody, a program's number, or -1 for several programs.
    """

    views: list[tuple[int, int, str]]  # first address, one past the last, argument
    unit: int  # bytes: the smallest element among the views
    reader: np.ndarray | None = None
    writer: np.ndarray | None = None

    def visit(self, addresses: np.ndarray, program: int, writes: bool, values: np.ndarray | None) -> None:
        """Note one load, or one store of these values, by a program (from 1)."""
        base = min(low for low, _, _ in self.views)
        units = (max(high for _, high, _ in self.views) - base) // self.unit + 1
        if units > SHADOWED:
            return
        if self.reader is None or self.writer is None:
            self.reader, self.writer = np.zeros(units, np.int32), np.zeros(units, np.int32)
        name, at = self.views[0][2], ((addresses - np.uint64(base)) // np.uint64(self.unit)).astype(np.int64)
        writer, reader = self.writer[at], self.reader[at]
        if ((writer != 0) & (writer != program)).any():
            raise Race(f"an element of {name} is {'written' if writes else 'read'} by one program and written by another")
        if not writes:
            self.reader[at] = np.where((reader == 0) | (reader == program), program, -1)
            return
        if ((reader != 0) & (reader != program)).any():
            raise Race(f"an element of {name} is written by one program and read by another")
        self.writer[at] = program
        if values is not None and _disagree(at, values):
            raise Race(f"two lanes of one store write different values to one element of {name}")


def _disagree(at: np.ndarray, values: np.ndarray) -> bool:
    """Whether two lanes have one place and different bits."""
    order = np.argsort(at, kind="stable")
    same = at[order][1:] == at[order][:-1]
    bits = values.view(f"u{values.itemsize}")[order]
    return bool((same & (bits[1:] != bits[:-1])).any())


def regions(arguments: list[tuple[str, Any]]) -> list[Region]:
    """The memory that the arguments name, one region per storage."""
    found: dict[int, Region] = {}
    for name, tensor in _tensors(arguments):
        if tensor.numel():
            low = tensor.data_ptr()
            span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
            region = found.setdefault(tensor.untyped_storage().data_ptr(), Region([], tensor.element_size()))
            region.views.append((low, low + (span + 1) * tensor.element_size(), name))
            region.unit = min(region.unit, tensor.element_size())
    return list(found.values())


def _tensors(arguments: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in arguments:
        if isinstance(value, (tuple, list)):
            yield from _tensors([(f"{name}[{i}]", x) for i, x in enumerate(value)])
        elif hasattr(value, "block_shape"):  # a tensor descriptor
            yield from _tensors([(name, value.base)])
        else:
            tensor = triton_interpreter._unwrap_tensor(value)
            if isinstance(tensor, torch.Tensor):
                yield name, tensor
