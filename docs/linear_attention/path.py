"""Draw `path.svg`: scores of equal queries and keys whose path does nothing, is erased by two tokens, or is turned by two tokens."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import path

T, CELL, LEFT, TOP, GAP = 12, 17, 30, 64, 42
PANELS = (("beta = 0: attention", 0.0), ("beta = 1: erased", 1.0), ("beta = 2: reflected", 2.0))
ACT = (4, 8)  # the tokens that transform


def main() -> None:
    width = LEFT + 3 * T * CELL + 2 * GAP + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + T * CELL + 44}" font-size="13" fill="currentColor">']
    one = np.ones((T, 1))
    for n, (title, strength) in enumerate(PANELS):
        x = LEFT + n * (T * CELL + GAP)
        beta = np.where(np.isin(np.arange(T), ACT), strength, 0.0)
        parts.append(f'<text x="{x}" y="22">{title}</text>')
        parts.append(f'<text x="{x}" y="44" font-size="12" fill-opacity="0.75">keys →</text>')
        for i, row in enumerate(path.scores(one, one, one, beta)):
            for j in range(i + 1):
                color, opacity = "var(--fast)" if row[j] < 0 else "var(--spec)", 0.1 + 0.75 * abs(row[j])
                box = f'x="{x + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
                parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{opacity:.2f}"/>')
            if strength and i in ACT:
                parts.append(f'<text x="{x - 8}" y="{TOP + i * CELL + 12}" text-anchor="end" font-size="11">{i}</text>')
    note = "1 and −1 in two colors, 0 pale; on the right, tokens 4 and 8 transform all keys before them, and not their own"
    parts.append(f'<text x="{LEFT}" y="{TOP + T * CELL + 28}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
