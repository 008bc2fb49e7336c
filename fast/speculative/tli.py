"""Token-level intersection on tensors: the drafter's rows, gathered into the target's ids and renormalized."""

import torch

from twofold.fast import checks

__all__ = ["restrict"]


def restrict(q, common):
    """Rows `(..., V)` in the target's ids, in the dtype of `q` `(..., draft vocabulary)`; sums are float32. common `(V,)`, -1 for none.

    A row that gives common tokens no mass comes back as zeros. `chain.verify` takes it as it is: whatever stands there cannot have been
    drawn, so it is refused and the token comes from the target's own row. So the draft ends there without anybody looking. A row with a
    NaN at a common token is NaN throughout. An id past the draft vocabulary is an error: raised on the CPU, a device assert on a GPU.
    """
    if not isinstance(q, torch.Tensor) or q.ndim == 0:
        raise TypeError("q must be a tensor of rows of shape (..., draft vocabulary)")
    checks.dtypes(torch.float32, torch.bfloat16, torch.float16, q=q)
    checks.shape(common=(common, "V"))
    checks.dtypes(torch.int64, torch.int32, common=common)
    if common.device != q.device:
        raise ValueError(f"common must be on the device of q, {q.device}, not on {common.device}")
    if q.shape[-1] == 0 or len(common) == 0:
        raise ValueError(f"q and common must hold a token at least, not {q.shape[-1]} and {len(common)}")
    shared = q.index_select(-1, common.clamp(min=0)).float().masked_fill(common < 0, 0)  # (..., V)
    mass = shared.sum(-1, keepdim=True)
    return torch.where(mass == 0, 0.0, shared / mass).to(q.dtype)
