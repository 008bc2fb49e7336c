"""Draw `sage2.svg`: which rows of a tile share a scale."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import sage2

CELL, LEFT, ROW = 9.5, 90, 62


def main() -> None:
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + 64 * CELL + 20} 150" font-size="12" fill="currentColor">']
    for line, (side, name, rows) in enumerate((("q", "32 queries", 32), ("k", "64 keys", 64))):
        group = sage2.quantize_per_thread(np.ones((rows, 1)), side, 4)[2]
        top = 14 + line * ROW
        parts.append(f'<text x="{LEFT - 10}" y="{top + 17}" text-anchor="end">{name}</text>')
        for row in range(rows):
            first = group[row] == 0
            color, shade = ("var(--fast)", 0.9) if first else ("var(--spec)", 0.12 + 0.5 * group[row] / group.max())
            box = f'x="{LEFT + row * CELL:.1f}" y="{top}" width="{CELL - 1.5}" height="26"'
            parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{shade:.2f}"/>')
        scales = f"{group.max() + 1} scales; in orange, the rows of the first"
        parts.append(f'<text x="{LEFT}" y="{top + 42}" fill-opacity="0.75">{scales}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
