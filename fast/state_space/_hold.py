"""What state spaces share that hold an input for the length of a step."""

import torch
from torch import Tensor

__all__ = ["held"]

NEAR = 2.0**-12  # below which (e^z - 1) / z is a short series


def held(z: Tensor) -> Tensor:
    """(e^z - 1) / z in complex128, with its slope, 1 where z is 0: what a step of rate z writes of an input, in units of the step."""
    near = z.abs() < NEAR
    far = torch.where(near, 1, z)
    return torch.where(near, 1 + z / 2 * (1 + z / 3 * (1 + z / 4)), far.expm1() / far)
