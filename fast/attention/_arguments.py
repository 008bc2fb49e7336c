"""What the arguments of attentions have in common: checks that name what is wrong, and the form in which kernels take the rest."""

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["FLOATS", "WIDEST", "places", "scale_or_default", "share_heads", "sink_per_head", "three", "widths", "window_bounds"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256  # head dimensions beyond do not fit a tile


def three(q: Tensor, k: Tensor, v: Tensor, *, rows: str = "B Tq H D", keys: str = "B Tk Hkv") -> dict[str, int]:
    """Queries, keys and values that belong together, and the sizes of their axes; `rows` and `keys` say what these are called."""
    sizes = checks.shape(q=(q, rows), k=(k, f"{keys} D"), v=(v, f"{keys} Dv"))
    checks.same(q=q, k=k, v=v)
    checks.dtypes(*FLOATS, q=q)
    share_heads(sizes)
    return sizes


def share_heads(sizes: dict[str, int], few: str = "Hkv", *, q: str = "q", k: str = "k") -> None:
    """H heads of one argument read `few` heads of another, as many each."""
    if not sizes[few] or sizes["H"] % sizes[few]:
        raise ValueError(f"{q} must have a multiple of {k}'s {sizes[few]} heads, not {sizes['H']}")


def widths(sizes: dict[str, int], least: int = 1, most: int = WIDEST, **axes: str) -> None:
    """`widths(sizes, q="D", v="Dv")`: how many numbers an argument has per head."""
    for name, axis in axes.items():
        if not least <= sizes[axis] <= most:
            raise ValueError(f"{name} must have between {least} and {most} elements per head, not {sizes[axis]}")


def scale_or_default(scale: float | None, width: int) -> float:
    """The factor of the logits: one over the root of the width, unless given."""
    checks.positive(scale=scale)
    return width**-0.5 if scale is None else float(scale)


def window_bounds(causal: bool, window: tuple[int | None, int | None] | None) -> tuple[int | None, int | None]:
    """One pair of bounds: causal is a right bound of 0."""
    left, right = (None, None) if window is None else window
    for name, bound in (("left", left), ("right", right)):
        if bound is not None and bound < 0:
            raise ValueError(f"window's {name} bound must be at least 0, or None for no bound, not {bound}")
    return left, 0 if causal else right


def sink_per_head(q: Tensor, sink: Tensor | None) -> Tensor | None:
    """A sink (H,) for queries (·, ·, H, ·), in float32."""
    if sink is None:
        return None
    checks.shape(q=(q, "B T H D"), sink=(sink, "H"))
    checks.dtypes(torch.float32, q.dtype, sink=sink)
    checks.same_device(q=q, sink=sink)
    return sink.float()


def places(q: Tensor, length: Tensor | None, table: Tensor | None = None) -> None:
    """How many tokens each sequence of q (B, …) has, `length` (B,), and in which blocks they lie, `table` (B, n)."""
    if table is not None and length is None:
        raise ValueError("length must be given with a table")
    for name, tensor, axes in (("length", length, "B"), ("table", table, "B n")):
        if tensor is not None:
            checks.shape(q=(q, "B T H D"), **{name: (tensor, axes)})
            checks.dtypes(torch.int32, torch.int64, **{name: tensor})
            checks.same_device(q=q, **{name: tensor})
