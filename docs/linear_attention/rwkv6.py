"""Draw `rwkv6.svg`: the matrix of weights when reading after the write, and before it."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import gla, rwkv6

SIZE, CELL, TOP = 9, 22, 44


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 290" font-size="13" fill="currentColor">']
    ones, g = np.ones((SIZE, 1)), np.log(np.array([0.9, 0.85, 0.9, 0.2, 0.9, 0.85, 0.9, 0.9, 0.85]))[:, None]
    after = gla.recurrent(ones, ones, np.eye(SIZE), g)[0]
    before = rwkv6.recurrent(ones, ones, np.eye(SIZE), g, np.array([0.5]))[0]
    kinds = ((50, "read after the write", after), (350, "read before it, with a bonus", before))
    for left, name, weights in kinds:
        parts.append(f'<text x="{left}" y="18">{name}</text><text x="{left}" y="36" font-size="12" fill-opacity="0.75">keys →</text>')
        for i in range(SIZE):
            for j in range(i + 1):
                color = "var(--fast)" if i == j else "var(--spec)"
                box = f'x="{left + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
                parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{0.05 + 0.9 * weights[i, j]:.3f}"/>')
    y = TOP + SIZE * CELL + 26
    parts.append(f'<text x="50" y="{y}" font-size="12">its own pair: 1, whatever the gates</text>')
    parts.append(f'<text x="350" y="{y}" font-size="12">its own pair: u; a pair just written has not faded yet</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
