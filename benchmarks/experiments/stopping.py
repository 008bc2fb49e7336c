"""When to stop drafting: a fixed length, or a rule that looks at the confidence so far, on measured acceptance.

At held-out places of the n-gram pair a draft of sixteen tokens is drawn, and each token's true chance of being kept (1 - TV after the
tokens before it) stands for the confidence that a head would predict. SpecDec++ stops when a refusal has become likely. What counts is
tokens per unit of time, a call of the target being 1 and one of the drafter `c`.
"""

from typing import Any

import numpy as np

from benchmarks.experiments import ngrams
from benchmarks.plots import COLORS, OURS
from twofold import demo
from twofold.fast.speculative import cost

LONGEST, PLACES, COSTS = 16, 1500, (0.02, 0.05, 0.1, 0.2)
THRESHOLDS = tuple(np.round(np.arange(0.05, 1, 0.05), 2))


def run() -> dict[str, Any]:
    train, held, _ = demo.corpus()
    target, drafter = demo.model(train, 6), demo.model(train, 3)
    p, q, x = ngrams.drafted(target, drafter, demo.held_contexts(held, PLACES, seed=2), LONGEST)
    ratio = np.minimum(1, ngrams.at(p, x) / ngrams.at(q, x))  # (n, LONGEST)
    reached = ratio.cumprod(1)
    confidence = np.minimum(p[:, :-1], q).sum(-1)
    alpha = float(confidence[:, 0].mean())
    rows = []
    for c in COSTS:
        fixed = [tokens_per_time(reached, np.full(PLACES, gamma), c) for gamma in range(LONGEST + 1)]
        adaptive = [tokens_per_time(reached, lengths(confidence, h), c) for h in THRESHOLDS]
        formula = int(cost.best_gamma(alpha, c, LONGEST))
        row = {"cost_of_a_draft": c, "formula_drafts": formula, "formula": fixed[formula], "best_fixed_drafts": int(np.argmax(fixed))}
        row |= {"best_fixed": max(fixed), "threshold": float(THRESHOLDS[int(np.argmax(adaptive))]), "by_threshold": max(adaptive)}
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    best = [row["best_fixed_drafts"] for row in rows]
    claims = {
        "a rule that looks beats every fixed length": all(row["by_threshold"] > row["best_fixed"] for row in rows),
        "the closed form drafts too little where acceptance varies": all(row["formula_drafts"] <= row["best_fixed_drafts"] for row in rows),
        "dear drafts are fewer": best == sorted(best, reverse=True),
    }  # fmt: skip
    about = {"what": "speed-up over decoding without drafts", "places": PLACES, "acceptance": round(alpha, 3)}
    return about | {"rows": rows, "claims": claims}


def lengths(confidence: np.ndarray, h: float) -> np.ndarray:
    """Drafted tokens per place: drafting ends with the first token after which a refusal is likelier than h."""
    alarm = 1 - confidence.cumprod(1) > h
    return np.where(alarm.any(1), alarm.argmax(1) + 1, LONGEST)


def tokens_per_time(reached: np.ndarray, drafts: np.ndarray, c: float) -> float:
    """Mean tokens of a round over its mean time."""
    kept = np.where(np.arange(LONGEST) < drafts[:, None], reached, 0).sum(1)
    return float((1 + kept).mean() / (1 + c * drafts).mean())


def draw(panel: Any, report: dict[str, Any]) -> None:
    costs = [row["cost_of_a_draft"] for row in report["rows"]]
    lines = {"by_threshold": ("stop when a refusal is likely", OURS), "best_fixed": ("best fixed length", COLORS[1])}
    lines |= {"formula": ("length of the closed form", COLORS[2])}
    for key, (label, color) in lines.items():
        panel.plot(costs, [row[key] for row in report["rows"]], marker="o", ms=3, color=color, label=label)
    panel.set(xlabel="time of a drafter call over that of a target call", ylabel=report["what"])
    panel.legend(frameon=False)
