"""Draw `gptq_layout.svg`: eight codes of a column in one word, eight zeros of a row in one, and what the two versions store."""

from pathlib import Path

import numpy as np

from twofold.spec.number_formats import gptq_layout

CELL = 26  # pixels


def box(x: float, y: float, text: str, color: str, opacity: float) -> str:
    rectangle = f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" style="fill: var(--{color})" fill-opacity="{opacity}"/>'
    return rectangle + f'<text x="{x + CELL / 2 - 1}" y="{y + 17}" text-anchor="middle" font-size="12">{text}</text>'


def main() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (16, 8))
    zeros = np.array([[8, 7, 0, 8, 1, 9, 8, 15]])
    qweight, first = gptq_layout.pack(codes, zeros, 4, 1)
    second = gptq_layout.pack(codes, zeros, 4, 2)[1]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 490" font-size="14" fill="currentColor">']
    parts.append('<text x="20" y="24">codes, K by N</text>')
    for k in range(16):
        for n in range(8):
            parts.append(box(20 + CELL * n, 36 + CELL * k, f"{codes[k, n]:X}", "spec", 0.6 if n == 2 and k < 8 else 0.2))
    parts.append('<text x="300" y="24">qweight: 8 codes of a column, the first in the lowest bits</text>')
    for j in range(2):
        parts.append(box(300, 36 + CELL * 8 * j, "", "spec", 0.6 if j == 0 else 0.2))
        parts.append(f'<text x="335" y="{53 + CELL * 8 * j}" font-family="monospace">0x{qweight[j, 2]:08X}</text>')
    parts.append('<text x="300" y="330">zeros of a group, and qzeros: 8 zeros of a row</text>')
    for n in range(8):
        parts.append(box(300 + CELL * n, 342, f"{zeros[0, n]:X}", "fast", 0.5))
    for y, name, words in ((396, "version 1", first), (424, "version 2", second)):
        parts.append(f'<text x="300" y="{y}">{name}</text><text x="385" y="{y}" font-family="monospace">0x{words[0, 0]:08X}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
