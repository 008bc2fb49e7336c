"""Draw `kivi.svg`: after each token, which keys and values of a cache are codes and which are whole."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import kivi

GROUP, RESIDUAL, LAST = 2, 4, 14
CELL, ROW, LEFT = 19, 22, 92


def main() -> None:
    cache = kivi.Cache(bits=2, group=GROUP, residual=RESIDUAL)
    steps = (4, 5, 7, 8, 9, LAST)
    height = 34 + len(steps) * ROW
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 {height + 40}" font-size="12" fill="currentColor">']
    for side, name in enumerate(("keys", "values")):
        parts.append(f'<text x="{LEFT + side * 300}" y="20">{name}</text>')
    token, row = np.ones((1, 2)), 0
    for n in range(1, LAST + 1):
        cache.prefill(token, token)
        if n not in steps:
            continue
        y = 34 + ROW * row
        parts.append(f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end">{n} tokens</text>')
        for side, whole in enumerate((len(cache.new_keys), len(cache.new_values))):
            for t in range(n):
                old = t < n - whole
                color = "var(--fast)" if old else "var(--spec)"
                look = f'style="fill: {color}; stroke: {color}" fill-opacity="{0.55 if old else 0.15}"'
                parts.append(f'<rect x="{LEFT + side * 300 + t * CELL}" y="{y}" width="{CELL - 2}" height="{ROW - 6}" {look}/>')
        row += 1
    for x, color, opacity, text in ((LEFT, "var(--fast)", 0.55, "two bits"), (LEFT + 110, "var(--spec)", 0.15, "whole")):
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="{opacity}"'
        parts.append(f'<rect x="{x}" y="{height + 10}" width="17" height="16" {look}/>')
        parts.append(f'<text x="{x + 24}" y="{height + 23}">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
