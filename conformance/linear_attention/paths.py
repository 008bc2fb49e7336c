"""What the tests of PaTH attention share: whole numbers on which its softmax has one winner, and its two sides as operations.

Transformations exchange, flip and erase channels, so that all scores are whole numbers. A last channel, which they leave alone, gives every
key a place in an order: no two scores of a row are equal, and since all are multiples of 4096, one key gets everything, in every format.
"""

from dataclasses import replace

import numpy as np

from twofold.conformance import inputs
from twofold.conformance.linear_attention import battery
from twofold.spec.linear_attention import path

__all__ = [
    "APART", "apart", "exact_tokens", "forgetting_tokens", "hops", "joined", "of_fast", "of_spec", "on_arrays", "one_token",
    "state_without_gates", "together",
]  # fmt: skip

APART = 4096.0  # of this distance, one logit leaves nothing for the other
FIRST = 128  # a product of 1 is worth more than any place in the order


def hops(rng, T, K):
    """Transformations of whole numbers: nothing, an erased or a flipped channel, two channels exchanged with or without a sign."""
    w, beta = np.zeros((T, K)), rng.integers(0, 3, T).astype(float)
    for t in range(T if K else 0):
        channels = rng.permutation(K)[: rng.integers(1, 3)]
        w[t, channels] = rng.choice([-1.0, 1.0], len(channels))
        beta[t] = min(beta[t], 3 - len(channels))
    return w, beta


def ranked(x, order):
    """Keys of whole numbers and, in a last channel that nothing transforms, their place in an order: no two scores of a row are equal."""
    return np.concatenate([x[:, 1:], order[: len(x), None]], axis=1)


def exact_tokens(rng, T, K, V):
    tokens = battery.exact_tokens(rng, T, K, V)
    w, beta = hops(rng, T, K - 1)
    q = APART * np.concatenate([FIRST * tokens["q"][:, 1:], np.ones((T, 1))], axis=1)
    k = ranked(tokens["k"], 2.0 * rng.permutation(T))
    return {"q": q, "k": k, "v": tokens["v"], "w": np.pad(w, ((0, 0), (0, 1))), "beta": beta}


def forgetting_tokens(rng, T, K, V):
    return exact_tokens(rng, T, K, V) | {"F": -APART * FIRST * np.cumsum(rng.integers(0, 2, T))}


def state_of(rng, K, V):
    """A cache of up to 20 tokens as one array (S, K + V + 1)."""
    S = int(rng.integers(0, 21))
    keys = ranked(rng.integers(-1, 2, (S, K)).astype(float), 1 + 2.0 * rng.permutation(S))
    return together((keys, rng.integers(-2, 3, (S, V)).astype(float), APART * FIRST * np.sort(rng.integers(0, 3, S))[::-1]))


def state_without_gates(rng, K, V):
    return state_of(rng, K, V) * np.append(np.ones(K + V), 0.0)


def together(state):
    """Keys, values and sums of gates, zeros where there are none."""
    keys, values, *sums = state
    return np.concatenate([keys, values, sums[0][:, None] if sums else np.zeros((len(keys), 1))], axis=1)


def apart(state, token):
    K = token["k"].shape[-1]
    return state[:, :K], state[:, K:-1], *([state[:, -1]] if "F" in token else [])


def forms_of(module, *blocks):
    """Functions of (tokens, state)."""
    forms = {f"blocks of {n}": lambda x, S0, n=n: module.blockwise(**x, S0=S0, block=n) for n in blocks}
    return forms | {"parallel": lambda x, S0: (module.parallel_forgetting if "F" in x else module.parallel)(**x, S0=S0)}


def joined(form):
    def run(tokens, S0):
        o, state = form(tokens, apart(S0, tokens))
        return o, together(state)

    return run


def stepped(state, token):
    o, state = path.step(apart(state, token), *token.values())
    return o, together(state)


def on_arrays(form):
    def run(tokens, S0):
        rows = {name: inputs.tensor(x[None, :, None], "float32") for name, x in tokens.items()}
        o, state = form(rows, tuple(inputs.tensor(x[None, None], "float32") for x in apart(S0, tokens)))
        return inputs.array(o)[0, :, 0], together(tuple(inputs.array(x)[0, 0] for x in state))

    return run


def one_token(step):
    def run(state, token):
        rows = [inputs.tensor(x[None, None], "float32") for x in token.values()]
        o, state = step(tuple(inputs.tensor(x[None, None], "float32") for x in apart(state, token)), *rows)
        return inputs.array(o)[0, 0], together(tuple(inputs.array(x)[0, 0] for x in state))

    return run


def of_spec(forgets):
    forms = {name: joined(form) for name, form in forms_of(path, 1, 2, 3, 7, 16, 64).items()}
    draws = (forgetting_tokens, state_of) if forgets else (exact_tokens, state_without_gates)
    return battery.Operation(forms["parallel"], forms, stepped, *draws)


def of_fast(fast, forgets):
    forms = {name: on_arrays(form) for name, form in forms_of(fast, 1, 7, 16, 64).items()}
    return replace(of_spec(forgets), forms=forms, step=one_token(fast.step))
