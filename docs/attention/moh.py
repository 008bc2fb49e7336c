"""Draw `moh.svg`: the gates of a few random tokens, two shared and six routed heads of which each token uses two."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import moh

TOKENS, SHARED, ROUTED, USED = 6, 2, 6, 2
CELL, LEFT, TOP = 46, 90, 56


def main() -> None:
    rng = np.random.default_rng(1)
    x, w_h, w_s, w_r = (rng.standard_normal(shape) for shape in ((TOKENS, 4), (2, 4), (SHARED, 4), (ROUTED, 4)))
    g = moh.gates(x, w_h, w_s, w_r, USED)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 {TOP + TOKENS * 32 + 20}" font-size="12" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="20" font-size="13">shared heads</text>')
    parts.append(f'<text x="{LEFT + SHARED * CELL + 20}" y="20" font-size="13">routed heads, two per token</text>')
    for (t, h), gate in np.ndenumerate(g):
        x0, y0 = LEFT + h * CELL + (20 if h >= SHARED else 0), TOP + 32 * t
        color = "var(--spec)" if h < SHARED else "var(--fast)"
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="{gate:.2f}"'
        parts.append(f'<rect x="{x0}" y="{y0}" width="{CELL - 4}" height="26" {look}/>')
        if gate:
            parts.append(f'<text x="{x0 + CELL / 2 - 2}" y="{y0 + 17}" text-anchor="middle">{gate:.2f}</text>')
        if not t:
            parts.append(f'<text x="{x0 + CELL / 2 - 2}" y="{TOP - 10}" text-anchor="middle">{h}</text>')
    for t in range(TOKENS):
        parts.append(f'<text x="{LEFT - 12}" y="{TOP + 32 * t + 17}" text-anchor="end">token {t}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
