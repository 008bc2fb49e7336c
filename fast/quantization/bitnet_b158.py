"""BitNet b1.58: ternary weights under activations of 8 bits. The definition is `twofold.spec.quantization.bitnet_b158`.

`linear` quantizes the weight in every call, as training does, and is differentiable in `x` and `weight`, straight through the roundings.
For inference keep `codes, gamma = ternarize(weight)`; then `smooth_quant.matmul(*quantize_activation(x), codes, gamma)` is the same layer.

Codes are int8, one byte a weight, scales and gamma float32; the mean is accumulated in float64. A token that holds a NaN or an infinity
gets codes 0 and a scale that is not finite: its outputs are NaN, and no other token's. The weight has one scale, so one such number in it
makes all outputs NaN.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import int8_matmul
from twofold.fast.quantization import round_to_nearest

__all__ = ["linear", "ternarize", "quantize_activation", "matmul"]

EPSILON = 1e-5
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x (T, K)` through the layer with `weight (N, K)`: `(T, N)` in the dtype of `x`."""
    checks.shape(x=(x, "T K"), weight=(weight, "N K"))
    checks.dtypes(*FLOATS, x=x)
    checks.same(x=x, weight=weight)
    checks.contiguous(x=x, weight=weight)
    _check_columns(x=x)
    return _linear(x, weight)


def ternarize(weight: torch.Tensor, epsilon: float = EPSILON) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes -1, 0 and 1 of `weight (N, K)`, and the mean magnitude `(1, 1)`."""
    checks.shape(weight=(weight, "N K"))
    checks.dtypes(*FLOATS, weight=weight)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative or NaN, and is {epsilon}")
    total = weight.abs().sum(dtype=torch.float64).reshape(1, 1)
    gamma = total / max(weight.numel(), 1)
    divisor = torch.where(gamma + epsilon == 0, 1, gamma + epsilon).float()
    codes = (weight.float() / divisor).round().clamp(-1, 1).nan_to_num(0)
    return codes.to(torch.int8), (gamma + 0 * gamma).float()                                  # an infinite mean is NaN, too


def quantize_activation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of `x (T, K)` and the step of each token, `(T, 1)`."""
    checks.shape(x=(x, "T K"))
    checks.dtypes(*FLOATS, x=x)
    checks.contiguous(x=x)
    if not x.shape[1]:
        return torch.empty_like(x, dtype=torch.int8), torch.full((len(x), 1), EPSILON / 127, device=x.device)
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=EPSILON) / 127
    return round_to_nearest.quantize(x, scale, torch.zeros_like(scale), 8, None, "absmax"), scale


def matmul(x_codes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The int32 product of `x_codes (T, K)` with ternary `codes (N, K)` transposed. Sums of 128 times 131071 are exact in float32, too."""
    checks.shape(x_codes=(x_codes, "T K"), codes=(codes, "N K"))
    checks.dtypes(torch.int8, x_codes=x_codes, codes=codes)
    checks.contiguous(x_codes=x_codes, codes=codes)
    checks.same_device(x_codes=x_codes, codes=codes)
    _check_columns(x_codes=x_codes)
    one = torch.ones((1, 1), device=codes.device)
    return int8_matmul.int8(x_codes, one.expand(len(x_codes), 1), codes, one.expand(len(codes), 1), None, torch.float32).int()


def _check_columns(**tensors):
    for name, tensor in tensors.items():
        if tensor.shape[1] > int8_matmul.MOST_COLUMNS:
            raise ValueError(f"{name} must have at most {int8_matmul.MOST_COLUMNS} columns, or sums may be inexact, not {tensor.shape[1]}")


@torch.library.custom_op("twofold::bitnet_b158_linear", mutates_args=())
def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    codes, gamma = ternarize(weight)
    return int8_matmul.int8(*quantize_activation(x), codes, gamma.expand(len(codes), 1), None, x.dtype)


@_linear.register_fake
def _(x, weight):
    return x.new_empty((x.shape[0], weight.shape[0]))


def _linear_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx, grad):
    """Straight through: the products are differentiated, the roundings are not."""
    x, weight = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        codes, gamma = ternarize(weight)
        grad_x = (grad.float() @ codes.float() * gamma).to(x.dtype)
    if ctx.needs_input_grad[1]:
        codes, scale = quantize_activation(x)
        grad_weight = (grad.float().T @ (codes.float() * scale)).to(weight.dtype)
    return grad_x, grad_weight


_linear.register_autograd(_linear_backward, setup_context=_linear_context)
