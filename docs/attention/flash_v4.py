"""Draw `flash_v4.svg`: a row's maximum and the reference that follows it late, and the relative error of the cubic between two integers."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import flash_v4

TAU, TILES = 8, 12
RISE = np.array([-1.0, 2.2, 3.5, 5.1, 6.3, 7.7, 9.4, 10.2, 13.0, 14.1, 15.2, 16.0])  # each tile's maximum, in powers of two


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 270" font-size="13" fill="currentColor">']
    left, zero, unit, step = 24, 205, 10, 23
    reference, path = None, []
    for tile, top in enumerate(RISE.tolist()):
        x, y = left + step * tile, zero - unit * top
        parts.append(f'<path d="M{x} {y:.1f}h{step}" stroke-width="2.5" style="stroke: var(--spec)"/>')
        if reference is None or top - reference > TAU:
            if reference is not None:
                place = f'x="{x - 4}" y="{zero - unit * reference + 16:.1f}" text-anchor="end"'
                parts.append(f'<text {place} font-size="12">rescaled here</text>')
            reference = top
            path.append(f"M{x} {y:.1f}" if not path else f"V{zero - unit * reference:.1f}")
        path.append(f"H{x + step}")
    parts.append(f'<path d="{"".join(path)}" fill="none" stroke-width="2.5" stroke-dasharray="5 3" style="stroke: var(--fast)"/>')
    parts.append(f'<path d="M{left} 25V{zero + 34}H{left + step * TILES}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>')
    parts.append('<text x="36" y="38" font-size="12" style="fill: var(--spec)">maximum so far</text>')
    parts.append('<text x="36" y="55" font-size="12" style="fill: var(--fast)">reference</text>')
    parts.append('<text x="162" y="262" text-anchor="middle">twelve tiles, threshold of 8 powers of two</text>')

    left, zero, width, height = 370, 120, 250, 80
    f = np.arange(0, 251) / 251
    error = flash_v4.exp2(f) / 2**f - 1
    points = " ".join(f"{left + width * x:.1f},{zero - height * e / 8.8e-5:.1f}" for x, e in zip(f.tolist(), error.tolist(), strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke-width="2.5" style="stroke: var(--spec)"/>')
    for sign in (-1, 1):
        line = 'stroke="currentColor" stroke-opacity="0.4" stroke-dasharray="3 3"'
        parts.append(f'<path d="M{left} {zero - sign * height}h{width}" {line}/>')
    parts.append(f'<text x="{left + 4}" y="{zero - height - 6}" font-size="12">8.8 · 10⁻⁵</text>')
    parts.append(f'<text x="{left + 4}" y="{zero + height + 16}" font-size="12">−8.8 · 10⁻⁵</text>')
    parts.append(f'<path d="M{left} {zero}h{width}" stroke="currentColor" stroke-opacity="0.5"/>')
    parts.append(f'<text x="{left + width}" y="{zero - 6}" text-anchor="end" font-size="12">f</text>')
    parts.append('<text x="495" y="262" text-anchor="middle">relative error of the cubic, f from 0 to 1</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
