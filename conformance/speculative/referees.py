r"""What no lossless verifier can beat: upper bounds that come from the problem alone, not from any algorithm.

- `best_chain`: a single-draft verifier is a law $\pi(x, t, y)$ of draft, number of tokens kept and the token after them, with the drafter's
  law of $x$ and, completed by the target, the target's law of the text. Both are linear in $\pi$, and so is $E[\tau]$: a linear program.
- `prefix_tv`: $x_{:i}$ is kept at most as often as both models write it, so $E[\tau] \le \sum_i \sum_{x_{:i}} \min(P(x_{:i}), Q(x_{:i}))$.
- `min_cut`, `best_coupling`: several drafts for one position. A verifier couples the drafts with a token $Y \sim p$, and keeps one where
  $Y$ is among them. The best coupling is a linear program too; its dual is the least cut $\min_A p(A) + 1 - \Pr(\text{all drafts in } A)$.

The linear programs are solved in float64, the others are exact on fractions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
from scipy.optimize import linprog

__all__ = ["best_chain", "best_coupling", "inside", "min_cut", "prefix_tv"]

Model = Callable[[Sequence[int]], np.ndarray]


def best_chain(target: Model, drafter: Model, gamma: int) -> float:
    """The greatest E[tau] of all lossless verifiers of a chain of gamma drafted tokens."""
    V = len(target(()))
    drafts = [x for x in product(range(V), repeat=gamma) if _chance(drafter, x)]
    outcomes = [(x, kept, token) for x in drafts for kept in range(gamma + 1) for token in range(V)]
    texts = list(product(range(V), repeat=gamma + 1))
    drafted: list[list] = [[x == draft for draft, _, _ in outcomes] for x in drafts]  # summed over outcomes: Q(x)
    written = [[_continued(target, (*x[:kept], token), text) for x, kept, token in outcomes] for text in texts]  # P(text)
    chances = [_chance(drafter, x) for x in drafts] + [_chance(target, text) for text in texts]
    return _greatest([kept for _, kept, _ in outcomes], drafted + written, chances)


def prefix_tv(target: Model, drafter: Model, gamma: int) -> Fraction:
    """The sum over all prefixes of at most gamma tokens of the lesser of their probabilities: no lossless verifier keeps more."""
    texts = [text for n in range(1, gamma + 1) for text in product(range(len(target(()))), repeat=n)]
    return sum((min(_chance(target, text), _chance(drafter, text)) for text in texts), Fraction(0))


def min_cut(p: np.ndarray, Qk: Callable[[frozenset[int]], Any]) -> Any:
    """The least of p(A) + 1 - Qk(A) over all sets A of tokens; `Qk(A)` is the probability that all drafts lie in A."""
    subsets = (frozenset(A) for size in range(len(p) + 1) for A in combinations(range(len(p)), size))
    return min(sum(p[v] for v in A) + 1 - Qk(A) for A in subsets)


def inside(drafts: Mapping[Iterable[int], Fraction]) -> Callable[[frozenset[int]], Fraction]:
    """`Qk` of a law of drafts: the probability that all of them lie in a set."""
    return lambda A: sum((weight for tokens, weight in drafts.items() if set(tokens) <= A), Fraction(0))


def best_coupling(p: np.ndarray, drafts: Mapping[tuple[int, ...], Fraction]) -> float:
    """The greatest P(Y among the drafts) of all joint laws of drafts, with this law, and a token Y of law p."""
    outcomes = [(x, token) for x in drafts for token in range(len(p))]
    drawn = [[x == tokens for tokens, _ in outcomes] for x in drafts]
    emitted = [[v == token for _, token in outcomes] for v in range(len(p))]
    return _greatest([token in x for x, token in outcomes], drawn + emitted, [*drafts.values(), *p])


def _greatest(gain: Sequence, rows: Sequence[Sequence], sums: Sequence) -> float:
    """The greatest gain . w over weights w >= 0 whose weighted sums are given."""
    found = linprog(-np.array(gain, dtype=float), A_eq=np.array(rows, dtype=float), b_eq=np.array(sums, dtype=float), method="highs")
    assert found.success, found.message
    return -found.fun


def _chance(model: Model, text: Sequence[int]) -> Fraction:
    """The probability that the model writes this text."""
    return _continued(model, (), text)


def _continued(model: Model, start: Sequence[int], text: Sequence[int]) -> Fraction:
    """The probability that what starts so becomes this text, once the model continues it; 0 where it starts otherwise."""
    if tuple(text[: len(start)]) != tuple(start):
        return Fraction(0)
    chance = Fraction(1)
    for place in range(len(start), len(text)):
        chance *= model(tuple(text[:place]))[text[place]]
    return chance
