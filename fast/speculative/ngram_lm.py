"""An n-gram language model on tensors: per order a sorted array of packed n-grams and their counts, and one binary search per context.

An n-gram of ids below V is one int64, its digits base V, so the continuations of a context stand side by side: their number is T(c),
the sum of their counts N(c), and contexts need no table of their own. Fitting sorts; 16 bytes are kept per distinct n-gram, and
V^order must stay below 2^63.
"""

from typing import NamedTuple

import torch

from twofold.fast import checks

__all__ = ["fit", "probs"]


class Model(NamedTuple):
    grams: list[torch.Tensor]  # per order n = 1 … order: the distinct n-grams, ascending; a last entry of -1 ends the array
    counts: list[torch.Tensor]  # how often each occurs
    V: int


def fit(tokens, order, V):
    """Count all n-grams up to `order` of the text `tokens` `(T,)`, ids below V."""
    checks.shape(tokens=(tokens, "T"))
    checks.dtypes(torch.int64, torch.int32, torch.uint8, tokens=tokens)
    if order < 1 or V < 1 or V**order >= 1 << 63:
        raise ValueError(f"order and V must be at least 1, and V^order below 2^63, not order = {order} and V = {V}")
    tokens = tokens.long()
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < V:
        raise ValueError(f"tokens must lie in 0 … {V - 1}, not in {int(tokens.min())} … {int(tokens.max())}")
    grams, counts, code = [], [], torch.zeros(len(tokens) + 1, dtype=torch.int64, device=tokens.device)
    for n in range(1, order + 1):
        code = code[:-1] * V + tokens[n - 1 :] if len(tokens) >= n else code[:0]
        found, count = torch.unique_consecutive(code.sort().values, return_counts=True)
        grams.append(torch.cat([found, found.new_full((1,), -1)]))
        counts.append(torch.cat([count, count.new_zeros(1)]))
    return Model(grams, counts, V)


def probs(model, context):
    """The next token's law `(..., V)`, float32, after each context `(..., L)`; on the left, -1 stands for "the text has not begun".

    An id of V or more was never seen: contexts that reach back to it say nothing.
    """
    if not isinstance(context, torch.Tensor) or context.ndim == 0:
        raise TypeError("context must be a tensor of ids of shape (..., L)")
    checks.dtypes(torch.int64, torch.int32, torch.uint8, context=context)
    context, V = context.long(), model.V
    p = torch.full((*context.shape[:-1], V), 1 / V, device=context.device)
    known, ids = (context >= 0) & (context < V), torch.arange(V, device=context.device)
    code, power = torch.zeros(context.shape[:-1], dtype=torch.int64, device=context.device), 1
    reachable = torch.ones_like(code, dtype=torch.bool)
    for n, (grams, counts) in enumerate(zip(model.grams, model.counts, strict=True)):
        if n > context.shape[-1]:
            break
        if n:  # one token further back
            reachable = reachable & known[..., -n]
            code = code + torch.where(known[..., -n], context[..., -n], 0) * power
            power *= V
        first = torch.searchsorted(grams[:-1], code * V)  # the continuations of c stand together
        places = (first[..., None] + ids).clamp(max=len(grams) - 1)  # (..., V)
        token = grams[places] - code[..., None] * V
        found = (token >= 0) & (token < V) & reachable[..., None]
        count = torch.zeros_like(token).scatter_add(-1, torch.where(found, token, 0), torch.where(found, counts[places], 0))
        distinct = (count > 0).sum(-1, keepdim=True)  # T(c)
        total = count.sum(-1, keepdim=True) + distinct  # N(c) + T(c)
        p = torch.where(total > 0, (count + distinct * p) / total, p)  # an unseen context leaves p as it was
    return p
