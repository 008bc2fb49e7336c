"""The operator of recurrences that erase before they write: S_t = Diag(e^{g_t}) S_{t-1} + k_t (v_t - a_t S_{t-1})^T, o_t = q_t S_t.

One update behind the delta rules: with a key and write strength, k_t is their product and a_t the (decayed) key. The operator is that of
`diagonal_recurrence`, with rows that read before the update.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence

__all__ = ["run"]


def run(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor | None, a: torch.Tensor, S0: torch.Tensor | None, chunk: int,
    cu_seqlens: torch.Tensor | None = None, check: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Outputs `(B, T, H, V)` in the dtype of v and final states `(N, H, K, V)` in float32, as of `diagonal_recurrence.run`.

    Write keys k and rows a, which read what is erased, come in one number of heads, that of q or that of v (a write strength per head).
    """
    sizes = checks.shape(q=(q, "B T Hq K"), k=(k, "B T Hk K"), a=(a, "B T Hk K"), v=(v, "B T H V"))
    if sizes["Hk"] not in (sizes["Hq"], sizes["H"]):
        raise ValueError(f"k must have the heads of q, {sizes['Hq']}, or those of v, {sizes['H']}, not {sizes['Hk']}")
    if sizes["Hk"] != sizes["Hq"]:
        if not sizes["Hq"] or sizes["H"] % sizes["Hq"]:
            raise ValueError(f"v must have a multiple of the heads of q, {sizes['Hq']}, not {sizes['H']}")
        q = q.repeat_interleave(sizes["H"] // sizes["Hq"], 2)
    return diagonal_recurrence.run(q, k, v, g, S0, chunk, cu_seqlens, check, a=-a)
