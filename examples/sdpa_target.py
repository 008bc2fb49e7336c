"""PyTorch's `scaled_dot_product_attention` under test: `twofold check attention.flash --target examples.sdpa_target`.

An adapter says, in the suite's words, what another implementation does. Here three of those words need care: the layout is
(B, T, H, D); causal masks are aligned at the bottom right, while PyTorch's `is_causal` is aligned at the top left; and the
log-sum-exp, which PyTorch keeps to itself, is computed beside it. What an implementation cannot do, its adapter says by an
exception, and the suite counts that as a failure, not as a skip.
"""

from types import SimpleNamespace

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["CHAPTERS", "forward"]


def forward(q, k, v, *, causal=False, window=None, scale=None, softcap=None, sink=None):
    """Output `(B, T, H, D)` and log-sum-exp `(B, H, T)`, as `twofold.fast.attention.flash.forward` gives them."""
    if softcap is not None:
        raise NotImplementedError("scaled_dot_product_attention has no softcap")
    if sink is not None:
        raise NotImplementedError("scaled_dot_product_attention has no sink")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = allowed(q.shape[1], k.shape[1], causal, window, q.device)  # (Tq, Tk)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))                  # (B, H, T, D)
    output = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = scale * (q.float() @ keys.float().mT)                    # (B, H, Tq, Tk)
    return output.transpose(1, 2), logits.masked_fill(~mask, -torch.inf).logsumexp(-1)


def allowed(queries, keys, causal, window, device):
    """True where a query may see a key; the last query stands at the last key."""
    left, right = (None, None) if window is None else window
    right = 0 if causal else right
    distance = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if left is not None:
        mask &= distance >= -left
    if right is not None:
        mask &= distance <= right
    return mask


CHAPTERS = {"attention.flash": SimpleNamespace(forward=forward)}
