"""Draw `sequoia.svg`: expected tokens per round over the size of the tree: the best tree, chains side by side, one chain."""

import heapq
import math
from pathlib import Path

ACCEPT = [0.6, 0.15, 0.08, 0.05, 0.03, 0.02, 0.01, 0.01]
SIZES = [2**e for e in range(10)]
LEFT, BOTTOM, ACROSS, UP = 60, 250, 52, 42


def best(largest: int) -> list[float]:
    """The value of the best tree of 1 … nodes: acceptance never rises, so the greatest path products, one after another."""
    heap, total, values = [-1.0], 0.0, []
    while len(values) < largest:
        worth = -heapq.heappop(heap)
        total += worth
        values.append(total)
        for a in ACCEPT:
            heapq.heappush(heap, -worth * a)
    return values


def chain(nodes: int) -> float:
    """A root and one line of first children."""
    return sum(ACCEPT[0] ** i for i in range(nodes))


def chains(nodes: int) -> float:
    """Below the root as many lines side by side as pay: the j-th begins with a j-th child and goes on with first children."""
    drafted, most = nodes - 1, 1.0
    for count in range(1, min(len(ACCEPT), drafted) + 1):
        lengths = [drafted // count + (j < drafted % count) for j in range(count)]
        most = max(most, 1 + sum(a * chain(length) for a, length in zip(ACCEPT, lengths, strict=False)))
    return most


def curve(values: dict[int, float], style: str, label: str, shift: int) -> str:
    points = [(LEFT + ACROSS * math.log2(n), BOTTOM - UP * (value - 1)) for n, value in values.items()]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    text = f'<text x="{x + 10:.0f}" y="{y + shift:.0f}">{label}</text>'
    return f'<polyline points="{line}" fill="none" stroke-width="2.5" style="{style}"/>{text}'


def main() -> None:
    trees = best(SIZES[-1])
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 310" font-size="13" fill="currentColor">']
    for value in range(1, 7):
        y = BOTTOM - UP * (value - 1)
        parts.append(f'<path d="M{LEFT} {y}H{LEFT + ACROSS * 9}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end" font-size="12">{value}</text>')
    for n in SIZES:
        parts.append(f'<text x="{LEFT + ACROSS * math.log2(n):.0f}" y="{BOTTOM + 20}" text-anchor="middle" font-size="12">{n}</text>')
    parts.append(curve({n: trees[n - 1] for n in SIZES}, "stroke: var(--fast)", "the best tree", 5))
    parts.append(curve({n: chains(n) for n in SIZES}, "stroke: var(--spec)", "chains side by side", -4))
    parts.append(curve({n: chain(n) for n in SIZES}, "stroke: currentColor; stroke-dasharray: 5 4", "one chain", 12))
    parts.append(f'<text x="{LEFT + ACROSS * 4.5:.0f}" y="{BOTTOM + 44}" text-anchor="middle">nodes in the tree, the root included</text>')
    parts.append(f'<text x="{LEFT - 36}" y="24">expected tokens per round</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
