"""Draw `flash.svg`: the tiles of a causal score matrix, and the running maximum and sum of one row as it walks over them."""

from pathlib import Path

import numpy as np

TOKENS, TILE, CELL = 16, 4, 15
LOGITS = np.array([0.4, 1.0, -0.3, 0.2, 0.9, 1.8, 0.6, 1.1, 0.1, 1.4, 0.7, -0.2, 2.6, 1.2, 0.5, 1.9])


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 290" font-size="13" fill="currentColor">']
    for i in range(TOKENS):
        for j in range(i + 1):
            shade = 0.9 if i // TILE == j // TILE else 0.5
            x, y = 12 + CELL * j, 12 + CELL * i
            parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="13" height="13" style="fill: var(--spec)" fill-opacity="{shade}"/>')
    size = TILE * CELL
    for a in range(TOKENS // TILE):
        for b in range(TOKENS // TILE):
            kind = "empty" if b > a else "partial" if b == a else "full"
            x, y = 12 + size * b, 12 + size * a
            parts.append(f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="none" stroke="currentColor" stroke-opacity="0.7"/>')
            if kind == "empty":
                parts.append(f'<text x="{x + 30}" y="{y + 35}" text-anchor="middle" font-size="11" fill-opacity="0.7">skipped</text>')
    last = 12 + CELL * (TOKENS - 1)
    frame = 'fill="none" stroke-width="2.5" style="stroke: var(--fast)"'
    parts.append(f'<rect x="12" y="{last}" width="{CELL * TOKENS}" height="{CELL}" {frame}/>')
    parts.append('<text x="132" y="278" text-anchor="middle">scores: 10 of 16 tiles are visited</text>')

    left, zero, unit, step = 300, 200, 52, 20
    running, total = -np.inf, 0.0
    for tile in range(TOKENS // TILE):
        logits = LOGITS[TILE * tile : TILE * (tile + 1)]
        new = max(running, float(logits.max()))
        total = total * float(np.exp(running - new)) + float(np.exp(logits - new).sum())
        x = left + step * TILE * tile
        for i, logit in enumerate(logits.tolist()):
            top, height = (zero - unit * logit, unit * logit) if logit > 0 else (zero, -unit * logit)
            box = f'x="{x + step * i + 3}" y="{top:.1f}" width="14" height="{height:.1f}"'
            parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="0.6"/>')
        y = zero - unit * new
        parts.append(f'<path d="M{x} {y:.1f}h{step * TILE}" stroke-width="2.5" style="stroke: var(--fast)"/>')
        if running != new and tile:
            parts.append(f'<path d="M{x} {zero - unit * running:.1f}V{y:.1f}" stroke-width="2.5" style="stroke: var(--fast)"/>')
            parts.append(f'<text x="{x + 4}" y="{y - 8:.1f}" font-size="12">× {np.exp(running - new):.2f}</text>')
        parts.append(f'<path d="M{x} 30V224" stroke="currentColor" stroke-opacity="0.3"/>')
        parts.append(f'<text x="{x + 40}" y="240" text-anchor="middle" font-size="12">l = {total:.2f}</text>')
        running = new
    parts.append(f'<path d="M{left} {zero}h{step * TOKENS}" stroke="currentColor"/>')
    parts.append('<text x="460" y="278" text-anchor="middle">the last row: logits, running maximum, sum</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
