"""Recurrences whose channels never meet, under the laws of `laws.py`: every pair of a key and a value channel is a channel of its own.

The battery's tokens are queries, keys, values and decays of a state `(K, V)`. What a token writes, its keys times its values, is laid out
as K V channels, and its queries read them afterwards; so the laws see a state with two axes, and the recurrence more channels than a tile.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from twofold.conformance import inputs
from twofold.conformance.linear_attention.battery import Tokens

__all__ = ["on_tensors", "one_of_many", "read"]


def read(form: Callable[..., tuple]) -> Callable[[Tokens, np.ndarray], tuple]:
    """A form of (x, g, S0), `(T, D)` twice and `(D,)`, as a function of (tokens, S0)."""

    def run(tokens: Tokens, S0: np.ndarray) -> tuple:
        q, k, v, g = (tokens[name] for name in ("q", "k", "v", "g"))
        K, V = S0.shape
        h, state = form((k[:, :, None] * v[:, None, :]).reshape(-1, K * V), np.repeat(g, V, axis=1), S0.reshape(-1))
        return np.einsum("tk,tkv->tv", q, h.reshape(-1, K, V)), state.reshape(K, V)

    return run


def one_of_many(step: Callable[..., tuple]) -> Callable[[np.ndarray, Tokens], tuple]:
    """`step` of (state, x, g), `(D,)` each, as a function of (state, token)."""

    def run(state: np.ndarray, token: Tokens) -> tuple:
        one = read(lambda x, g, S0: step(S0, x[0], g[0]))
        output, after = one({name: row[None] for name, row in token.items()}, state)
        return output[0], after

    return run


def on_tensors(form: Callable[..., Any], **options) -> Callable[..., tuple]:
    """A form of `fast` on arrays without batch; a log-decay stays in float32 as everything else does."""

    def run(*arrays: np.ndarray) -> tuple:
        output, state = form(*(inputs.tensor(x[None], "float32") for x in arrays), **options)
        return inputs.array(output)[0], inputs.array(state)[0]

    return run
