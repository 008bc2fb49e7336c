"""Speculative decoding on a batch of drafted chains: how many tokens each request keeps, and the one that follows them.

Probabilities are float32, bfloat16 or float16; everything is computed in float32. Rows must sum to 1 up to rounding. That is not
checked, since it would read every row: what is drawn from is divided by its own sum, what is kept compares p(x) and q(x) as they are
given. What the spec calls an error, a kernel cannot raise without waiting for the GPU. On both backends, a drafted token that q cannot
have drawn (q(x) = 0, or an id outside the vocabulary) is refused; where the row to draw from holds a NaN, or no mass, the token is -1,
never a valid id.
"""

from twofold.fast import checks
from twofold.fast.kernels import philox
from twofold.fast.kernels.verify_chain import verify_chain

__all__ = ["verify", "verify_onehot", "verify_lenient"]


def verify(p, q, draft, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """Tokens kept `(B,)` and the token that follows them `(B,)`, in the dtype of `draft`.

    p `(B, gamma + 1, V)` and q `(B, gamma, V)` are the target's and the drafter's rows, draft `(B, gamma)` the drafted ids. `lengths`
    `(B,)` shortens drafts (0 … gamma, clamped): entries past a request's length are not read, and its bonus row is `p[b, lengths[b]]`.
    Draft token i is kept iff `accept[b, i] * q(x) < p(x)`; `token` `(B,)` draws the last one. Without these float32 uniforms they come
    from `seed` and belong to the request id (`request` `(B,)`, default 0 … B - 1) and to the place of `draft[b, 0]` in the text
    (`position` `(B,)`, default 0).
    """
    checks.shape(q=(q, "B gamma V"))
    return _verify(p, q, draft, 1.0, lengths, accept, token, seed, request, position)


def verify_onehot(p, draft, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """`verify` for drafts that were certain (greedy, copied, retrieved): q is one-hot at the draft tokens and is not given."""
    return _verify(p, None, draft, 1.0, lengths, accept, token, seed, request, position)


def verify_lenient(p, q, draft, lenience, *, lengths=None, accept=None, token=None, seed=None, request=None, position=None):
    """`verify` with `lenience` * q in place of q: keeps more, and makes no token more than 1 / lenience times as likely; in (0, 1]."""
    if not 0 < lenience <= 1:
        raise ValueError(f"lenience must lie in (0, 1], not {lenience}")
    checks.shape(q=(q, "B gamma V"))
    return _verify(p, q, draft, float(lenience), lengths, accept, token, seed, request, position)


def _verify(p, q, draft, lenience, lengths, accept, token, seed, request, position):
    gamma = checks.chains(draft, lengths, token, p=p, q=q)["gamma"]
    token = None if token is None else token[:, None]
    accept, token = philox.tape(p, seed, request, position, accept=(accept, gamma), token=(token, 1))
    return verify_chain(p, q, draft, lengths, accept, token[:, 0], lenience)
