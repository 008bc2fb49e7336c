"""Draw `log_linear.svg`: at which level every token finds those before it, and the blocks of the last eight, one below the other."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import log_linear

T, CELL, LEFT, TOP = 16, 18, 40, 52
LOOK = (("var(--fast)", 0.95), ("var(--spec)", 0.9), ("var(--fast)", 0.5), ("var(--spec)", 0.5), ("var(--fast)", 0.2))  # of the levels


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 404" font-size="13" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="20">levels of all pairs</text>')
    parts.append(f'<text x="{LEFT}" y="40" font-size="12" fill-opacity="0.75">keys →</text>')
    for i in range(T):
        for j, level in enumerate(log_linear.levels(i, np.arange(i + 1))):
            color, strength = LOOK[level]
            box = f'x="{LEFT + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
            parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{strength}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{TOP + i * CELL + 13}" text-anchor="end" font-size="11">{i}</text>')
    right = LEFT + T * CELL + 110
    parts.append(f'<text x="{right}" y="20">states after tokens 8 … 15</text>')
    parts.append(f'<text x="{right - 14}" y="40" text-anchor="end" font-size="12" fill-opacity="0.75">t in binary</text>')
    for n, t in enumerate(range(8, T)):
        y = TOP + 36 * n
        parts.append(f'<text x="{right - 14}" y="{y + 17}" text-anchor="end" font-family="monospace">{t:04b}</text>')
        found = log_linear.levels(t, np.arange(t + 1))
        for level in np.unique(found):
            tokens = np.flatnonzero(found == level)
            color, strength = LOOK[level]
            x, width = right + tokens[0] * CELL, len(tokens) * CELL - 2
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="24" rx="3" style="fill: {color}" fill-opacity="{strength}"/>')
            parts.append(f'<text x="{x + width / 2}" y="{y + 16}" text-anchor="middle" font-size="11">{level}</text>')
    note = "a token, then a block for every bit of t, the lowest first; numbers are levels"
    parts.append(f'<text x="{LEFT}" y="{TOP + T * CELL + 34}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
