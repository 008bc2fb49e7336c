"""Certify or refute that a sampler keeps a law: `twofold prove speculative.chain`, or `twofold prove my_module:verify` for anybody's.

A `Claim` is a round of speculation and the law that its text should have. On random rational models, a row of its own after every context
and zeros among them, the exact law of the round is enumerated and compared by `==`. One model pair on which they differ is a refutation;
hypothesis shrinks it to the smallest. What a verifier claims, the names of its arguments say (see `conformance/speculative/rounds.py`); a
chapter whose round is of another shape lists its own claims as `CLAIMS` in its test file.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import hypothesis
from hypothesis import strategies as st

from twofold import discovery
from twofold.conformance.law import DRAFT, TARGET, Law, Model, autoregressive, completed, law, models, total_variation
from twofold.conformance.speculative import rounds

__all__ = ["Claim", "Unprovable", "Verdict", "bias", "claims", "prove", "reachable"]


class Unprovable(LookupError):
    """A name that is no chapter and no function, or one that claims no law that can be enumerated."""


@dataclass(frozen=True)
class Claim:
    """That `program(target, drafter)` emits text of the law of the model `claimed(target, drafter)`, as a rule the target itself.

    The laws are compared over `length` tokens of a small vocabulary.
    """

    what: str
    program: Callable[[Any, Any], Callable[[Any], tuple[int, ...]]]
    length: int
    vocabulary: int = 3
    claimed: Callable[[Any, Any], Any] = lambda target, drafter: target
    reference: bool = False  # whether its bias on the reference pair is the one to quote

    def laws(self, target, drafter) -> tuple[Law, Law]:
        """The law of the emitted text, continued by the claimed model to `length` tokens, and the law claimed."""
        model = self.claimed(target, drafter)
        return completed(law(self.program(target, drafter)), model, self.length), autoregressive(model, self.length)


@dataclass(frozen=True)
class Verdict:
    """What came of one claim: `pair` is the smallest (target, drafter) that refutes it, `error` what was raised there, if anything."""

    claim: Claim
    examples: int
    bias: Fraction | None
    pair: tuple[Model, Model] | None = None
    error: str = ""

    @property
    def certified(self) -> bool:
        return self.pair is None and self.bias == 0  # None: it raised on the reference pair


def claims(name: str) -> list[Claim]:
    """The claims of a chapter, `family.algorithm`, or of a function, `module:function`."""
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            found = list(_of(getattr(importlib.import_module(module), function)))
        except (ImportError, AttributeError) as error:
            raise Unprovable(f"{name} cannot be imported: {error}") from None
    else:
        chapter = discovery.find(name)
        spec = importlib.import_module(f"twofold.spec.{chapter.name}")
        found = [claim for form in chapter.forms for claim in _of(getattr(spec, form))]
        if chapter.conformance:
            test = importlib.import_module(f"twofold.conformance.{chapter.family}.test_{chapter.algorithm}")
            found += getattr(test, "CLAIMS", [])
    if not found:
        shapes = ", ".join(f"({', '.join(names.split())}, rng)" for names in sorted(rounds.CHAINS | rounds.LEVELS | rounds.TREES))
        raise Unprovable(f"{name} claims no law that can be enumerated; a verifier takes one of {shapes}")
    return found


def _of(verify: Any) -> Iterator[Claim]:
    """What a verifier claims by the names of its arguments; nothing where they are others."""
    kind = rounds.kind(verify) if inspect.isfunction(verify) else ""
    exact = kind and "rng" in inspect.signature(verify).parameters
    claimed = lambda target, drafter: target if exact else rounds.greedily(target)
    form = getattr(verify, "__name__", "")
    if kind == "chain":
        for gamma in (2, 1, 3):
            yield Claim(f"{form}, {gamma} drafted", partial(_chain, gamma, verify), gamma + 1, 3 if gamma < 3 else 2, claimed, gamma == 2)
    if kind == "level":
        for k in (2, 1, 3):
            yield Claim(f"{form}, {k} drafted for one position", partial(_level, k, verify), 1, 3, claimed, k == 2)
    if kind == "tree":
        for widths, vocabulary in (((2, 1), 3), ((2, 2), 2), ((1, 2, 1), 2)):
            shape = " × ".join(map(str, widths))
            program = partial(_tree, rounds.branching(*widths), verify)
            yield Claim(f"{form}, a tree of {shape}", program, len(widths) + 1, vocabulary, claimed, widths == (2, 1))


def _chain(gamma, verify, target, drafter):
    return rounds.chain(target, drafter, gamma, verify)


def _level(k, verify, target, drafter):
    return rounds.level(target, drafter, k, verify)


def _tree(parents, verify, target, drafter):
    return rounds.tree(target, drafter, parents, verify)


def bias(name: str) -> Fraction:
    """How far the sampler is from the law it claims on the reference pair: the total variation of the first claim that is off, else 0."""
    found = (total_variation(*claim.laws(TARGET, DRAFT)) for claim in claims(name) if claim.reference)
    return next((each for each in found if each), Fraction(0))


def prove(found: Iterable[Claim], examples: int = 50) -> Iterator[Verdict]:
    """Judge claims one by one, each on the reference pair (three tokens) and on `examples` random pairs of models."""
    for claim in found:
        pair, error = _refutation(claim, examples)
        try:
            reference = total_variation(*claim.laws(TARGET, DRAFT))
        except Exception:  # a sampler of anybody's may raise anything; the pair that refutes it tells what
            reference = None
        yield Verdict(claim, examples, reference, pair, error)


def _refutation(claim: Claim, examples: int) -> tuple[tuple[Model, Model] | None, str]:
    """The smallest pair of models on which the claim fails, and what was raised there."""
    pairs = st.tuples(*[models(claim.vocabulary, claim.length)] * 2)
    settings = hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    try:
        pair = hypothesis.find(pairs, lambda pair: _fault(claim, *pair) is not None, settings=settings)
    except hypothesis.errors.NoSuchExample:
        return None, ""
    return pair, _fault(claim, *pair) or ""


def _fault(claim: Claim, target: Model, drafter: Model) -> str | None:
    """None where the law is kept, an empty string where it is not, else what the sampler raised."""
    try:
        emitted, claimed = claim.laws(target, drafter)
    except Exception as error:  # see above: this is a finding, not a skip
        return f"{type(error).__name__}: {error}"
    return None if emitted == claimed else ""


def reachable(target: Model, drafter: Model) -> list[tuple[int, ...]]:
    """The contexts that the target or the drafter can write, shortest first: what lies elsewhere has no part in a counterexample."""
    possible = lambda model, text: all(model[text[:i]][token] for i, token in enumerate(text))
    return [text for text in target if possible(target, text) or possible(drafter, text)]
