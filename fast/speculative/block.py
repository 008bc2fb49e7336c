"""Block verification of a batch of drafted chains: how many tokens each request keeps, and the one that follows them.

Probabilities are float32, bfloat16 or float16; everything is computed in float32. Rows must sum to 1 up to rounding. That is not checked;
the coins of the prefixes rely on it, so what a row lacks shifts its coin by as much. What the spec calls an error, a kernel cannot raise
without waiting for the GPU. On both backends a drafted token that q cannot have drawn (q(x) = 0, or an id outside the vocabulary) ends what
can be kept. Where a row that was looked at holds a NaN or an infinity, or the row to draw from no mass, the token is -1, never a valid id,
and how many were kept says nothing.
"""

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.kernels.verify_chain import verify_chain

__all__ = ["verify"]


def verify(p, q, draft, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """Tokens kept `(B,)` and the token that follows them `(B,)`, in the dtype of `draft`.

    p `(B, gamma + 1, V)` and q `(B, gamma, V)` are the target's and the drafter's rows, draft `(B, gamma)` the drafted ids. `lengths`
    `(B,)` shortens drafts (0 … gamma, clamped): entries past a request's length are not read, and its bonus row is `p[b, lengths[b]]`.
    The prefix of i + 1 tokens has the coin `accept[b, i]`; `token` `(B,)` draws the last one. Without these float32 uniforms they come
    from `seed` and belong to the request id (`request` `(B,)`, default 0 … B - 1) and to the place of `draft[b, 0]` in the text
    (`position` `(B,)`, default 0).
    """
    checks.shape(q=(q, "B gamma V"))
    gamma = checks.chains(draft, lengths, token, p=p, q=q)["gamma"]
    token = None if token is None else token[:, None]
    accept, token = philox.tape(p, seed, request, position, accept=(accept, gamma), token=(token, 1))
    return verify_chain(p, q, draft, lengths, accept, token[:, 0], 1.0, True)
