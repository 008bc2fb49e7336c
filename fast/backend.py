"""Which side runs: the Triton kernel or its PyTorch twin.

Tensors on a GPU go to Triton, tensors on the CPU to PyTorch, and tensors on the CPU go to Triton where its interpreter is on
(`TRITON_INTERPRET=1`). `use("torch")` or `use("triton")` forces a side for everything inside the `with`; nothing falls back silently.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["interpreted", "triton", "use"]

_forced: str | None = None  # of the process, not of the thread: autograd runs backward passes on threads of its own


def interpreted() -> bool:
    """Whether Triton kernels run in the interpreter, on CPU tensors. Triton reads the variable when it decorates a kernel."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def triton(tensor: torch.Tensor) -> bool:
    """Whether a call on this tensor launches the Triton kernel (True) or the PyTorch twin (False)."""
    possible = tensor.is_cuda or interpreted()
    if _forced == "triton" and not possible:
        raise RuntimeError(
            "backend.use('triton') was asked for tensors on the CPU: kernels need a GPU, or TRITON_INTERPRET=1 before Triton is imported"
        )
    return possible if _forced is None else _forced == "triton"


@contextmanager
def use(side: str) -> Iterator[None]:
    """Force `"triton"` or `"torch"` for every call of this process inside the `with` block."""
    global _forced
    if side not in ("triton", "torch"):
        raise ValueError(f"side must be 'triton' or 'torch', not {side!r}")
    before, _forced = _forced, side
    try:
        yield
    finally:
        _forced = before
