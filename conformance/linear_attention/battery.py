"""The laws of a causal recurrence over tokens, stated once; a chapter declares an `Operation` and calls them.

All of them are exact: `exact_tokens` draws small integers and log-decays of 0 and -inf (factors 1 and 0), so that every legal order of
operations, in every format, gives the same bits, and whoever mixes up a token, a channel, a head or a boundary gives others. (How
precisely real values are summed is another question, answered by bounds in each chapter's agreement test.)

A definition is a function of (tokens, S0) on NumPy arrays without batch and heads; tokens is a dict of arrays whose first axis is time,
"v" among them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import settings

from twofold.conformance import inputs, target
from twofold.conformance.compare import exactly

__all__ = ["SIDES", "Operation", "exact_tokens", "few", "side"]

Tokens = dict[str, np.ndarray]
SIDES = ["spec", *target.backends()]  # a law holds for the spec and for every implementation of it

few = settings(max_examples=max(3, settings().max_examples // 5))  # a law that holds exactly shows its failure soon


@dataclass(frozen=True)
class Operation:
    """One operation of one side: its definition (always the spec's), its forms, and one token at a time."""

    definition: Callable[[Tokens, np.ndarray], tuple]
    forms: dict[str, Callable[[Tokens, np.ndarray], tuple]]
    step: Callable[[np.ndarray, Tokens], tuple]

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

    def forms_are_equal(self, tokens, S0):
        """Every form equals the definition and leaves its inputs alone."""
        self.demand(tokens, S0, "forms")

    def repeats(self, tokens, S0):
        """Two runs give the same bits."""
        for name, form in self.forms.items():
            first, second = form(tokens, S0), form(tokens, S0)
            exactly(second[0], first[0], f"a second run of {name}")
            exactly(second[1], first[1], f"final state of a second run of {name}")

    def resumes(self, tokens, S0, at):
        """Run to any token, hand the state over, go on."""
        expected = self.definition(tokens, S0)
        for name, form in self.forms.items():
            first, state = form(_cut(tokens, slice(0, at)), S0)
            second, state = form(_cut(tokens, slice(at, None)), state)
            exactly(np.concatenate([first, second]), expected[0], f"{name} resumed at token {at}")
            exactly(state, expected[1], f"final state of {name} resumed at token {at}")

    def steps_like_prefill(self, tokens, S0, accepted):
        """Token by token gives the outputs of the whole, and the state after j tokens is that of the prefix of j tokens."""
        expected, state = self.definition(tokens, S0), S0
        prefix = self.definition(_cut(tokens, slice(0, accepted)), S0)[1]
        for t in range(len(tokens["v"])):
            if t == accepted:
                exactly(state, prefix, f"state after {accepted} steps")
            output, state = self.step(state, {name: x[t] for name, x in tokens.items()})
            exactly(output, expected[0][t], f"output of step {t}")
        exactly(state, expected[1], "state after all steps")

    def is_causal(self, tokens, S0, at, others):
        """Whatever replaces the tokens from `at` on, earlier outputs do not change."""
        changed = {name: np.concatenate([x[:at], others[name][at:]]) for name, x in tokens.items()}
        for name, form in self.forms.items():
            exactly(form(changed, S0)[0][:at], form(tokens, S0)[0][:at], f"{name}: outputs before token {at}, which changed")

    def is_linear(self, tokens, S0, v, S1):
        """Outputs and state are jointly linear in (v, S0), and columns of v do not meet."""
        for name, form in self.forms.items():
            first, second = form(tokens, S0), form(tokens | {"v": v}, S1)
            both = form(tokens | {"v": tokens["v"] + 2 * v}, S0 + 2 * S1)
            for what, a, b, c in zip(("outputs", "final state"), first, second, both, strict=True):
                exactly(c, a + 2 * b, f"{name}: {what} of v + 2 v'")
            column = form(tokens | {"v": v[:, :1]}, S1[:, :1])
            exactly(column[0], second[0][:, :1], f"{name}: outputs of the first column alone")
            exactly(column[1], second[1][:, :1], f"{name}: final state of the first column alone")

    def forgets(self, tokens, S0, at):
        """Where the log-decay is -inf, a sequence begins anew."""
        cut = tokens | {"g": np.concatenate([tokens["g"][:at], np.full_like(tokens["g"][at : at + 1], -np.inf), tokens["g"][at + 1 :]])}
        expected = self.definition(_cut(cut, slice(at, None)), np.zeros_like(S0))
        for name, form in self.forms.items():
            output, state = form(cut, S0)
            exactly(output[at:], expected[0], f"{name}: outputs after everything was forgotten")
            exactly(state, expected[1], f"{name}: final state after everything was forgotten")

    def passes_over_silence(self, tokens, S0, at):
        """A token of zeros changes neither the state nor the others' outputs."""
        expected = self.definition(tokens, S0)
        silent = {name: np.concatenate([x[:at], np.zeros_like(x[:1]), x[at:]]) for name, x in tokens.items()}
        for name, form in self.forms.items():
            output, state = form(silent, S0)
            exactly(np.delete(output, at, axis=0), expected[0], f"{name}: outputs around a silent token")
            exactly(state, expected[1], f"{name}: final state with a silent token")

    def is_a_triangular_matrix(self, tokens):
        """The identity as values shows the matrix; it is lower triangular and gives the outputs."""
        count, zero = len(tokens["v"]), np.zeros((tokens["k"].shape[1], 1))
        for name, form in self.forms.items():
            W = form(tokens | {"v": np.eye(count)}, np.zeros((tokens["k"].shape[1], count)))[0]
            exactly(np.triu(W, 1), np.zeros_like(W), f"{name}: the matrix above its diagonal")
            v = tokens["v"][:, :1]
            exactly(W @ v, form(tokens | {"v": v}, zero)[0], f"{name}: the matrix times the values")

    def scales(self, tokens, S0):
        """Keys and state twice as large, queries half: the same outputs."""
        expected = self.definition(tokens, S0)
        for name, form in self.forms.items():
            output, state = form(tokens | {"q": tokens["q"] / 2, "k": tokens["k"] * 2}, S0 * 2)
            exactly(output, expected[0], f"{name}: outputs with twice the keys and half the queries")
            exactly(state, expected[1] * 2, f"{name}: final state with twice the keys")


def exact_tokens(rng: np.random.Generator, T: int, K: int, V: int, forget: float = 0.1) -> Tokens:
    """Queries and keys of -1, 0, 1, values of -2 … 2, log-decays of 0 and, with probability `forget`, -inf."""
    return {
        "q": rng.integers(-1, 2, (T, K)).astype(float),
        "k": rng.integers(-1, 2, (T, K)).astype(float),
        "v": rng.integers(-2, 3, (T, V)).astype(float),
        "g": np.where(rng.random((T, K)) < forget, -np.inf, 0.0),
    }


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


def _cut(tokens: Tokens, where: slice) -> Tokens:
    return {name: x[where] for name, x in tokens.items()}
