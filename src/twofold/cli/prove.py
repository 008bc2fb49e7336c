"""`twofold prove`: the exact law of a sampler, or the smallest pair of models on which it is not the one that it claims."""

import importlib.util
import os
import sys
from typing import Any

from twofold.cli.check import Unavailable
from twofold.cli.console import console, table

__all__ = ["Unavailable", "run", "show"]


def run(name: str, examples: int) -> list[dict[str, Any]]:
    """One result per claim: `{claim, certified, examples, bias, counterexample}`, fractions as text; `bias`: on the reference pair."""
    if not all(importlib.util.find_spec(needed) for needed in ("hypothesis", "pytest", "torch")):
        raise Unavailable("proofs need the suite: install twofold with its extra 'conformance'")
    sys.path.insert(0, os.getcwd())  # `my_module:verify` lies where the user stands
    from twofold.conformance import prove

    try:
        found = prove.claims(name)
    except prove.Unprovable as error:
        raise Unavailable(str(error)) from None
    return [_told(verdict) for verdict in prove.prove(found, examples)]


def _told(verdict) -> dict[str, Any]:
    from twofold.conformance import prove

    smallest = None
    if verdict.pair:
        target, drafter = verdict.pair
        contexts = prove.reachable(target, drafter)
        spelled = lambda model: {_text(context): [str(x) for x in model[context]] for context in contexts}
        smallest = {"target": spelled(target), "drafter": spelled(drafter), "error": verdict.error}
        if not verdict.error:
            emitted, claimed = verdict.claim.laws(target, drafter)
            smallest |= {"emitted": _law(emitted), "claimed": _law(claimed)}
    return {
        "claim": verdict.claim.what, "certified": verdict.certified, "examples": verdict.examples,
        "bias": None if verdict.bias is None else str(verdict.bias), "counterexample": smallest,
    }  # fmt: skip


def _law(law) -> dict[str, str]:
    return {_text(text): str(weight) for text, weight in sorted(law.items())}


def _text(tokens) -> str:
    return " ".join(map(str, tokens))


def show(name: str, results: list[dict[str, Any]]) -> None:
    summary = table("claim", "", "models", "bias on the reference pair", title=name)
    for each in results:
        says = "the law is kept" if each["certified"] else "[red]REFUTED[/red]"
        summary.add_row(each["claim"], says, str(each["examples"]), each["bias"] or "–")
    console().print(summary)
    refuted = next((each for each in results if each["counterexample"]), None)
    if refuted:
        _show_counterexample(refuted["claim"], refuted["counterexample"])


def _show_counterexample(claim: str, smallest: dict[str, Any]) -> None:
    """The models where it matters, and the two laws side by side."""
    console().print(f"The smallest pair of models found for “{claim}”, rows over the vocabulary:")
    models = table("after", "target p", "draft q")
    for context, row in smallest["target"].items():
        models.add_row(context or "the start", ", ".join(row), ", ".join(smallest["drafter"][context]))
    console().print(models)
    if smallest["error"]:
        console().print(f"There the sampler raises {smallest['error']}")
        return
    laws = table("text", "emitted", "claimed", title="the law of the text")
    for text in sorted({*smallest["emitted"], *smallest["claimed"]}):
        emitted, claimed = (smallest[law].get(text, "0") for law in ("emitted", "claimed"))
        laws.add_row(text, emitted if emitted == claimed else f"[red]{emitted}[/red]", claimed)
    console().print(laws)
