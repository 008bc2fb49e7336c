"""What the laws of a causal recurrence (`laws.py`) are stated about: an operation, the cases to try it on, and the two sides as operations.

The laws are exact: `exact_tokens` draws small integers and log-decays of 0 and -inf (factors 1 and 0), so that every legal order of
operations, in every format, gives the same bits, and whoever mixes up a token, a channel, a head or a boundary gives others. (How
precisely real values are summed is another question, answered by bounds in each chapter's agreement test.)

A definition is a function of (tokens, S0) on NumPy arrays without batch and heads; tokens is a dict of arrays whose first axis is time,
"v" among them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.compare import exactly

__all__ = ["SIDES", "Case", "Operation", "Run", "cases", "exact_tokens", "few", "on_tensors", "one_token", "run_of", "side"]

Tokens = dict[str, np.ndarray]
SIDES = ["spec", *target.backends()]  # a law holds for the spec and for every implementation of it

few = settings(max_examples=max(3, settings().max_examples // 5))  # a law that holds exactly shows its failure soon


class Case(NamedTuple):
    """What is drawn of a run: its sizes, a place between its tokens, and a seed for their elements."""

    T: int
    K: int
    V: int
    at: int
    seed: int


class Run(NamedTuple):
    """Tokens and the state before them, a place between tokens, and others that could stand in their stead."""

    tokens: Tokens
    S0: np.ndarray  # (K, V), or as `Operation.state_of` draws it
    at: int
    others: Tokens
    S1: np.ndarray  # as S0


def whole_numbers(rng: np.random.Generator, K: int, V: int) -> np.ndarray:
    """A state (K, V) of -2 … 2."""
    return rng.integers(-2, 3, (K, V)).astype(float)


@dataclass(frozen=True)
class Operation:
    """One operation of one side: its definition (always the spec's), its forms, one token at a time, and tokens on which it is exact."""

    definition: Callable[[Tokens, np.ndarray], tuple]
    forms: dict[str, Callable[[Tokens, np.ndarray], tuple]]
    step: Callable[[np.ndarray, Tokens], tuple]
    tokens_of: Callable[..., Tokens]  # of (rng, T, K, V)
    state_of: Callable[..., np.ndarray] = whole_numbers  # of (rng, K, V); a state of several arrays is handed on as one

    def run(self, case: Case) -> Run:
        return run_of(case, self.tokens_of, self.state_of)

    def demand(self, tokens: Tokens, S0: np.ndarray, what: str) -> tuple:
        """Every form gives the definition's outputs and final state; returns them."""
        before = {name: x.copy() for name, x in tokens.items()}, S0.copy()
        expected = self.definition(tokens, S0)
        for name, form in self.forms.items():
            actual = form(tokens, S0)
            exactly(actual[0], expected[0], f"{what}: outputs of {name}")
            exactly(actual[1], expected[1], f"{what}: final state of {name}")
        for name, x in tokens.items():
            exactly(x, before[0][name], f"{what}: input {name} after the call")
        exactly(S0, before[1], f"{what}: input S0 after the call")
        return expected


def exact_tokens(rng: np.random.Generator, T: int, K: int, V: int, forget: float = 0.1) -> Tokens:
    """Queries and keys of -1, 0, 1, values of -2 … 2, log-decays of 0 and, with probability `forget`, -inf."""
    return {
        "q": rng.integers(-1, 2, (T, K)).astype(float),
        "k": rng.integers(-1, 2, (T, K)).astype(float),
        "v": rng.integers(-2, 3, (T, V)).astype(float),
        "g": np.where(rng.random((T, K)) < forget, -np.inf, 0.0),
    }


def run_of(case: Case, tokens_of: Callable[..., Tokens], state_of: Callable[..., np.ndarray] = whole_numbers) -> Run:
    T, K, V, at, seed = case
    rng = np.random.default_rng(seed)
    tokens, others = tokens_of(rng, T, K, V), tokens_of(rng, T, K, V)
    S0, S1 = state_of(rng, K, V), state_of(rng, K, V)
    return Run(tokens, S0, at, others, S1)


@st.composite
def cases(draw) -> Case:
    """Lengths around a sub-chunk and around the chunks of 16 and 32; K != V, no powers of two, more than one tile of either."""
    T = draw(st.sampled_from([1, 2, 15, 16, 17, 33, 35]))
    K, V = draw(st.sampled_from([(1, 1), (5, 3), (16, 16), (20, 70), (40, 7)]))
    return Case(T, K, V, draw(st.integers(0, T - 1)), draw(inputs.seeds))


def on_tensors(form: Callable, names: tuple[str, ...], dtype: str = "float32", **options) -> Callable[[Tokens, Any], tuple]:
    """A form of `fast` as a function of (tokens, S0) on arrays: one sequence, one head."""

    def run(tokens: Tokens, S0: np.ndarray) -> tuple:
        rows = [inputs.tensor(tokens[name][None, :, None], "float32" if name == "g" else dtype) for name in names]
        output, state = form(*rows, inputs.tensor(S0[None, None], "float32"), **options)
        return inputs.array(output)[0, :, 0], inputs.array(state)[0, 0]

    return run


def one_token(form: Callable, names: tuple[str, ...]) -> Callable[[np.ndarray, Tokens], tuple]:
    """`step` of `fast` on arrays: one sequence, one head."""

    def run(state: np.ndarray, token: Tokens) -> tuple:
        rows = [inputs.tensor(token[name][None, None], "float32") for name in names]
        output, after = form(inputs.tensor(state[None, None], "float32"), *rows)
        return inputs.array(output)[0, 0], inputs.array(after)[0, 0]

    return run


@contextmanager
def side(name: str, chapter: str, of_spec: Callable, of_fast: Callable) -> Iterator[Operation]:
    """The operation of the spec, or of the implementation under test with that side forced."""
    if name == "spec":
        yield of_spec()
    else:
        with torch.no_grad(), target.implementation(chapter, name) as implementation:
            yield of_fast(implementation)
