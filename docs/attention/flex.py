"""Draw `flex.svg`: the blocks of a causal mask within documents, by kind."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import flex

DOCUMENT = np.array([0] * 4 + [1] * 5 + [2] * 3)
BLOCK, CELL, LEFT, TOP = 2, 22, 20, 16


def mask(b, h, i, j):
    return (j <= i) & (DOCUMENT[i] == DOCUMENT[j])


def main() -> None:
    n = len(DOCUMENT)
    full, partial = flex.block_mask(mask, n, n, BLOCK, BLOCK)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n * CELL + 250} {n * CELL + 34}" font-size="12" fill="currentColor">']
    for i, j in np.ndindex(n, n):
        shade = 0.45 if mask(0, 0, i, j) else 0.05
        parts.append(f'<rect x="{LEFT + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" fill-opacity="{shade}"/>')
    for lists, color in ((full, "var(--fast)"), (partial, "var(--spec)")):
        for line, blocks in enumerate(lists):
            for at in blocks:
                x, y, side = LEFT + at * BLOCK * CELL - 1, TOP + line * BLOCK * CELL - 1, BLOCK * CELL - 2
                look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.25" stroke-width="2"'
                parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" {look}/>')
    visited = sum(map(len, full)) + sum(map(len, partial))
    legend = [
        ('style="fill: var(--fast); stroke: var(--fast)" fill-opacity="0.25"', f"full: {sum(map(len, full))} blocks, never asked"),
        ('style="fill: var(--spec); stroke: var(--spec)" fill-opacity="0.25"', f"partial: {sum(map(len, partial))} blocks, masked"),
        ('fill-opacity="0.05"', f"empty: {(-(-n // BLOCK)) ** 2 - visited} blocks, not visited"),
    ]
    for row, (look, text) in enumerate(legend):
        x, y = LEFT + n * CELL + 16, TOP + 20 + row * 28
        parts.append(f'<rect x="{x}" y="{y}" width="16" height="16" {look}/><text x="{x + 24}" y="{y + 13}">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
