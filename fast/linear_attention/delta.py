"""The delta rule: linear attention that writes only what its memory got wrong (arXiv:2102.11174, 2406.06484).

Layout: q, k `(B, T, Hq, K)`, v `(B, T, H, V)` with H a multiple of Hq, write strengths beta `(B, T, H)` in [0, 2]; states `(B, H, K, V)` in
float32. q arrives scaled, k of length 1.

`chunked` is the one to use: on a GPU the Triton kernels of `fast/kernels/erasing_recurrence.py`, on the CPU their PyTorch twin, with
gradients for everything. The write keys beta k are rounded to the format of k. `recurrent` is plain PyTorch, for reference and short
sequences; `step` is one token.
beta |k|² above 2 makes the state diverge: an error with `check=True`, which waits for the device.
"""

from torch import Tensor

from twofold.fast.kernels import erasing_recurrence
from twofold.fast.linear_attention import _erase, affine

__all__ = ["recurrent", "chunked", "step"]


def chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor | None = None, chunk: int = 64, *, cu_seqlens: Tensor | None = None,
    check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` and final states `(B, H, K, V)`, with gradients for everything; packing as in `gla.chunked`."""
    _erase.sizes_of(q, k, v, beta)
    if check:
        _erase.require_contraction(k, beta)
    key, write = (x.to(k.dtype) for x in _erase.keys(k, beta))
    return erasing_recurrence.run(q, write, v, None, key, S0, chunk, cu_seqlens, check)


def recurrent(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, S0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    heads = _erase.sizes_of(q, k, v, beta)["H"]
    key, write = _erase.keys(k, beta)
    return affine.recurrent(_erase.other_heads(q, heads), write, v.to(key.dtype), None, key, -write, S0)


def step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Write what is missing of one token, `(B, Hq, K)`, `(B, H, V)`, `(B, H)`, then read: output `(B, H, V)` and new state, float32."""
    heads = _erase.sizes_of(q, k, v, beta, "B")["H"]
    key, write = _erase.keys(k, beta)
    output, state = affine.step(state, _erase.other_heads(q, heads), write, v, None, key, -write)
    return output.to(v.dtype), state
