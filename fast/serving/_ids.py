"""Token ids and slots as bytes: what the caches of this family compare and hash."""

from array import array
from collections.abc import Sequence

from torch import Tensor, bool, int64

__all__ = ["BYTES", "as_bytes", "integers"]

BYTES = 8  # per id


def as_bytes(ids: Sequence[int] | Tensor, name: str) -> bytes:
    """Eight bytes for each id; errors call it by its name."""
    if isinstance(ids, Tensor):
        return integers(ids, name).to("cpu", int64).numpy().tobytes()
    try:
        return array("q", ids).tobytes()
    except (TypeError, OverflowError) as error:
        raise TypeError(f"{name} must be a sequence of 64-bit integers: {error}") from None


def integers(ids: Tensor, name: str) -> Tensor:
    if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == bool:
        raise TypeError(f"{name} must be integers of shape (n,), not {tuple(ids.shape)} of {ids.dtype}")
    return ids
