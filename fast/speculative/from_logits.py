"""Verification from logits on a batch: the call that an engine makes after its target's pass, for chains and for trees.

Every setting is a number for all requests or a tensor of one value per request `(B,)`, so greedy and sampled requests share a batch.

For a chain no row of probabilities is sorted, and only one row of p and of q per request is made, the one that is drawn from. `cutoff`
tells each row's law in five numbers, which reads every logit once from memory (and again from the cache), and the coins need p and q at
the drafted tokens only. So beside the logits there are two rows per request to write and to read.

Logits are float32, bfloat16 or float16, contiguous along V, outer strides free. On the same uniforms the tokens are those of
`chain.verify`, bit for bit, on the rows that `cutoff.restore` gives. A row without a finite greatest logit gives token -1 where it is
drawn from.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.kernels.verify_chain import verify_chain
from twofold.fast.speculative import cutoff, match

__all__ = ["verify", "verify_tree"]


def verify(
    logits, draft, draft_logits, *,
    T=1, k=0, mass=1, ratio=0, lengths=None, accept=None, token=None, seed=None, request=None, position=None,
):  # fmt: skip
    """Tokens kept `(B,)` and the token that follows them `(B,)`, in the dtype of `draft`.

    logits `(B, gamma + 1, V)`, draft `(B, gamma)`, draft_logits `(B, gamma, V)` of the same dtype, or None where drafts were certain.
    Lengths, uniforms, seed, request and position are those of `chain.verify`.
    """
    sizes = checks.chains(draft, lengths, token, logits=logits, draft_logits=draft_logits)
    B, gamma, V = (sizes[axis] for axis in ("B", "gamma", "V"))
    settings = _settings(B, logits.device, T=T, k=k, mass=mass, ratio=ratio)
    token = None if token is None else token[:, None]
    accept, token = philox.tape(logits, seed, request, position, accept=(accept, gamma), token=(token, 1))

    length = torch.full((B,), gamma, device=logits.device) if lengths is None else lengths.long().clamp(0, gamma)
    laws = cutoff.row(logits, **_per_row(settings, gamma + 1))
    x, here = draft.long(), torch.arange(B, device=logits.device)
    inside = torch.arange(gamma, device=logits.device) < length[:, None]
    px = cutoff.probability(logits[:, :gamma], tuple(number[:, :gamma] for number in laws), x[:, :, None])[:, :, 0]  # (B, gamma)
    draft_laws, qx = None, torch.ones_like(px)
    if draft_logits is not None:
        draft_laws = cutoff.row(draft_logits, **_per_row(settings, gamma))
        qx = cutoff.probability(draft_logits, draft_laws, x[:, :, None])[:, :, 0]
    kept = inside & (x >= 0) & (x < V) & (qx > 0) & (accept * qx < px)  # what q cannot have drawn is refused, and so is a NaN
    accepted = kept.long().cumprod(1).sum(1)  # (B,)

    refused = accepted < length
    row = lambda rows, numbers, at: cutoff.restore(rows[here, at], tuple(number[here, at] for number in numbers))[:, None]  # (B, 1, V)
    p = row(logits, laws, accepted).expand(B, 2, V)  # of a round that refuses its only draft, the second row is not read
    at = accepted.clamp(max=max(gamma - 1, 0))
    q = None if draft_laws is None else row(draft_logits, draft_laws, at) if gamma else p[:, :1]
    only = x[here, at][:, None] if gamma else x.new_zeros(B, 1)
    drawn = verify_chain(p, q, only, refused.long(), torch.full_like(p[:, :1, 0], torch.inf), token[:, 0], 1.0)[1]
    return accepted.to(draft.dtype), drawn.to(draft.dtype)


def verify_tree(
    logits, tokens, parents, *, T=1, k=0, mass=1, ratio=0, lengths=None, token=None, seed=None, request=None, position=None
):
    """The accepted path `(B, N - 1)`, node ids padded with -1, and the token that follows it `(B,)`; see `match.verify_tree`.

    logits `(B, N, V)`, tokens and parents `(B, N)`; `lengths` `(B,)` counts nodes, the root too. All rows of probabilities are made here.
    """
    B, N = checks.shape(tokens=(tokens, "B N"), logits=(logits, "B N V"))["B"], tokens.shape[1]
    laws = cutoff.row(logits, **_per_row(_settings(B, logits.device, T=T, k=k, mass=mass, ratio=ratio), N))
    options = dict(lengths=lengths, token=token, seed=seed, request=request, position=position)
    return match.verify_tree(cutoff.restore(logits, laws), tokens, parents, **options)


def _settings(B, device, **settings):
    for name, setting in settings.items():
        if isinstance(setting, torch.Tensor):
            checks.shape(**{name: (setting, f"{B}")})
            if setting.device != device:
                raise ValueError(f"{name} must be on the device of logits, {device}, not on {setting.device}")
    return settings


def _per_row(settings, rows):
    return {name: x[:, None].expand(len(x), rows) if isinstance(x, torch.Tensor) else x for name, x in settings.items()}
