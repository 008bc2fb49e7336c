"""Greedy verification of a batch of drafted chains: how far each is the target's greedy text, and the token that follows.

Nothing is computed, only compared, so no precision is lost: the tokens are the spec's, whatever the dtype. What the spec calls an error, a
kernel cannot raise without waiting for the GPU: where a row holds a NaN, or nothing above minus infinity, the draft ends and the token is
-1, never a valid id.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.likeliest import likeliest

__all__ = ["verify"]


def verify(p, draft, *, lengths=None):
    """Tokens kept `(B,)` and the token that follows them `(B,)`, in the dtype of `draft`.

    p `(B, gamma + 1, V)` are probabilities or logits in float32, bfloat16 or float16, draft `(B, gamma)` the drafted ids. `lengths` `(B,)`
    shortens drafts (0 … gamma, clamped): rows and entries past a request's length are not read, and its bonus row is `p[b, lengths[b]]`.
    """
    gamma = checks.chains(draft, lengths, p=p)["gamma"]
    lengths = None if lengths is None else lengths.long().clamp(0, gamma)
    token = likeliest(p, None if lengths is None else lengths + 1, False)[0]  # (B, gamma + 1)
    agrees = (token[:, :-1] == draft) & (draft >= 0)
    if lengths is not None:
        agrees &= torch.arange(gamma, device=p.device) < lengths[:, None]
    kept = agrees.long().cumprod(1).sum(1)  # (B,)
    return kept.to(draft.dtype), token.gather(1, kept[:, None])[:, 0].to(draft.dtype)
