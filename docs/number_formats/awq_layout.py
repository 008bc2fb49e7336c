"""Draw `awq_layout.svg`: eight codes of a row, and where in their word they lie."""

from pathlib import Path

import numpy as np

from twofold.spec.number_formats import awq_layout

CELL, LEFT = 64, 90  # pixels


def box(slot: int, y: int, text: str, odd: int) -> str:
    x, color = LEFT + CELL * slot, "fast" if odd else "spec"
    rectangle = f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="36" style="fill: var(--{color})" fill-opacity="0.5"/>'
    return rectangle + f'<text x="{x + CELL / 2 - 1.5}" y="{y + 24}" text-anchor="middle">{text}</text>'


def main() -> None:
    word = int(awq_layout.pack(np.arange(8).reshape(1, 8), np.zeros((1, 8), int))[0][0, 0])
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 270" font-size="14" fill="currentColor">']
    parts.append('<text x="10" y="54">codes</text><text x="10" y="204">word</text>')
    parts.append(f'<text x="{LEFT + CELL * 4}" y="262" text-anchor="middle" font-family="monospace">0x{word:08X}</text>')
    for nibble in range(8):
        code = word >> 4 * nibble & 15
        slot = 7 - nibble  # the highest bits stand to the left
        middle = [LEFT + CELL * (each + 0.5) - 1.5 for each in (code, slot)]
        parts.append(f'<path d="M{middle[0]} 68L{middle[1]} 178" stroke="currentColor" opacity="0.4"/>')
        parts += [box(code, 30, f"q{code}", code % 2), box(slot, 180, f"q{code}", code % 2)]
    parts.append(f'<text x="{LEFT}" y="236" font-size="12" fill-opacity="0.75">bit 31</text>')
    parts.append(f'<text x="{LEFT + 8 * CELL - 3}" y="236" text-anchor="end" font-size="12" fill-opacity="0.75">bit 0</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
