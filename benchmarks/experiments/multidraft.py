"""Several drafts for one position: how often each rule keeps one of them, exactly, beside the optimum.

Forty pairs of small random laws; the acceptance of every rule is enumerated in fractions over all drafts and coins. Temperature T takes the
weights to the power 1 / T, for target and drafter alike: whole powers stay fractions, roots are rounded to thousandths.
"""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.plots import COLORS, GRAY
from twofold.conformance.law import law
from twofold.conformance.speculative.rounds import independent
from twofold.spec.speculative import kseq, match, rsd, spechub, specinfer, transport

PAIRS, WIDTHS = 40, (1, 2, 3)
TEMPERATURES = {"1/3": 3, "1/2": 2, "2": 1 / 2}  # beside 1, and the powers that they are


def pairs(power: float = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = random.Random(5)

    def row(V: int) -> np.ndarray:
        weights = [0]
        while not any(weights):
            weights = [generator.randint(0, 12) for _ in range(V)]
        weights = [w**power if power >= 1 else round(1000 * w**power) for w in weights]
        return np.array([Fraction(w, sum(weights)) for w in weights], dtype=object)

    return [(row(3 + s % 2), row(3 + s % 2)) for s in range(PAIRS)]


def accepted(select: Callable, sample: Callable, p: np.ndarray, q: np.ndarray, k: int) -> Fraction:
    """The exact chance that one of k drafts is kept."""

    def program(rng):
        drafts = sample(q, k, rng)
        return bool(select(p, q, drafts, rng)[1])

    return law(program).get(True, Fraction(0))


def by_match(p, q, drafts, rng):
    token = rng.categorical(p)
    return token, token in drafts


def likeliest(q, k, rng):
    return sorted(range(len(q)), key=lambda v: (-q[v], v))[:k]


def run() -> dict[str, Any]:
    rules: dict[str, Callable] = {
        "exact match, independent drafts": lambda p, q, k: accepted(by_match, independent, p, q, k),
        "the k likeliest tokens": lambda p, q, k: accepted(lambda p, q, drafts, rng: match.sequential(p, drafts, rng), likeliest, p, q, k),
        "recursive rejection": lambda p, q, k: accepted(
            lambda p, q, drafts, rng: specinfer.select(p, [q] * len(drafts), drafts, rng), independent, p, q, k
        ),
        "k-sequential selection": lambda p, q, k: accepted(kseq.select, independent, p, q, k),
        "optimum, independent drafts": lambda p, q, k: transport.optimum(p, q, k),
        "recursive rejection without replacement": lambda p, q, k: accepted(rsd.select, rsd.sample, p, q, k),
        "optimum without replacement": lambda p, q, k: transport.optimum_without_replacement(p, q, k),
    }
    for_two = {"SpecHub": lambda p, q, k: accepted(spechub.select, lambda q, k, rng: spechub.sample(q, rng), p, q, k)}
    found, rows = pairs(), []
    at = {temperature: pairs(power) for temperature, power in TEMPERATURES.items()}
    mean = lambda acceptance, among, k: round(float(sum(acceptance(p, q, k) for p, q in among) / PAIRS), 3)
    for rule, acceptance in (rules | for_two).items():
        by_width = {f"{k} draft{'s' * (k > 1)}": mean(acceptance, found, k) for k in (WIDTHS if rule in rules else (2,))}
        rows.append({"rule": rule} | by_width | {f"2 drafts, T = {name}": mean(acceptance, among, 2) for name, among in at.items()})
    two = {row["rule"]: row["2 drafts"] for row in rows}
    cold, warm = (f"2 drafts, T = {name}" for name in ("1/3", "2"))
    claims = {
        "no rule beats the optimum of its drafts": max(two["recursive rejection"], two["k-sequential selection"])
        <= two["optimum, independent drafts"] and two["recursive rejection without replacement"] <= two["optimum without replacement"],
        "drawing without replacement keeps more": two["recursive rejection without replacement"] > two["recursive rejection"],
        "k-sequential selection keeps more than recursive rejection": two["k-sequential selection"] > two["recursive rejection"],
        "nor at any temperature": all(
            rows[i][f"2 drafts, T = {name}"] <= rows[best][f"2 drafts, T = {name}"] for i, best in ((2, 4), (3, 4), (5, 6)) for name in at
        ),
        "the warmer, the more every lossless rule keeps": all(row[cold] < row["2 drafts"] < row[warm] for row in rows[2:]),
        "one draft is the same to all lossless rules that look at q": len({row["1 draft"] for row in rows[2:7]}) == 1,
    }  # fmt: skip
    return {"what": "chance that a drafted token is kept", "pairs": PAIRS, "rows": rows, "claims": claims}


def draw(panel: Any, report: dict[str, Any]) -> None:
    for row, color in zip(report["rows"], [*COLORS, GRAY], strict=False):
        values = {k: row[f"{k} draft{'s' * (k > 1)}"] for k in WIDTHS if f"{k} draft{'s' * (k > 1)}" in row}
        line = "--" if "optimum" in row["rule"] else "-"
        panel.plot(*zip(*values.items(), strict=True), line, marker="o", ms=3, color=color, label=row["rule"])
    panel.set(xlabel="drafts for the position", ylabel=report["what"], xticks=WIDTHS)
    panel.legend(frameon=False, fontsize=8)
