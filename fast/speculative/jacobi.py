"""Jacobi decoding on a batch: one call of the target per iteration, for the requests and the positions that may still change.

A model is a callable `target(tokens, ends) -> (B, n, V)`: row [b, i] scores the token that follows `tokens[b, : ends[b, i]]`. What stands
beyond is not part of the context. The tokens up to the first change, and the first changed one itself, are final: they are not computed
again once every running request has them, and finished requests take no part.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.likeliest import likeliest

__all__ = ["iterate", "decode"]


def iterate(target, prompt, guess, *, lengths=None):
    """One iteration: the tokens `(B, n)`, each computed from the guesses `(B, n)` before it, in one call of the target.

    prompt `(B, T)`, of which request b uses the first `lengths[b]` tokens (default T).
    """
    lengths = _check(prompt, lengths)
    checks.shape(prompt=(prompt, "B T"), guess=(guess, "B n"))
    checks.dtypes(torch.int64, torch.int32, guess=guess)
    return _likeliest(target, _placed(prompt, guess, lengths), lengths, 0, guess.shape[1]).to(guess.dtype)


def decode(target, prompt, n, *, eos=None, lengths=None):
    """Greedy text `(B, n)` in int64, padded with -1 behind `eos`, and the iterations of each request `(B,)`.

    A request stops when nothing has changed that its last token reads. A target row with a NaN raises: no token can follow it.
    """
    lengths = _check(prompt, lengths)
    if n < 0:
        raise ValueError(f"n must be at least 0, not {n}")
    B, device, places = len(prompt), prompt.device, torch.arange(n, device=prompt.device)
    tokens = torch.zeros(B, n, dtype=torch.int64, device=device)
    iterations, final, ends = (torch.full((B,), start, device=device) for start in (0, 0, n))
    running = torch.full((B,), n > 0, device=device)
    while running.any():
        rows = running.nonzero()[:, 0]
        previous, first = tokens[rows], int(final[rows].min())
        tokens[rows, first:] = _likeliest(target, _placed(prompt[rows], previous, lengths[rows]), lengths[rows], first, n)
        unchanged = (tokens[rows] == previous).long().cumprod(1).sum(1)
        iterations[rows] += 1
        final[rows] = unchanged + 1
        if eos is not None:
            ends[rows] = torch.where(tokens[rows] == eos, places + 1, n).amin(1)
        running[rows] = final[rows] < ends[rows]
    return torch.where(places < ends[:, None], tokens, -1), iterations


def _placed(prompt, guess, lengths):
    """The texts `(B, T + n)`: each prompt's tokens and its guess right behind them."""
    text = torch.nn.functional.pad(prompt.long(), (0, guess.shape[1]))
    return text.scatter(1, lengths[:, None] + torch.arange(guess.shape[1], device=prompt.device), guess.long())


def _likeliest(target, text, lengths, first, n):
    """The target's own tokens at the positions `first` … `n` - 1 behind each prompt `(B, n - first)`; the first of equals."""
    if first == n:
        return text[:, :0]
    rows = target(text, lengths[:, None] + torch.arange(first, n, device=text.device))  # (B, n - first, V)
    token = likeliest(rows.contiguous(), None, False)[0]
    if (token < 0).any():
        raise ValueError("a row of the target holds a NaN, or nothing above minus infinity: it has no likeliest token")
    return token


def _check(prompt, lengths):
    sizes = checks.shape(prompt=(prompt, "B T"))
    checks.dtypes(torch.int64, torch.int32, prompt=prompt, lengths=lengths)
    if lengths is None:
        return torch.full((sizes["B"],), sizes["T"], device=prompt.device)
    checks.shape(prompt=(prompt, "B T"), lengths=(lengths, "B"))
    if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= sizes["T"]:
        raise ValueError(f"lengths must lie in 0 … {sizes['T']}, not in {int(lengths.min())} … {int(lengths.max())}")
    return lengths.long()
