"""The short convolution: each channel looks at its own last few tokens (arXiv:2312.00752).

Layout: x `(B, T, D)`, w `(W, D)` with W of at most 8 and w[W-1] on the current token, b `(D,)` or None, tails `(B, W - 1, D)` in the dtype
of x: the last W - 1 inputs, oldest first. Weights may be float32 beside inputs of 16 bits. The activation is the caller's.

On a GPU it is the Triton kernels of `fast/kernels/causal_convolution.py`, on the CPU their PyTorch twin; it is trained, packs sequences and
takes float32, bfloat16 and float16; sums are float32.
"""

from torch import Tensor

from twofold.fast import checks
from twofold.fast.kernels import causal_convolution_operator

__all__ = ["causal", "step"]


def causal(
    x: Tensor, w: Tensor, b: Tensor | None = None, tail: Tensor | None = None, *, cu_seqlens: Tensor | None = None, check: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs `(B, T, D)` and new tails `(B, W - 1, D)`, with gradients for everything, the new tail's included. Inputs stay as they are.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, tails are `(N, W - 1, D)`, and an empty sequence returns its
    own. On a GPU its values are looked at with `check=True` only, which waits for the device.
    """
    return causal_convolution_operator.run(x, w, b, tail, cu_seqlens, check)


def step(tail: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token `(B, D)`: the output `(B, D)` and the new tail, bit for bit what `causal` gives."""
    checks.shape(x=(x, "B D"))
    y, tail = causal_convolution_operator.run(x[:, None], w, b, tail)
    return y[:, 0], tail
