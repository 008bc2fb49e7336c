"""Argument checks that every fast module shares: each error names the argument, what was expected and what was given."""

import math
from typing import Any

import torch

__all__ = ["at_least", "chains", "contiguous", "dtypes", "positive", "same", "same_device", "shape"]


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
    same_device(**given)
    for name, tensor in rest:
        if tensor.dtype != reference.dtype:
            raise TypeError(f"{name} must have the dtype of {first}, {reference.dtype}, not {tensor.dtype}")


def dtypes(*allowed: torch.dtype, **tensors: torch.Tensor | None) -> None:
    """Every tensor given must have one of the allowed dtypes."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{name} must have dtype {expected}, not {str(tensor.dtype).removeprefix('torch.')}")


def contiguous(**tensors: torch.Tensor | None) -> None:
    """Every tensor given must lie in one piece along its innermost axis; outer strides are free."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            stride = tensor.stride(-1)
            raise ValueError(f"{name} must be contiguous along its last axis (stride 1), not of stride {stride}; outer strides are free")


def positive(**numbers: float | None) -> None:
    """Every number given must be positive and finite."""
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {number}")


def at_least(least: int, **numbers: int | None) -> None:
    """No number given may be smaller."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")


def chains(draft: torch.Tensor, lengths: torch.Tensor | None, token: torch.Tensor | None = None, **rows: Any) -> dict[str, int]:
    """A batch of drafted chains, and the sizes B, gamma and V.

    `rows` names the target's rows `(B, gamma + 1, V)`, then the drafter's `(B, gamma, V)`, if there are any; draft is `(B, gamma)`, lengths
    and token `(B,)` or None.
    """
    (target, p), *drafters = rows.items()
    sizes = shape(**{target: (p, "B rows V")}, draft=(draft, "B gamma"))
    if sizes["rows"] != sizes["gamma"] + 1 or sizes["V"] == 0:
        expected = f"(B, gamma + 1, V) with gamma + 1 = {sizes['gamma'] + 1} and V at least 1"
        raise ValueError(f"{target} must have shape {expected}, not {tuple(p.shape)}")
    for drafter, q in drafters:
        if q is not None:
            shape(draft=(draft, "B gamma"), **{target: (p, "B rows V"), drafter: (q, "B gamma V")})
    same(**rows)
    contiguous(**rows)
    dtypes(torch.float32, torch.bfloat16, torch.float16, **{target: p})
    dtypes(torch.int64, torch.int32, draft=draft, lengths=lengths)
    for name, tensor in (("lengths", lengths), ("token", token)):
        if tensor is not None:
            shape(draft=(draft, "B gamma"), **{name: (tensor, "B")})
    same_device(**{target: p}, draft=draft, lengths=lengths)
    return sizes


def same_device(**tensors: torch.Tensor | None) -> None:
    """All tensors given must lie on the device of the first."""
    (first, reference), *rest = ((name, tensor) for name, tensor in tensors.items() if tensor is not None)
    for name, tensor in rest:
        if tensor.device != reference.device:
            raise ValueError(f"{name} must be on the device of {first}, {reference.device}, not on {tensor.device}")
