"""The exact law of a sampler: every outcome with its rational probability, found by taking every path of choices once.

A sampler written against `rng.bernoulli` and `rng.categorical` runs unchanged under `Exact`, which follows a script of choices instead of
drawing and multiplies their probabilities. `law` advances the script depth first until no path is left. Where all probabilities are
`Fraction`s the result is exact, and `==` between two laws is a proof, for that instance, that they are the same law.

>>> coin = lambda rng: rng.bernoulli(Fraction(1, 3))
>>> law(lambda rng: coin(rng) + coin(rng))
{0: Fraction(4, 9), 1: Fraction(4, 9), 2: Fraction(1, 9)}
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

__all__ = [
    "DRAFT", "Exact", "Model", "TARGET", "as_law", "autoregressive", "completed", "conditionals", "law", "models", "total_variation"
]  # fmt: skip

Text = tuple[int, ...]
Law = dict[Any, Fraction]


class Exact:
    """An rng that follows a script of choices and multiplies their probabilities; past the script it takes the first outcome."""

    def __init__(self, script: Sequence[int]):
        self.script, self.weight = script, Fraction(1)
        self.taken: list[tuple[int, int]] = []  # (choice, number of outcomes)

    def categorical(self, probabilities) -> int:
        outcomes = [v for v, probability in enumerate(probabilities) if probability != 0]
        if not all(probabilities[v] > 0 for v in outcomes) or sum(probabilities) != 1:
            raise ValueError(f"probabilities must be at least 0 and sum to exactly 1, not {probabilities}")
        choice = self.script[len(self.taken)] if len(self.taken) < len(self.script) else 0
        self.taken.append((choice, len(outcomes)))
        self.weight *= probabilities[outcomes[choice]]
        return outcomes[choice]

    def bernoulli(self, probability) -> bool:
        probability = max(min(probability, Fraction(1)), Fraction(0))
        return bool(self.categorical([1 - probability, probability]))


def law(program: Callable[[Any], Hashable]) -> Law:
    """The exact law of `program(rng)`."""
    result: Law = {}
    script: list[int] | None = []
    while script is not None:
        rng = Exact(script)
        outcome = program(rng)
        result[outcome] = result.get(outcome, Fraction(0)) + rng.weight
        taken = rng.taken
        while taken and taken[-1][0] == taken[-1][1] - 1:  # this choice has no further outcome
            taken.pop()
        script = [choice for choice, _ in taken[:-1]] + [taken[-1][0] + 1] if taken else None
    assert sum(result.values()) == 1, f"the probabilities of all outcomes sum to {sum(result.values())}"
    return result


class Model(dict):
    """A language model as a table: the law of the next token, a vector of `Fraction`s, after each context."""

    def __call__(self, context: Sequence[int]) -> np.ndarray:
        return self[tuple(context)]


@st.composite
def models(draw, vocabulary: int, length: int, greatest: int = 4) -> Model:
    """A random rational language model with a row of its own after every context shorter than `length`; zeros are welcome."""
    contexts = [context for n in range(length) for context in product(range(vocabulary), repeat=n)]
    size = len(contexts) * vocabulary
    weights = np.array(draw(st.lists(st.integers(0, greatest), min_size=size, max_size=size))).reshape(-1, vocabulary)
    weights[weights.sum(1) == 0, 0] = 1
    return Model({context: _row(row) for context, row in zip(contexts, weights.tolist(), strict=True)})


def autoregressive(target: Callable[[Text], np.ndarray], length: int) -> Law:
    """The law of `length` tokens drawn one by one from the target: what every lossless sampler must return."""
    return completed({(): Fraction(1)}, target, length)


def completed(outputs: Law, target: Callable[[Text], np.ndarray], length: int) -> Law:
    """The law of outputs of any length, each cut at `length` tokens or continued to it by the target itself."""
    result: Law = {}
    for text, weight in outputs.items():
        if len(text) >= length:
            result[text[:length]] = result.get(text[:length], Fraction(0)) + weight
            continue
        for token, probability in enumerate(target(text)):
            if probability:
                for longer, part in completed({(*text, token): weight * probability}, target, length).items():
                    result[longer] = result.get(longer, Fraction(0)) + part
    return result


def conditionals(outputs: Law) -> dict[Text, Law]:
    """The law of the next emitted token after each prefix, among the outputs that start with that prefix and are longer.

    A sampler whose conditionals are the target's rows is lossless for outputs continued to any length, and conversely.
    """
    after: dict[Text, Law] = {}
    for text, weight in outputs.items():
        for n, token in enumerate(text):
            tokens = after.setdefault(text[:n], {})
            tokens[token] = tokens.get(token, Fraction(0)) + weight
    return {prefix: {token: w / sum(tokens.values()) for token, w in tokens.items()} for prefix, tokens in after.items()}


def as_law(row: np.ndarray) -> Law:
    """A row of probabilities as a law: its tokens of positive probability."""
    return {token: probability for token, probability in enumerate(row) if probability}


def total_variation(one: Mapping[Any, Fraction], other: Mapping[Any, Fraction]) -> Fraction:
    """Half the sum of absolute differences: the greatest difference that any event can show."""
    zero = Fraction(0)
    return sum((abs(one.get(x, zero) - other.get(x, zero)) for x in {*one, *other}), zero) / 2


def _row(weights: Sequence[int]) -> np.ndarray:
    return np.array([Fraction(w, sum(weights)) for w in weights], dtype=object)


def _markov(*rows: Sequence[int]) -> Callable[[Sequence[int]], np.ndarray]:
    return lambda context: _row(rows[context[-1] + 1 if len(context) else 0])


# The reference pair, on which every verifier's acceptance and every known bug's bias is an exact number: three tokens, one row at the start
# and one after each last token.
TARGET = _markov((3, 1, 2), (2, 1, 3), (1, 3, 2), (1, 2, 3))
DRAFT = _markov((1, 1, 4), (3, 2, 1), (4, 1, 1), (4, 1, 1))
