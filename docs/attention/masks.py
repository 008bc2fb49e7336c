"""Draw `masks.svg`: six masks over twelve keys, with their blocks of four by four."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import masks

N, CELL, BLOCK = 12, 14, 4


def main() -> None:
    documents = np.repeat([0, 1, 2], [5, 4, 3])
    shown = {
        "causal": masks.causal(N, N),
        "window(3, 0)": masks.window(N, N, 3, 0),
        "document & causal": masks.document(documents, documents) & masks.causal(N, N),
        "prefix_lm(5)": masks.prefix_lm(N, N, 5),
        "chunked(5)": masks.chunked(N, N, 5),
        "tree, context of 5": np.vstack([np.zeros((5, N), dtype=bool), masks.tree([-1, 0, 0, 1, 1, 2, 4], 5)]),
    }
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 452" font-size="13" fill="currentColor">']
    for place, (name, mask) in enumerate(shown.items()):
        left, top = 20 + place % 3 * 215, 30 + place // 3 * 222
        parts.append(f'<text x="{left}" y="{top - 10}">{name}</text>')
        for i, j in np.argwhere(mask):
            look = 'style="fill: var(--spec)" fill-opacity="0.65"'
            parts.append(f'<rect x="{left + CELL * j}" y="{top + CELL * i}" width="{CELL - 1}" height="{CELL - 1}" {look}/>')
        for (i, j), kind in np.ndenumerate(masks.blocks(mask, BLOCK, BLOCK)):
            x, y, size = left + CELL * BLOCK * j, top + CELL * BLOCK * i, CELL * BLOCK
            look = 'stroke="currentColor" stroke-opacity="0.5" fill="none"'
            if kind == 2:
                look = 'style="stroke: var(--fast)" stroke-width="2.5" fill="none"'
            parts.append(f'<rect x="{x}" y="{y}" width="{size - 1}" height="{size - 1}" {look}/>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
