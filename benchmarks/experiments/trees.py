"""How tokens per target call grow with the size of a draft tree: one chain, several chains, and Sequoia's best tree.

The acceptance of a node's first, second, … child is measured on the n-gram pair of `ngrams`: at held-out places, children are drawn without
replacement and tried one by one by recursive rejection, with the coins averaged out. Trees are then valued as Sequoia does, by the sum
over their nodes of the product along the path.
"""

from typing import Any

import numpy as np
import torch

from benchmarks.plots import COLORS, OURS
from twofold import demo
from twofold.fast.speculative import sequoia

CHILDREN, PLACES, SIZES = 8, 1500, (2, 3, 5, 9, 17, 33, 65)


def run() -> dict[str, Any]:
    train, held, _ = demo.corpus()
    target, drafter = demo.model(train, 6), demo.model(train, 3)
    contexts = demo.held_contexts(held, PLACES, seed=1)
    ends = torch.full((PLACES, 1), contexts.shape[1])
    p, q = (model(contexts, ends)[:, 0].double().numpy() for model in (target, drafter))
    accept = acceptance(p, q, np.random.default_rng(0))
    rows = []
    for nodes in SIZES:
        best, _ = sequoia.optimize(torch.from_numpy(accept)[None], nodes, nodes - 1)
        row = {"nodes_with_root": nodes, "one_chain": chains(accept, nodes - 1, 1)}
        row |= {"best_of_several_chains": max(chains(accept, nodes - 1, k) for k in range(1, min(nodes, CHILDREN + 1)))}
        row |= {"best_tree": best.item()}
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    gains = [after["best_tree"] - before["best_tree"] for before, after in zip(rows, rows[1:], strict=False)]
    claims = {
        "a tree is worth at least as much as chains": all(
            row["best_tree"] >= row["best_of_several_chains"] >= row["one_chain"] for row in rows
        ),
        "every doubling of the tree still adds tokens": min(gains) > 0.05,
        "a chain saturates": rows[-1]["one_chain"] - rows[-3]["one_chain"] < 0.01,
    }  # fmt: skip
    by_child = [round(float(a), 3) for a in accept]
    return {"what": "tokens per target call", "places": PLACES, "acceptance_by_child": by_child, "rows": rows, "claims": claims}


def acceptance(p: np.ndarray, q: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The chance that a node's j-th child is the accepted one `(CHILDREN,)`, averaged over places and drawn children."""
    here, left, still, found = np.arange(len(p)), p.copy(), np.ones(len(p)), []
    q = q.copy()
    for _ in range(CHILDREN):
        x = (generator.random((len(q), 1)) * q.sum(1, keepdims=True) >= q.cumsum(1)).sum(1).clip(max=q.shape[1] - 1)
        law = q / q.sum(1, keepdims=True)
        kept = np.minimum(1, left[here, x] / law[here, x])
        found.append((still * kept).mean())
        still = still * (1 - kept)
        left = np.maximum(left - law, 0)
        left = left / np.maximum(left.sum(1, keepdims=True), 1e-300)
        q[here, x] = 0
    return np.array(found)


def chains(accept: np.ndarray, drafted: int, k: int) -> float:
    """Tokens per call with k chains of equal length on the root: further down a chain every node has one child."""
    length = drafted // k
    below = sum(accept[0] ** depth for depth in range(length))
    return float(1 + accept[:k].sum() * below)


def draw(panel: Any, report: dict[str, Any]) -> None:
    sizes = [row["nodes_with_root"] for row in report["rows"]]
    lines = {"best_tree": ("Sequoia's tree", OURS), "best_of_several_chains": ("several chains", COLORS[1])}
    lines |= {"one_chain": ("one chain", COLORS[2])}
    for key, (label, color) in lines.items():
        panel.plot(sizes, [row[key] for row in report["rows"]], marker="o", ms=3, color=color, label=label)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="nodes of the tree, the root counted", ylabel=report["what"], xticks=sizes, xticklabels=sizes)
    panel.legend(frameon=False)
