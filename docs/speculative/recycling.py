"""Draw `recycling.svg`: a matrix of successors, and the tree of a fixed shape that it fills from one token."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import recycling

MATRIX = {2: (5, 7), 4: (7, 2), 5: (2, 9), 7: (4, 5), 9: ()}
SHAPE, TOKEN, WIDTH = [-1, 0, 0, 1, 1, 2, 3, 4, 6], 4, 46


def main() -> None:
    matrix = np.array([[*MATRIX.get(x, ()), -1, -1][:2] for x in range(10)])
    tokens, parents = recycling.draft(matrix, TOKEN, SHAPE)
    tokens = [TOKEN, *tokens[1:]]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 270" font-size="14" fill="currentColor">']
    parts.append('<text x="20" y="22" font-size="12" fill-opacity="0.75">token</text>')
    parts.append('<text x="112" y="22" font-size="12" text-anchor="middle" fill-opacity="0.75">first, second</text>')
    for line, (token, after) in enumerate(MATRIX.items()):
        y = 34 + 40 * line
        color = "var(--fast)" if token in tokens and after else "currentColor"
        parts.append(f'<text x="36" y="{y + 21}" text-anchor="middle">{token}</text>')
        for j in range(2):
            x = 66 + WIDTH * j
            box = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="32" fill="none" style="stroke: {color}; stroke-opacity: 0.7"/>'
            parts.append(f'{box}<text x="{x + WIDTH / 2}" y="{y + 21}" text-anchor="middle">{after[j] if j < len(after) else "–"}</text>')
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    leaves = [node for node in reversed(range(len(tokens))) if node not in parents]
    order = sorted(leaves, key=lambda leaf: ancestry(parents, leaf))
    middle = {leaf: 50 + 56 * i for i, leaf in enumerate(order)}
    for node in reversed(range(len(tokens))):
        below = [middle[child] for child, parent in enumerate(parents) if parent == node]
        middle.setdefault(node, sum(below) / len(below) if below else 0)
    for node, token in enumerate(tokens):
        x, y = 240 + 84 * depths[node], middle[node]
        if node:
            x0, y0 = 240 + 84 * depths[parents[node]], middle[parents[node]]
            rank = parents[1:node].count(parents[node])
            parts.append(f'<path d="M{x0 + 18} {y0}L{x - 18} {y}" style="stroke: var(--fast); stroke-width: {2.5 - rank}"/>')
        color = "var(--fast)" if node else "var(--spec)"
        parts.append(f'<circle cx="{x}" cy="{y}" r="18" fill="none" style="stroke: {color}; stroke-width: 2"/>')
        parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle">{token}</text>')
    parts.append('<text x="420" y="262" text-anchor="middle" font-size="12">thick: first successor, thin: second</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


def ancestry(parents: list[int], node: int) -> list[int]:
    """The way from the root to a node."""
    way = [node]
    while parents[way[0]] >= 0:
        way = [parents[way[0]], *way]
    return way


if __name__ == "__main__":
    main()
