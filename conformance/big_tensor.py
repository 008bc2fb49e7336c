"""Tensors of more than 2**31 elements that cost nothing: a sparse file, mapped.

Offsets that are computed in 32 bits wrap only on huge tensors. A file with a hole takes no room until it is written, so a view whose
rows lie 2**30 elements apart is made in microseconds, and a kernel that runs on it in the interpreter, or its PyTorch twin, touches a
few pages.
"""

import os
import tempfile
from collections.abc import Sequence

import torch

__all__ = ["far_apart", "sparse_tensor"]


def sparse_tensor(shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None) -> torch.Tensor:
    """Zeros with this shape and these strides (in elements; None: contiguous), on a sparse file that vanishes with the tensor."""
    if strides is None:
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    size = 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True)) if all(shape) else 0
    with tempfile.NamedTemporaryFile(prefix="twofold-sparse-", delete=False) as file:
        file.truncate(max(size, 1) * dtype.itemsize)
    try:
        storage = torch.from_file(file.name, shared=True, size=max(size, 1), dtype=dtype)
    finally:
        os.unlink(file.name)  # the mapping keeps the file alive
    return storage.as_strided(tuple(shape), tuple(strides))


def far_apart(tensor: torch.Tensor, axis: int = 0, stride: int = 2**30 + 64) -> torch.Tensor:
    """The same values with `stride` elements from one index of `axis` to the next, on the CPU.

    The default stride fits 32 bits, so Triton passes it as such, and twice the stride does not: index 2 shows an offset that wraps. (A
    stride beyond 32 bits would be passed in 64 and hide it.) What lies between is zero and takes no room. This is what a caller who sliced
    a huge tensor would pass: hand it to an implementation and compare with what the small `tensor` gives.
    """
    if (tensor.shape[axis] - 1) * stride < 2**31:
        raise ValueError(f"axis {axis} has {tensor.shape[axis]} indices: its last offset, {stride} each, stays below 2**31")
    strides, inner = [0] * tensor.ndim, 1
    for other in range(tensor.ndim - 1, -1, -1):
        if other != axis % tensor.ndim:
            strides[other], inner = inner, inner * max(tensor.shape[other], 1)
    strides[axis] = stride
    view = sparse_tensor(tensor.shape, tensor.dtype, strides)
    view.copy_(tensor)
    return view
