"""Argument checks that every fast module shares: each error names the argument, what was expected and what was given."""

import torch

__all__ = ["dtypes", "same", "shape"]


def shape(**tensors: tuple[torch.Tensor, str]) -> dict[str, int]:
    """Match tensors against shapes spelled as axis names, `shape(q=(q, "B T H K"), k=(k, "B S H K"))`, and return the sizes.

    An axis has one size wherever its name stands; a name that is a number is that size.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, axes) in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor of shape ({', '.join(axes.split())}), not {type(tensor).__name__}")
        if tensor.ndim != len(axes.split()):
            raise ValueError(f"{name} must have shape ({', '.join(axes.split())}), not {tuple(tensor.shape)}")
        for axis, size in zip(axes.split(), tensor.shape, strict=True):
            expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
            if size != expected:
                raise ValueError(f"{name} must have shape ({', '.join(axes.split())}) with {axis} = {expected}, not {tuple(tensor.shape)}")
    return sizes


def same(**tensors: torch.Tensor | None) -> None:
    """All tensors given (None is left out) must lie on one device and share one dtype."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (first, reference), *rest = given.items()
    for name, tensor in rest:
        if tensor.device != reference.device:
            raise ValueError(f"{name} must be on the device of {first}, {reference.device}, not on {tensor.device}")
        if tensor.dtype != reference.dtype:
            raise TypeError(f"{name} must have the dtype of {first}, {reference.dtype}, not {tensor.dtype}")


def dtypes(*allowed: torch.dtype, **tensors: torch.Tensor | None) -> None:
    """Every tensor given must have one of the allowed dtypes."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{name} must have dtype {expected}, not {str(tensor.dtype).removeprefix('torch.')}")
