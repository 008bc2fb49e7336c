"""Prompt lookup on a batch of ragged contexts, on the device that holds them: nothing waits for the host.

The longest n-gram is found in one reading of the context, not in one per n: at every place of it the tokens before are compared with the
tokens at its end, backwards, until they differ. So a large `n_max` costs nothing where matches are short; n_max = L finds the longest
suffix that occurs twice, whatever its length.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.find_suffix import find_suffix

__all__ = ["draft"]


def draft(context, n_max, n_min, gamma, last=False, *, lengths=None):
    """Drafted tokens `(B, gamma)` padded with -1, and how many each request has `(B,)`, both in the dtype of `context`.

    context `(B, T)`, of which request b uses the first `lengths[b]` tokens (0 … T, clamped; default T); what lies beyond is not read.
    """
    checks.shape(context=(context, "B T"))
    checks.dtypes(torch.int64, torch.int32, context=context, lengths=lengths)
    if not 1 <= n_min <= n_max:
        raise ValueError(f"n_min and n_max must satisfy 1 <= n_min <= n_max, not n_min = {n_min} and n_max = {n_max}")
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    if context.numel() and context.shape[1] > 1 and context.stride(1) != 1:
        raise ValueError(f"context must be contiguous along T (stride 1), not of stride {context.stride(1)}; the stride of B is free")
    if lengths is not None:
        checks.shape(context=(context, "B T"), lengths=(lengths, "B"))
        if lengths.device != context.device:
            raise ValueError(f"lengths must be on the device of context, {context.device}, not on {lengths.device}")
    return find_suffix(context, lengths, n_max, n_min, gamma, bool(last))
