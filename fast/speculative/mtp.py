"""Multi-token prediction on a batch: one module, its loss, and drafting by moving all places one depth further at a time.

Drafting runs the layer on all places of the text at every depth, as training does. Engines that keep one cache for all depths append the
drafted place to it instead; that is `eagle.draft` with this module's inputs, and from the second token on another drafter.
Everything is differentiable; laws are float32.
"""

import torch
import torch.nn.functional as F

from twofold.fast import checks
from twofold.fast.speculative import eagle

__all__ = ["module", "loss", "draft"]


def module(h, tokens, embed, m, layer):
    """One depth further `(B, n, D)`: h `(B, n, D)` are the states before, tokens `(B, n)` the tokens that they predicted, m `(D, 2 D)`."""
    D = checks.shape(h=(h, "B n D"), tokens=(tokens, "B n"), embed=(embed, "V D"))["D"]
    checks.shape(h=(h, "B n D"), m=(m, f"D {2 * D}"))
    checks.same(h=h, embed=embed, m=m)
    checks.dtypes(torch.int64, torch.int32, tokens=tokens)
    embedded = F.embedding(tokens.clamp(0, len(embed) - 1), embed)
    return layer(torch.cat([F.rms_norm(x, (D,), eps=1e-6) for x in (h, embedded)], -1) @ m.T)


def loss(probs, tokens, weight):
    """The depths' mean cross-entropies, averaged and weighted; probs `(B, K, T, V)`, tokens `(B, T + 1)`, below 0 where unlabeled."""
    sizes = checks.shape(probs=(probs, "B K T V"), tokens=(tokens, "B rows"))
    checks.dtypes(torch.int64, tokens=tokens)
    K, T = sizes["K"], sizes["T"]
    if sizes["rows"] != T + 1:
        raise ValueError(f"tokens must have shape (B, T + 1) with T + 1 = {T + 1}, not {tuple(tokens.shape)}")
    total = probs.new_zeros(())
    for k in range(1, min(K, T - 1) + 1):
        labels = tokens[:, k + 1 :]  # (B, T - k)
        right = probs[:, k - 1, : T - k].gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        total = total - torch.where(labels >= 0, right, 1).log().sum() / (labels >= 0).sum().clamp(min=1)
    return weight / K * total


def draft(h, token, gamma, embed, m, layer, head, *, lengths=None, uniform=None, seed=None, request=None, position=None):
    """Drafted tokens `(B, gamma)` and the laws they were drawn from `(B, gamma, V)`.

    h `(B, n, D)` are the main model's states, token `(B, n)` the token after each: request b uses the first `lengths[b]` places (default n,
    clamped), and what stands beyond is not read. `uniform` `(B, gamma)` draws; without it a `seed` does (`request`, `position`: see
    `chain.verify`), and without either each token is the likeliest one. Where a row holds a NaN, or there is no place, the token is -1.
    """
    B, n, _ = checks.shape(h=(h, "B n D"), token=(token, "B n")).values()
    checks.shape(h=(h, "B n D"), embed=(embed, "V D"), head=(head, "V D"))
    checks.dtypes(torch.int64, torch.int32, token=token, lengths=lengths)
    if lengths is not None:
        checks.shape(lengths=(lengths, f"{B}"))
    uniform = eagle.uniforms(h, gamma, uniform, seed, request, position, name="uniform")
    here, places = torch.arange(B, device=h.device), torch.arange(n, device=h.device)
    lengths = torch.full((B,), n, device=h.device) if lengths is None else lengths.long().clamp(0, n)
    last = (lengths - 1).clamp(min=0)
    told, h = token.long(), torch.where((places < lengths[:, None])[:, :, None], h, 0)
    drafted, q = told.new_zeros(B, 0), torch.zeros(B, 0, len(head), device=h.device)
    for step in range(gamma):
        h = module(h, told, embed, m, layer)
        row = torch.softmax((h[here, last] @ head.T).float(), -1) if n else torch.zeros(B, len(head), device=h.device)
        row = torch.where(lengths[:, None] > 0, row, torch.nan)  # no place to draft from
        token = eagle.choose(row, None if uniform is None else uniform[:, step])
        drafted, q = torch.cat([drafted, token[:, None]], 1), torch.cat([q, row[:, None]], 1)
        told = told.roll(-1, 1)
        told = torch.where(places == last[:, None], token[:, None], told)  # each place hears of the token after the last one
    return drafted, q
