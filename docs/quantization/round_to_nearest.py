"""Draw `round_to_nearest.svg`: the eight values that each grid of 3 bits puts on the number line for one group of weights."""

from pathlib import Path

import numpy as np

from twofold.spec.quantization import round_to_nearest

GROUP = np.array([-0.6, -0.35, -0.1, 0.0, 0.25, 0.5, 0.95, 1.4])
BITS, LEFT, UNIT = 3, 350, 175  # pixels: where 0 stands, and the length of 1
GRIDS = ("absmax", "full", "zero_point", "min", "float_zero", "centred")


def x(value: float) -> float:
    return round(float(LEFT + UNIT * value), 1)


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 300" font-size="14" fill="currentColor">']
    parts.append(f'<path d="M{LEFT} 14V270" stroke="currentColor" stroke-opacity="0.3"/>')
    parts.append(f'<text x="{LEFT}" y="292" text-anchor="middle" fill-opacity="0.75">0</text><text x="10" y="33">weights</text>')
    parts += [f'<circle cx="{x(w)}" cy="28" r="5" style="fill: var(--fast)"/>' for w in GROUP]
    for row, grid in enumerate(GRIDS):
        y = 70 + 38 * row
        scale, zero = round_to_nearest.parameters(GROUP[None], BITS, None, grid)
        codes = np.arange(-3, 4) if grid == "absmax" else np.arange(8)
        values = round_to_nearest.dequantize(codes[None], scale, zero, BITS, None, grid)[0]
        parts.append(f'<text x="10" y="{y + 5}">{grid}</text>')
        parts.append(f'<path d="M{x(values[0])} {y}H{x(values[-1])}" stroke="currentColor" stroke-opacity="0.4"/>')
        for code, value in zip(codes.tolist(), values.tolist(), strict=True):
            parts.append(f'<circle cx="{x(value)}" cy="{y}" r="5" style="fill: var(--spec)"/>')
            parts.append(f'<text x="{x(value)}" y="{y + 19}" text-anchor="middle" font-size="11" fill-opacity="0.75">{code}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
