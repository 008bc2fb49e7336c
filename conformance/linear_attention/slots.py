"""What the tests of memories in slots share: states as one array, as the laws hand them on, and tokens on which a softmax is exact.

Exact tokens have logits that are multiples of 4096, so that their softmax over two slots is 0, 1 or a half in every format.
"""

from collections.abc import Callable

import numpy as np

from twofold.conformance import inputs
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import Tokens

__all__ = ["SLOTS", "apart", "exact_tokens", "joined", "on_arrays", "one_token", "stepped", "together"]

SLOTS = 2
APART = 4096.0  # of this distance, one logit leaves nothing for the other


def exact_tokens(rng: np.random.Generator, T: int, K: int, V: int) -> Tokens:
    tokens = battery.exact_tokens(rng, T, K, V)
    return {"q": APART * tokens["q"], "k": tokens["k"], "v": tokens["v"]}


def together(state: tuple) -> np.ndarray:
    """Keys (K, M), values (M, V) and, where there are any, log-weights (M,) as one array (K + V + …, M)."""
    Kt, Vt, *z = state
    return np.concatenate([Kt, Vt.T, *(x[None] for x in z)])


def apart(state: np.ndarray, token: Tokens) -> tuple:
    K, V = token["k"].shape[-1], token["v"].shape[-1]
    return state[:K], state[K : K + V].T, *state[K + V :]


def joined(form: Callable, *options) -> Callable[[Tokens, np.ndarray], tuple]:
    """A form of the spec, on states as one array."""

    def run(tokens, S0):
        o, state = form(*tokens.values(), apart(S0, tokens), *options)
        return o, together(state)

    return run


def stepped(step: Callable) -> Callable[[np.ndarray, Tokens], tuple]:
    def run(state, token):
        o, state = step(apart(state, token), *token.values())
        return o, together(state)

    return run


def on_arrays(form: Callable, **options) -> Callable[[Tokens, np.ndarray], tuple]:
    """A form of `fast`: one sequence, one head."""

    def run(tokens, S0):
        rows = [inputs.tensor(x[None, :, None], "float32") for x in tokens.values()]
        o, state = form(*rows, tuple(inputs.tensor(x[None, None], "float32") for x in apart(S0, tokens)), **options)
        return inputs.array(o)[0, :, 0], together(tuple(inputs.array(x)[0, 0] for x in state))

    return run


def one_token(step: Callable) -> Callable[[np.ndarray, Tokens], tuple]:
    def run(state, token):
        rows = [inputs.tensor(x[None, None], "float32") for x in token.values()]
        o, state = step(tuple(inputs.tensor(x[None, None], "float32") for x in apart(state, token)), *rows)
        return inputs.array(o)[0, 0], together(tuple(inputs.array(x)[0, 0] for x in state))

    return run
