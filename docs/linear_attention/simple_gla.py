"""Draw `simple_gla.svg`: two masks of decays, one gate per token, and one constant for comparison."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention.affine import decays

SIZE, CELL, TOP = 10, 20, 44


def main() -> None:
    gates = np.log(np.array([1.0, 0.97, 0.95, 0.97, 0.05, 0.96, 0.97, 0.6, 0.97, 0.95]))
    kinds = (("one constant (retention)", np.full(SIZE, np.log(0.85))), ("one gate per token", gates))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 286" font-size="13" fill="currentColor">']
    for place, (name, g) in enumerate(kinds):
        left = 50 + place * 300
        parts.append(f'<text x="{left}" y="18">{name}</text><text x="{left}" y="36" font-size="12" fill-opacity="0.75">keys →</text>')
        mask = decays(g[:, None])[:, :, 0]
        for i in range(SIZE):
            for j in range(i + 1):
                box = f'x="{left + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
                parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="{0.06 + 0.9 * mask[i, j]:.3f}"/>')
            width = 44 * np.exp(g[i])
            box = f'x="{left + SIZE * CELL + 8}" y="{TOP + i * CELL + 4}" width="{width:.1f}" height="{CELL - 10}"'
            parts.append(f'<rect {box} style="fill: var(--fast)" fill-opacity="0.8"/>')
        parts.append(f'<text x="{left + SIZE * CELL + 8}" y="36" font-size="12" fill-opacity="0.75">eᵍ</text>')
    text = "a small factor in row 4 hides all keys before it from all queries behind it"
    parts.append(f'<text x="50" y="{TOP + SIZE * CELL + 28}" font-size="12">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
