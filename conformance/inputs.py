"""Inputs: what hypothesis draws is a regime, a seed, sizes around block edges and a layout – never elements.

An array is float64 here and already rounded to the dtype that the implementation will see, so that the rounding of inputs is never
part of a tolerance. `tensor` carries it to the device under test, `array` carries results back.
"""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from twofold.conformance import target

__all__ = ["REGIMES", "array", "dtypes", "layouts", "regimes", "rounded", "seeds", "sizes", "tensor", "values"]

REGIMES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "small": lambda rng, shape: 2.0**-10 * rng.standard_normal(shape),
    "large": lambda rng, shape: 16 * rng.standard_normal(shape),
    "constant": lambda rng, shape: np.full(shape, rng.standard_normal()),
    "rank-one": lambda rng, shape: rng.standard_normal((*shape[:-1], 1)) * rng.standard_normal(shape[-1]),
    "cancelling": lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 2.0**-6 * rng.standard_normal(shape),
    "spiked": lambda rng, shape: rng.standard_normal(shape) * np.where(rng.random(shape) < 0.02, 30, 1),
    "sparse": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    "ties": lambda rng, shape: np.sort(rng.integers(-2, 3, shape).astype(float), axis=-1),
}

regimes = st.sampled_from(sorted(REGIMES))
seeds = st.integers(0, 2**32 - 1)
layouts = st.sampled_from(["contiguous", "transposed", "sliced", "offset"])


def sizes(*blocks: int, low: int = 0) -> st.SearchStrategy[int]:
    """Sizes around the edges of blocks: 0, 1, b-1, b, b+1, 2b-1, 2b+1, those of at least `low`."""
    edges = {0, 1} | {n for b in blocks for n in (b - 1, b, b + 1, 2 * b - 1, 2 * b + 1)}
    return st.sampled_from(sorted(n for n in edges if n >= low))


def dtypes(*names: str) -> st.SearchStrategy[str]:
    """Storage dtypes by name, float32, bfloat16 and float16 unless others are named."""
    return st.sampled_from(names or ("float32", "bfloat16", "float16"))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The float64 values after one rounding to the storage dtype."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64)).to(getattr(torch, dtype)).double().numpy()


def values(regime: str, shapes: Sequence[tuple[int, ...]], seed: int, dtype: str = "float64") -> list[np.ndarray]:
    """One array per shape, drawn from the regime and rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    return [rounded(REGIMES[regime](rng, shape), dtype) for shape in shapes]


def tensor(values: np.ndarray, dtype: str | None = None, layout: str = "contiguous", device: str | None = None) -> torch.Tensor:
    """A tensor of these values on the device under test, innermost axis contiguous.

    `dtype` None keeps NumPy's. The layouts: `transposed` exchanges the two axes before the innermost in memory, `sliced` takes every
    second row of a larger tensor, `offset` starts in the middle of its storage. What lies between is NaN (or the largest integer), so
    that nobody reads it unpunished.
    """
    source = torch.from_numpy(np.ascontiguousarray(values))
    source = source.to(device or target.device(), getattr(torch, dtype) if dtype else source.dtype)
    if layout == "transposed" and source.ndim > 2:
        return source.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "sliced" and source.ndim > 1:
        axis = 1 if source.ndim > 2 else 0  # tokens; of a matrix, its rows
        between = (slice(None),) * axis + (slice(1, None, 2),)
        larger = _unreadable(source, (*source.shape[:axis], 2 * source.shape[axis] + 1, *source.shape[axis + 1 :]))
        larger[between] = source
        return larger[between]
    if layout == "offset":
        larger = _unreadable(source, (source.numel() + 24,))
        larger[16 : 16 + source.numel()] = source.flatten()
        return larger[16 : 16 + source.numel()].view(source.shape)
    return source


def _unreadable(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    poison = float("nan") if like.is_floating_point() else True if like.dtype == torch.bool else torch.iinfo(like.dtype).max
    return torch.full(shape, poison, dtype=like.dtype, device=like.device)


def array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values in NumPy, floating-point ones as float64."""
    tensor = tensor.detach().cpu()
    return tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
