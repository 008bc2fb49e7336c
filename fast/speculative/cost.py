"""The arithmetic of speculation on tensors: every argument is a number or a tensor, and they broadcast. Numbers are taken as float64."""

import torch

__all__ = ["expected_tokens", "speedup", "operations", "best_gamma"]


def expected_tokens(alpha, gamma):
    """Mean tokens emitted per target call, by the closed form (1 - alpha^(gamma + 1)) / (1 - alpha) without its cancellation near 1."""
    alpha, n = _probability(alpha), _at_least_zero("gamma", gamma) + 1
    return torch.where(alpha == 1, n, -torch.expm1(n * torch.log(alpha)) / (1 - alpha)).to(alpha.dtype)


def speedup(alpha, gamma, c):
    """Mean wall-clock gain over decoding one token per call; c is the time of a drafter call over that of a target call."""
    return expected_tokens(alpha, gamma) / (_at_least_zero("gamma", gamma) * _at_least_zero("c", c) + 1)


def operations(alpha, gamma, c):
    """Mean arithmetic per emitted token over that of plain decoding; c is the drafter's arithmetic per token over the target's."""
    gamma = _at_least_zero("gamma", gamma)
    return (gamma * _at_least_zero("c", c) + gamma + 1) / expected_tokens(alpha, gamma)


def best_gamma(alpha, c, gamma_max):
    """The draft length in 0 … gamma_max of the greatest `speedup`, int64; the shortest of equals."""
    if gamma_max < 0:
        raise ValueError(f"gamma_max must be at least 0, not {gamma_max}")
    alpha, c = torch.broadcast_tensors(_probability(alpha), _at_least_zero("c", c).to(_probability(alpha).device))
    gammas = torch.arange(gamma_max + 1, device=alpha.device)
    return speedup(alpha[..., None], gammas, c[..., None]).argmax(-1)


def _probability(alpha):
    if not isinstance(alpha, torch.Tensor):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
        return torch.tensor(alpha, dtype=torch.float64)
    if not alpha.is_floating_point():
        raise TypeError(f"alpha must have a floating-point dtype, not {str(alpha.dtype).removeprefix('torch.')}")
    return alpha


def _at_least_zero(name, value):
    if isinstance(value, torch.Tensor):
        return value
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, not {value}")
    return torch.tensor(value)
