"""One round of speculation as a program `program(rng) -> emitted tokens`, for every kind of verifier; `law(program)` is its exact law.

What a verifier is, the names of its arguments say:

| leading arguments | kind | drafted |
|---|---|---|
| `p, q, draft` or `p, draft` | chain | one token per position |
| `p, q, tokens, parents` or `p, tokens, parents` | tree | the children of each node, in the order of their ids |
| `p, q, drafts`, `p, qs, drafts` or `p, drafts` | level | several tokens for one position |

then `rng`. A verifier without `rng` is greedy: it claims the law of the target's likeliest tokens. Siblings are drawn by the function
`sample(q, k, rng)` that stands in the verifier's module, if there is one; else independently, or distinct where the verifier sees no q.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twofold.conformance.law import as_law, autoregressive, completed, conditionals, law

__all__ = [
    "branching", "chain", "distinct", "greedily", "independent", "kept", "kind", "level", "lossless", "sampler", "shapes", "tree",
]  # fmt: skip

Model = Callable[[Sequence[int]], np.ndarray]
CHAINS, TREES = {"p q draft", "p draft"}, {"p q tokens parents", "p tokens parents"}
LEVELS = {"p q drafts", "p qs drafts", "p drafts"}


def kind(verify: Callable) -> str:
    """`chain`, `tree` or `level`, by the names of the arguments that have no default; an empty string for anything else."""
    names = [name for name, each in inspect.signature(verify).parameters.items() if each.default is each.empty and name != "rng"]
    return next((kind for kind, spelled in (("chain", CHAINS), ("tree", TREES), ("level", LEVELS)) if " ".join(names) in spelled), "")


def chain(target: Model, drafter: Model, gamma: int, verify: Callable) -> Callable[[Any], tuple[int, ...]]:
    """Draft gamma tokens one after another, verify them, and emit what was kept and the token that follows."""

    def program(rng):
        draft: tuple[int, ...] = ()
        for _ in range(gamma):
            draft += (rng.categorical(drafter(draft)),)
        p, q = [target(draft[:i]) for i in range(gamma + 1)], [drafter(draft[:i]) for i in range(gamma)]
        kept, token = _call(verify, rng, p=p, q=q, draft=draft)
        return (*draft[:kept], token)

    return program


def tree(target: Model, drafter: Model, parents: Sequence[int], verify: Callable, sample: Callable | None = None):
    """Draft a tree of this shape from the root down, verify it, and emit the accepted path and the token that follows.

    `parents` is the shape, -1 at node 0. A law with fewer tokens than a node has children leaves some out, and all below them.
    """
    sample = sample or sampler(verify)

    def program(rng):
        tokens, up, names = [-1], [-1], {0: 0}  # names: the node of each place of the shape that was filled
        contexts = [()]
        for place in range(len(parents)):
            children = [child for child, parent in enumerate(parents) if parent == place]
            if place in names and children:
                context = contexts[names[place]]
                for child, token in zip(children, sample(drafter(context), len(children), rng)):
                    names[child] = len(tokens)
                    tokens, up, contexts = [*tokens, token], [*up, names[place]], [*contexts, (*context, token)]
        p, q = [target(context) for context in contexts], [drafter(context) for context in contexts]
        path, token = _call(verify, rng, p=p, q=q, tokens=tokens, parents=up)
        return (*(tokens[node] for node in path), token)

    return program


def level(target: Model, drafter: Model, k: int, select: Callable, sample: Callable | None = None):
    """Draft k tokens for one position and emit the one that is selected, or drawn instead."""
    sample = sample or sampler(select)

    def program(rng):
        p, q = target(()), drafter(())
        drafts = sample(q, k, rng)
        return (_call(select, rng, p=p, q=q, qs=[q] * len(drafts), drafts=drafts)[0],)

    return program


def _call(verify, rng, **arguments):
    names = inspect.signature(verify).parameters
    given = [rng if name == "rng" else arguments[name] for name, each in names.items() if each.default is each.empty]
    return verify(*given)


def sampler(verify: Callable) -> Callable:
    """How the siblings that this verifier sees are drawn."""
    theirs = getattr(sys.modules.get(verify.__module__), "sample", None)
    if theirs is None:
        return distinct if list(inspect.signature(verify).parameters)[:2] == ["p", "drafts"] else independent
    return theirs if "k" in inspect.signature(theirs).parameters else lambda q, k, rng: theirs(q, rng)


def independent(q, k, rng):
    """k tokens drawn from q, each by itself."""
    return [rng.categorical(q) for _ in range(k)]


def distinct(q, k, rng):
    """k tokens drawn from q, none twice; fewer where q has fewer."""
    drafts: list[int] = []
    while len(drafts) < k and q.sum() > 0:
        drafts.append(rng.categorical(q / q.sum()))
        q = np.where(np.arange(len(q)) == drafts[-1], 0, q)
    return drafts


def branching(*widths: int) -> list[int]:
    """The parents of a tree in which every node of depth d has `widths[d]` children, numbered level by level."""
    parents, layer = [-1], [0]
    for width in widths:
        first = len(parents)
        parents += [parent for parent in layer for _ in range(width)]
        layer = list(range(first, len(parents)))
    return parents


shapes = st.integers(0, 5).flatmap(  # the parents of trees of up to six nodes, the root included
    lambda drafted: st.tuples(*(st.integers(0, n) for n in range(drafted))).map(lambda up: [-1, *up])
)


def greedily(target: Model) -> Model:
    """The model that gives all mass to the target's likeliest token, the lowest id of equals."""

    def row(context):
        p = target(context)
        return np.array([Fraction(v == int(np.argmax(p))) for v in range(len(p))], dtype=object)

    return row


def lossless(program: Callable, target: Model, length: int) -> None:
    """Demand that what the program emits, continued by the target to `length` tokens, has the target's joint law, and every conditional."""
    outputs = law(program)
    for prefix, row in conditionals(outputs).items():
        assert row == as_law(target(prefix)), f"after {prefix} the next token has the law {row}, not {as_law(target(prefix))}"
    assert completed(outputs, target, length) == autoregressive(target, length)


def kept(program: Callable) -> Fraction:
    """The mean number of draft tokens that a round keeps, E[tau]."""
    return sum(((len(text) - 1) * weight for text, weight in law(program).items()), Fraction(0))
