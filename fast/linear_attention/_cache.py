"""What attentions with a cache of keys and values for their state have in common: checks, the start, and packed sequences."""

import torch

from twofold.fast import checks
from twofold.fast.kernels.diagonal_recurrence import FLOATS
from twofold.fast.test_time_training._tokens import by_sequence

__all__ = ["packed", "start", "wide"]


def wide(q, k, v, w, beta, F=None):
    """Everything in the computing format, sums of gates of 0 where there are none."""
    F = q.new_zeros(q.shape[:3]) if F is None else F
    axes = {"q": "B T H K", "k": "B T Hkv K", "v": "B T Hkv V", "w": "B T Hkv K", "beta": "B T Hkv", "F": "B T H"}
    tensors = dict(zip(axes, (q, k, v, w, beta, F), strict=True))
    sizes = checks.shape(**{name: (x, axes[name]) for name, x in tensors.items()})
    checks.dtypes(*FLOATS, q=q, beta=beta, F=F)
    checks.same(q=q, k=k, v=v, w=w)
    checks.same_device(**tensors)
    if not sizes["Hkv"] or sizes["H"] % sizes["Hkv"]:
        raise ValueError(f"q must have a multiple of the heads of k, {sizes['Hkv']}, not {sizes['H']}")
    if not F.is_cuda and not torch.isfinite(F).all():
        raise ValueError("F must hold finite sums of log forget gates")
    return [x.to(torch.float64 if q.dtype == torch.float64 else torch.float32) for x in tensors.values()]


def start(tokens, S0, forgets=False):
    """The start state, checked: keys, values and, with gates, their sums."""
    q, k, v, *_ = tokens
    (B, _, H, _), Hkv = q.shape, k.shape[2]
    if S0 is None:
        return k.new_zeros(B, Hkv, 0, k.shape[3]), v.new_zeros(B, Hkv, 0, v.shape[3]), *([q.new_zeros(B, H, 0)] if forgets else [])
    if len(S0) != 2 + forgets:
        raise ValueError(f"S0 must hold keys, values{' and sums of gates' if forgets else ''}: {2 + forgets} tensors, not {len(S0)}")
    axes = f"{B} {Hkv} S {k.shape[3]}", f"{B} {Hkv} S {v.shape[3]}", f"{B} {H} S"
    named = {f"S0[{n}]": x for n, x in enumerate(S0)}
    checks.shape(**{name: (x, shape) for (name, x), shape in zip(named.items(), axes, strict=False)})
    checks.dtypes(q.dtype, **named)
    checks.same_device(q=q, **named)
    return tuple(S0)


def packed(attend, tokens, S0, cu_seqlens):
    """`attend(tokens, state)` on each packed sequence; caches have different lengths, so that states are a list."""
    if S0 is not None and len(S0) != len(cu_seqlens) - 1:
        raise ValueError(f"S0 must be a list of a state for each of {len(cu_seqlens) - 1} packed sequences, not of {len(S0)}")
    states = []

    def run(piece, _):
        o, state = attend(piece, None if S0 is None else S0[len(states)])
        states.append(state)
        return o, ()

    return by_sequence(run, tokens, None, cu_seqlens)[0], states
