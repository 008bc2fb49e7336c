"""Token and block verification on n-gram models of real text: tokens per target call, with the coins averaged out.

Target and drafter are Witten-Bell models of the standard library's sources, over 96 characters, met at 3000 held-out places; one draft
of eight tokens is drawn at each, and of its prefixes the expected number of kept tokens is computed, not sampled. The draft is the only
thing left to chance.
"""

from typing import Any

import numpy as np
import torch

from benchmarks.plots import COLORS, OURS
from twofold import demo
from twofold.fast.speculative import cost

PAIRS, GAMMAS, PLACES = [(6, 2), (6, 3), (6, 4), (4, 3)], (2, 4, 8), 3000


def run() -> dict[str, Any]:
    train, held, _ = demo.corpus()
    models = {order: demo.model(train, order) for order in {order for pair in PAIRS for order in pair}}
    contexts = demo.held_contexts(held, PLACES, seed=1)
    rows = []
    for target, drafter in PAIRS:
        p, q, x = drafted(models[target], models[drafter], contexts, max(GAMMAS))
        alpha = np.minimum(p[:, :1], q[:, :1]).sum(-1).mean()
        for gamma in GAMMAS:
            token, block = by_token(p, q, x, gamma), by_block(p, q, x, gamma)
            row = {"target": target, "drafter": drafter, "drafted": gamma, "acceptance": round(float(alpha), 3)}
            row |= {"speed_up_if_drafts_were_free": round(1 / (1 - float(alpha)), 3)}
            row |= {"closed_form": round(cost.expected_tokens(float(alpha), gamma).item(), 3)}
            row |= {"by_token": round(1 + token.mean(), 3), "by_block": round(1 + block.mean(), 3)}
            row |= {"gain_in_percent": round(100 * ((1 + block.mean()) / (1 + token.mean()) - 1), 1)}
            row |= {"error_of_by_token": round(token.std() / PLACES**0.5, 3)}
            rows.append(row)
    gains = {pair: [row["gain_in_percent"] for row in rows if (row["target"], row["drafter"]) == pair] for pair in PAIRS}
    claims = {
        "block verification keeps more": all(row["by_block"] > row["by_token"] for row in rows),
        "its gain grows with the length of the draft": all(gain == sorted(gain) for gain in gains.values()),
        "the closed form at the mean acceptance promises too little": all(row["closed_form"] <= row["by_token"] + 0.01 for row in rows),
    }
    return {"what": "tokens per target call", "places": PLACES, "rows": rows, "claims": claims}


def drafted(target, drafter, contexts: torch.Tensor, gamma: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows p `(n, gamma + 1, V)` and q `(n, gamma, V)` along one drawn draft x `(n, gamma)` per context."""
    generator, text = torch.Generator().manual_seed(0), contexts
    p, q = [], []
    for i in range(gamma + 1):
        ends = torch.full((len(text), 1), text.shape[1])
        p.append(target(text, ends)[:, 0])
        if i < gamma:
            q.append(drafter(text, ends)[:, 0])
            text = torch.cat([text, torch.multinomial(q[-1], 1, generator=generator)], 1)
    x = text[:, contexts.shape[1] :]
    return torch.stack(p, 1).double().numpy(), torch.stack(q, 1).double().numpy(), x.numpy()


def at(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.take_along_axis(rows[:, : x.shape[1]], x[..., None], 2)[..., 0]


def by_token(p: np.ndarray, q: np.ndarray, x: np.ndarray, gamma: int) -> np.ndarray:
    """Expected kept tokens of each draft: the i-th is kept if all coins up to it fall well."""
    x = x[:, :gamma]
    return np.minimum(1, at(p, x) / at(q, x)).cumprod(1).sum(1)


def by_block(p: np.ndarray, q: np.ndarray, x: np.ndarray, gamma: int) -> np.ndarray:
    """Expected kept tokens of each draft: i or more are kept if any of the coins from i on succeeds."""
    x = x[:, :gamma]
    ratio, reach = at(p, x) / at(q, x), [np.ones(len(x))]
    for i in range(gamma):
        reach.append(np.minimum(1, reach[-1] * ratio[:, i]))
    failure, expected = 1 - reach[gamma], np.zeros(len(x))
    for i in range(gamma, 0, -1):
        if i < gamma:
            left = np.maximum(reach[i][:, None] * p[:, i] - q[:, i], 0).sum(1)
            total = left + 1 - reach[i]
            failure = failure * (1 - np.divide(left, total, out=np.ones_like(left), where=total > 0))
        expected += 1 - failure
    return expected


def draw(panel: Any, report: dict[str, Any]) -> None:
    for (target, drafter), color in zip(PAIRS, COLORS, strict=False):
        rows = [row for row in report["rows"] if (row["target"], row["drafter"]) == (target, drafter)]
        for key, line in (("by_block", "-"), ("by_token", "--"), ("closed_form", ":")):
            label = f"{target}-gram target, {drafter}-gram drafter" if key == "by_block" else None
            panel.plot([row["drafted"] for row in rows], [row[key] for row in rows], line, color=color, label=label, marker="o", ms=3)
    panel.plot([], [], "--", color=OURS, label="dashed: token by token; dotted: closed form")
    panel.set(xlabel="drafted tokens per round", ylabel=report["what"], xticks=GAMMAS)
    panel.legend(frameon=False, fontsize=8)
