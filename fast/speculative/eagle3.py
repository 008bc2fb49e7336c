"""EAGLE-3 on a batch: drafting as in EAGLE, over a vocabulary of its own, and the training-time test with a layer that keeps a cache.

Requests of different lengths, plain and cached layers, uniforms and seeds are as in `eagle`. What the spec calls an error is not looked
for, since it would wait for the GPU: two draft ids of one target id leave the law with less than its mass. Everything is differentiable.
"""

import torch

from twofold.fast import checks
from twofold.fast.speculative import eagle

__all__ = ["draft", "fuse", "scatter", "unroll", "mask"]


def draft(
    g, tokens, embed, fc, layer, head, gamma, d2t=None, *,
    lengths=None, cache=None, token=None, seed=None, request=None, position=None,
):  # fmt: skip
    """Drafted tokens `(B, gamma)` and their laws `(B, gamma, V)` in the target's ids, and with a cache the new cache; see `eagle.draft`.

    g `(B, T, D)` are fused features, head `(n, D)` is the drafter's own, `d2t` `(n,)` target id less draft id (None: they are the same).
    """
    sizes = checks.shape(g=(g, "B T D"), embed=(embed, "V D"), head=(head, "n D"))
    if d2t is None and sizes["n"] != sizes["V"]:
        raise ValueError(f"head must have shape (V, D) with V = {sizes['V']} where no d2t is given, not {tuple(head.shape)}")
    if d2t is not None:
        checks.shape(head=(head, "n D"), d2t=(d2t, "n"))

    def law(state):
        q = torch.softmax((state @ head.T).float(), -1)
        return q if d2t is None else scatter(q, d2t, sizes["V"])

    options = dict(lengths=lengths, cache=cache, token=token, seed=seed, request=request, position=position)
    return eagle.roll(g, tokens, embed, fc, layer, law, gamma, **options)


def fuse(low, mid, high, fc):
    """Three layers' states `(..., D)` as one feature; fc `(D, 3 D)`."""
    checks.same(low=low, mid=mid, high=high, fc=fc)
    for name, states in (("mid", mid), ("high", high)):
        if states.shape != low.shape:
            raise ValueError(f"{name} must have the shape of low, {tuple(low.shape)}, not {tuple(states.shape)}")
    checks.shape(fc=(fc, f"D {3 * low.shape[-1]}"))
    return torch.cat([low, mid, high], -1) @ fc.T


def scatter(q, d2t, V):
    """Laws on draft ids `(..., n)` as laws on the target's ids `(..., V)`; what the drafter does not know has probability 0."""
    checks.dtypes(torch.int64, torch.int32, d2t=d2t)
    checks.shape(d2t=(d2t, f"{q.shape[-1]}"))
    ids = torch.arange(len(d2t), device=q.device) + d2t.long()
    return q.new_zeros(*q.shape[:-1], V).index_copy(-1, ids, q)


def unroll(g, tokens, embed, fc, layer, steps):
    """Training-time test: for each step s the states `(B, T - s, D)` of drafts from every place; row n predicts token n + s + 2.

    g `(B, T, D)`, tokens `(B, T + 1)`; `layer(z, mask, position, state)` gives `(hidden, state)`, as in `eagle`. Every row is computed
    once. Where requests are padded, what stands behind their ends is read by rows behind their ends only, and must be finite.
    """
    sizes = checks.shape(g=(g, "B T D"), tokens=(tokens, "B rows"), embed=(embed, "V D"))
    checks.shape(g=(g, "B T D"), fc=(fc, f"D {2 * sizes['D']}"))
    checks.dtypes(torch.int64, torch.int32, tokens=tokens)
    if sizes["rows"] != sizes["T"] + 1:
        raise ValueError(f"tokens must have shape (B, T + 1) with T + 1 = {sizes['T'] + 1}, not {tuple(tokens.shape)}")
    B, T = sizes["B"], sizes["T"]
    sees, position = mask(T, steps, device=g.device)
    state, states, done, found = None, g, 0, []
    for s in range(steps):
        told = torch.cat([torch.nn.functional.embedding(tokens[:, 1 + s :], embed), states], -1)  # (B, T - s, 2 D)
        R = done + told.shape[1]
        hidden, state = layer(told @ fc.T, sees[done:R, :R].expand(B, -1, -1), position[done:R].expand(B, -1), state)
        found.append(hidden)
        states, done = hidden[:, :-1], R
    return tuple(found)


def mask(T, steps, *, device=None):
    """Which rows see which `(R, R)`, and where they stand `(R,)`: T rows of step 0, T - 1 of step 1 and so on."""
    sizes = torch.tensor([max(T - s, 0) for s in range(steps)], dtype=torch.int64, device=device)
    step = torch.repeat_interleave(torch.arange(steps, device=device), sizes)
    start = torch.arange(len(step), device=device) - (sizes.cumsum(0) - sizes)[step]
    true = (step == 0) & (start <= start[:, None])
    own = (start == start[:, None]) & (step <= step[:, None])
    return true | own, start + step
