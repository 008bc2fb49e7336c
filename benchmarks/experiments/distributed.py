"""Speculation that does not wait: a simulation of target servers that verify while the drafter goes on.

This is distributed speculative inference (Timor et al., 2024, arXiv:2405.14105), by discrete events. Plain speculation drafts, waits for
the target, and drafts again. With several copies of the target, a pass begins whenever `lookahead` more tokens have been drafted, on the
bet that all before are kept, and drafting never stops. The pass that began after m lookahead tokens settles the next ones up to the token
behind them, a target's time later. A refusal ends the bet: what was drafted behind it is thrown away, and all begins anew behind the
corrected token, which that pass has named. The first pass of a bet needs no draft, so no token comes later than without speculation, as
long as drafting `lookahead` tokens takes no longer than a pass of the target. Every position of a text has one coin, the same for all ways
of decoding.
"""

from math import ceil
from typing import Any

import numpy as np

from benchmarks.plots import COLORS, OURS

TEXTS, LENGTH, LOOKAHEADS, COSTS, ACCEPTANCES = 200, 200, (1, 5), (0.05, 0.2, 0.5), (0.3, 0.6, 0.8, 0.95)


def run() -> dict[str, Any]:
    rows, never_later = [], True
    for c in COSTS:
        for alpha in ACCEPTANCES:
            kept = np.random.default_rng(0).random((TEXTS, LENGTH)) < alpha
            row: dict[str, Any] = {"cost_of_a_draft": c, "acceptance": alpha}
            for k in LOOKAHEADS:
                waiting = np.array([speculation(coins, k, c) for coins in kept])
                row[f"waiting, {k} drafted"] = round(LENGTH / waiting.mean(), 3)
                if k * c <= 1:
                    apart = np.array([distributed(coins, k, c) for coins in kept])
                    never_later &= bool((apart <= np.minimum(waiting, LENGTH) + 1e-9).all())
                    row |= {f"not waiting, {k} drafted": round(LENGTH / apart.mean(), 3), f"servers, {k} drafted": ceil(1 / (k * c) - 1e-9)}
            rows.append(row)
    slow = [row for row in rows if row["cost_of_a_draft"] == 0.5 and row["acceptance"] == 0.3]
    claims = {
        "on every text, not waiting is at least as fast as waiting and as no speculation": never_later,
        "waiting can be slower than no speculation": all(row["waiting, 5 drafted"] < 1 for row in slow),
    }
    return {"what": "speed-up over decoding without drafts", "texts": TEXTS, "tokens": LENGTH, "rows": rows, "claims": claims}


def speculation(kept: np.ndarray, gamma: int, c: float) -> float:
    """The time until the text is written, drafting and verifying in turn; a target pass takes 1, a draft c."""
    time, position = 0.0, 0
    while position < len(kept):
        drafted = min(gamma, len(kept) - position - 1)  # the target adds a token of its own
        coins = kept[position : position + drafted]
        time += drafted * c + 1
        position += (drafted if coins.all() else int(coins.argmin())) + 1
    return time


def distributed(kept: np.ndarray, lookahead: int, c: float) -> float:
    """The time until the text is written, with as many servers as keep every pass from waiting."""
    time, position = 0.0, 0
    while position < len(kept):
        coins = kept[position:]
        right = len(coins) if coins.all() else int(coins.argmin())  # tokens kept before the bet is lost
        last = min(right + 1, len(coins))  # the last token that this bet writes: the corrected one, or the text's end
        time += ceil((last - 1) / lookahead) * lookahead * c + 1
        position += last
    return time


def draw(panel: Any, report: dict[str, Any]) -> None:
    rows = [row for row in report["rows"] if row["cost_of_a_draft"] == 0.2]
    for way, color in (("not waiting", OURS), ("waiting", COLORS[1])):
        for k, line in zip(LOOKAHEADS, (":", "-"), strict=True):
            label = f"{way}, {k} drafted per pass"
            panel.plot(ACCEPTANCES, [row[f"{way}, {k} drafted"] for row in rows], line, color=color, marker="o", ms=3, label=label)
    panel.axhline(1, color=COLORS[2], linewidth=1, linestyle="--", label="no speculation")
    panel.set(xlabel="chance that a drafted token is kept; a draft takes 0.2 of a target pass", ylabel=report["what"])
    panel.legend(frameon=False, fontsize=8)
