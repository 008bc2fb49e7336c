"""Draw `minifloat.svg`: the positive numbers up to 8 of five small formats, those below the smallest normal one in a color of their own."""

from pathlib import Path

import numpy as np

from twofold.spec.number_formats import minifloat

LEFT, UNIT = 110, 70  # pixels: where 0 stands, and from there to 1


def line(y: int, fmt: str) -> list[str]:
    f, values = minifloat.FORMATS[fmt], minifloat.table(fmt)[: minifloat.FORMATS[fmt].largest + 1]
    parts = [f'<text x="10" y="{y + 5}">{fmt}</text>', f'<path d="M{LEFT} {y}H{LEFT + 8 * UNIT}" stroke="currentColor" opacity="0.3"/>']
    for value in values[values <= 8]:
        color = "var(--fast)" if value < 2.0 ** (1 - f.bias) else "var(--spec)"
        x = LEFT + UNIT * value
        parts.append(f'<path d="M{x:g} {y - 9}V{y + 9}" style="stroke: {color}" stroke-width="2"/>')
    if values[-1] > 8:
        parts.append(f'<text x="{LEFT + 8 * UNIT + 8}" y="{y + 5}" font-size="12">to {values[-1]:g}</text>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 240" font-size="14" fill="currentColor">']
    for x in np.arange(9):
        parts.append(f'<text x="{LEFT + UNIT * x}" y="20" text-anchor="middle" font-size="12" fill-opacity="0.75">{x}</text>')
    for i, fmt in enumerate(("e2m1", "e2m3", "e3m2", "e4m3fn", "e5m2")):
        parts += line(48 + 40 * i, fmt)
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
