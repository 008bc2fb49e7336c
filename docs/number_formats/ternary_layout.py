"""Draw `ternary_layout.svg`: where sixteen weights of a block lie in the four bytes of i2s, and pairs and triples in halves of bytes."""

from pathlib import Path

import numpy as np

from twofold.spec.number_formats import ternary_layout

CELL, LEFT = 34, 110  # pixels


def box(x: float, y: float, text: str, quarter: int, width: float = CELL) -> str:
    color, opacity = ("spec", "fast")[quarter % 2], 0.55 if quarter < 2 else 0.25
    rectangle = f'<rect x="{x}" y="{y}" width="{width - 3}" height="28" style="fill: var(--{color})" fill-opacity="{opacity}"/>'
    return rectangle + f'<text x="{x + width / 2 - 1.5}" y="{y + 19}" text-anchor="middle" font-size="13">{text}</text>'


def main() -> None:
    weight = np.random.default_rng(4).integers(-1, 2, (1, 16))
    names = [str(w).replace("-", "−") for w in weight[0]]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 320" font-size="14" fill="currentColor">']
    parts.append('<text x="10" y="49">weights</text><text x="10" y="129">i2s, block 16</text>')
    for i, name in enumerate(names):
        parts.append(box(LEFT + CELL * i, 30, name, i // 4))
    for p, byte in enumerate(ternary_layout.pack_i2s(weight, 1.0, 16)[:4]):
        for quarter in range(4):
            parts.append(box(LEFT + CELL * (4 * p + quarter) + 4 * p, 110, f"{byte >> 6 - 2 * quarter & 3:02b}", quarter))
        parts.append(f'<text x="{LEFT + CELL * (4 * p + 2) + 4 * p}" y="156" text-anchor="middle" font-size="12">0x{byte:02X}</text>')
    parts.append('<text x="10" y="205">pairs</text>')
    for p, byte in enumerate(ternary_layout.pack_pairs(weight)):
        for half in range(2):
            text = f"{byte >> 4 - 4 * half & 15}"
            parts.append(box(LEFT + CELL * (4 * p + 2 * half), 186, text, 0, 2 * CELL))
        parts.append(f'<text x="{LEFT + CELL * (4 * p + 2)}" y="232" text-anchor="middle" font-size="12">0x{byte:02X}</text>')
    parts.append('<text x="10" y="281">triples, 12</text>')
    magnitudes, signs, _ = ternary_layout.pack_triples(weight, 12)
    for t in range(4):
        value = (int(magnitudes[t // 2]) >> 4 - 4 * (t % 2) & 15) * (1 - 2 * (int(signs[0]) >> t & 1))
        parts.append(box(LEFT + CELL * 3 * t, 262, f"{value}".replace("-", "−"), 1, 3 * CELL))
    for p in range(2):
        index = 3 * weight[0, 12 + 2 * p] + weight[0, 13 + 2 * p] + 4
        parts.append(box(LEFT + CELL * (12 + 2 * p), 262, f"{index}", 0, 2 * CELL))
    told = f"magnitudes 0x{magnitudes[0]:02X} 0x{magnitudes[1]:02X}, signs {signs[0]:04b}"
    parts.append(f'<text x="{LEFT}" y="308" font-size="12">{told}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
