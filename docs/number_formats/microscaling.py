"""Draw `microscaling.svg`: two blocks of 32 numbers, what MXFP4 makes of them, and the numbers that each block can say."""

from pathlib import Path

import numpy as np

from twofold.spec.number_formats import e8m0, microscaling, minifloat

LEFT, STEP, MIDDLE, UNIT, FORMAT = 60, 9.5, 150, 15, "e2m1"  # pixels


def main() -> None:
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(0, 2.6, 32), rng.normal(0, 0.7, 32)])
    codes, scales = microscaling.quantize(x, FORMAT)
    told = microscaling.dequantize(codes, scales, FORMAT)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 320" font-size="14" fill="currentColor">']
    for block, scale in enumerate(e8m0.decode(scales)):
        left = LEFT + 320 * block
        for level in np.unique(minifloat.table(FORMAT)) * scale:
            parts.append(f'<path d="M{left} {MIDDLE - UNIT * level:g}h{32 * STEP:g}" stroke="currentColor" opacity="0.25"/>')
        parts.append(f'<text x="{left + 16 * STEP:g}" y="20" text-anchor="middle">scale {scale:g}: code {scales[block]}</text>')
    for i, (number, near) in enumerate(zip(x, told)):
        at = LEFT + 320 * (i // 32) + STEP * (i % 32 + 0.5)
        there, here = MIDDLE - UNIT * number, MIDDLE - UNIT * near
        parts.append(f'<path d="M{at:.1f} {there:.1f}V{here:.1f}" style="stroke: var(--fast)" stroke-width="2"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{there:.1f}" r="2.5" style="fill: var(--fast)"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{here:.1f}" r="3.5" style="fill: var(--spec)"/>')
    for value in (-6, -3, 0, 3, 6):
        name = str(value).replace("-", "−")
        parts.append(f'<text x="{LEFT - 12}" y="{MIDDLE - UNIT * value + 5}" text-anchor="end" font-size="12">{name}</text>')
    parts.append('<circle cx="66" cy="300" r="2.5" style="fill: var(--fast)"/><text x="76" y="305">a number</text>')
    parts.append('<circle cx="176" cy="300" r="3.5" style="fill: var(--spec)"/><text x="186" y="305">what its code stands for</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
