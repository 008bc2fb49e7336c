"""Draw `warp.svg`: one row of eight tokens, likeliest first, and what top-k, top-p and min-p keep of it."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import warp

P = np.array([32, 24, 16, 10, 8, 5, 3, 2]) / 100
CUTS = [("as it is", P), ("top-k, k = 3", warp.top_k(P, 3)), ("top-p, P = 0.8", warp.top_p(P, 0.8)), ("min-p, m = 0.2", warp.min_p(P, 0.2))]


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 200" font-size="13" fill="currentColor">']
    for n, (title, row) in enumerate(CUTS):
        left = 12 + 158 * n
        for i, (before, after) in enumerate(zip(P.tolist(), row.tolist(), strict=True)):
            x = left + 17 * i
            parts.append(f'<rect x="{x}" y="{150 - 260 * after:.1f}" width="13" height="{260 * after:.1f}" style="fill: var(--spec)"/>')
            if not after:
                dashed = "fill: none; stroke: currentColor; stroke-opacity: 0.6; stroke-dasharray: 3 3"
                parts.append(f'<rect x="{x}" y="{150 - 260 * before:.1f}" width="13" height="{260 * before:.1f}" style="{dashed}"/>')
        parts.append(f'<path d="M{left} 150h136" stroke="currentColor"/><text x="{left + 68}" y="175" text-anchor="middle">{title}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
