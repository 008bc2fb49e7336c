"""`twofold bugs`: the bug museum, where the suite shows its teeth."""

import difflib
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

from twofold.cli.check import Unavailable
from twofold.cli.console import console, table

__all__ = ["Unavailable", "prove", "run", "show", "show_proofs"]


def run(patterns: Iterable[str] = (), matrix: bool = False, progress: bool = True) -> list[dict[str, Any]]:
    """Judge every known bug that matches; `killed` tells whether the suite noticed it, `killed_by` which tests did."""
    if not all(importlib.util.find_spec(name) for name in ("pytest", "hypothesis", "torch")):
        raise Unavailable("the bug museum needs the suite: install twofold with its extra 'conformance'")
    from twofold.conformance import museum

    for pattern in patterns:
        if not museum.bugs([pattern]):
            known = {name for bug in museum.bugs() for name in (bug.id, bug.chapter, bug.chapter.partition(".")[0])}
            near = difflib.get_close_matches(pattern, sorted(known), n=3)
            raise Unavailable(f"no known bug matches {pattern!r}" + (f": did you mean {' or '.join(near)}?" if near else ""))
    entries = museum.bugs(patterns)
    results = []
    for number, verdict in enumerate(museum.judge(entries, matrix, processes=os.cpu_count() or 1), start=1):
        results.append({key: verdict[key] for key in ("id", "source", "chapter", "law", "killed", "killed_by", "bias")})
        if progress:
            says = "caught" if verdict["killed"] else f"[red]ALIVE[/red] {verdict.get('errors') or ''}"
            console(stderr=True).print(f"{number} of {len(entries)}  {says}  {verdict['id']}")
    return results


def prove(patterns: Iterable[str] = (), progress: bool = True) -> list[dict[str, Any]]:
    """What the prover says of every sampler with a known bug in its text; `refuted` are the claims that fail."""
    if not all(importlib.util.find_spec(name) for name in ("pytest", "hypothesis", "torch")):
        raise Unavailable("the bug museum needs the suite: install twofold with its extra 'conformance'")
    from twofold.conformance import museum

    entries, results = museum.provable(museum.bugs(patterns)), []
    for number, verdict in enumerate(museum.refuted(entries, os.cpu_count() or 1), start=1):
        results.append(verdict)
        if progress:
            console(stderr=True).print(f"{number} of {len(entries)}  {'refuted' if verdict['refuted'] else 'certified'}  {verdict['id']}")
    return results


def show_proofs(results: list[dict[str, Any]]) -> None:
    proofs = table("bug", "chapter", "refuted claims", "bias", "otherwise caught by")
    for each in results:
        proofs.add_row(each["id"], each["chapter"], "\n".join(each["refuted"]), each["bias"], "" if each["refuted"] else each["law"])
    console().print(proofs)
    console().print(f"{sum(bool(each['refuted']) for each in results)} of {len(results)} refuted")


def show(results: list[dict[str, Any]]) -> None:
    museum = table("bug", "from", "chapter", "the law it breaks", "caught by", "bias")
    for each in results:
        tests = [test.rpartition("::")[2] for test in each["killed_by"]]
        museum.add_row(each["id"], each["source"], each["chapter"], each["law"], "\n".join(tests) or "NOBODY", each["bias"])
    console().print(museum)
    alive = sum(not each["killed"] for each in results)
    console().print(f"{len(results) - alive} bugs caught, {alive} alive")
