"""Draw `int_flash.svg`: the exponentials of a row, and the integers that they become against the running maximum of two tiles."""

from pathlib import Path

import numpy as np

LOGITS = np.array([0.4, 1.9, -1.6, 1.2, -3.4, 0.9, 3.0, 1.7, -2.6, 2.4])
TILE, STEP, HEIGHT = 5, 52, 130


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-size="13" fill="currentColor">']
    running = -np.inf
    for tile in range(len(LOGITS) // TILE):
        s = LOGITS[TILE * tile : TILE * (tile + 1)]
        new = max(running, float(s.max()))
        x = 50 + (STEP * TILE + 20) * tile
        for i, logit in enumerate(s.tolist()):
            code = round(127 * np.exp(logit - new))
            height = HEIGHT * code / 127
            at = x + STEP * i
            box = f'x="{at + 8}" y="{180 - height:.1f}" width="36" height="{height:.1f}"'
            parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="0.7"/>')
            parts.append(f'<text x="{at + 26}" y="{174 - height:.1f}" text-anchor="middle">{code}</text>')
            parts.append(f'<text x="{at + 26}" y="197" text-anchor="middle" font-size="12">{logit:.1f}</text>')
        parts.append(f'<path d="M{x} 180h{STEP * TILE}" stroke="currentColor"/>')
        parts.append(f'<path d="M{x} {180 - HEIGHT}h{STEP * TILE}" stroke-width="2" stroke-dasharray="5 4" style="stroke: var(--fast)"/>')
        parts.append(f'<text x="{x + 130}" y="222" text-anchor="middle">m = {new:.1f}</text>')
        if tile:
            middle, factor = x - 10, np.exp(running - new)
            parts.append(f'<text x="{middle}" y="26" text-anchor="middle">both sums × {factor:.2f}</text>')
            parts.append(f'<path d="M{middle} 34V188" stroke="currentColor" stroke-opacity="0.5"/>')
        running = new
    parts += [f'<text x="20" y="{y}" text-anchor="middle" font-size="12">{name}</text>' for y, name in ((197, "s"), (120, "p"))]
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
