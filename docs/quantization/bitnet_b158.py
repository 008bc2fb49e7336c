"""Draw `bitnet_b158.svg`: the histogram of a normally distributed weight, cut where its codes switch between -1, 0 and 1."""

from pathlib import Path

import numpy as np

from twofold.spec.quantization import bitnet_b158

LEFT, UNIT, BASE, TALL, BINS = 350, 95, 230, 180, 66  # pixels: where 0 stands, the length of 1, the baseline and the highest bar


def x(value: float) -> float:
    return round(float(LEFT + UNIT * value), 1)


def main() -> None:
    weight = np.random.default_rng(1).standard_normal((256, 1024))
    codes, gamma = bitnet_b158.ternarize(weight)
    edge = float(gamma[0, 0] + bitnet_b158.EPSILON) / 2
    counts, edges = np.histogram(weight, BINS, (-3.3, 3.3))
    middles = (edges[1:] + edges[:-1]) / 2
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 300" font-size="14" fill="currentColor">']
    for count, middle, start, stop in zip(counts.tolist(), middles.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        height, color = TALL * count / counts.max(), "fast" if abs(middle) > edge else "spec"
        box = f'x="{x(start)}" y="{BASE - height:.1f}" width="{x(stop) - x(start) - 1:.1f}" height="{height:.1f}"'
        parts.append(f'<rect {box} style="fill: var(--{color})" fill-opacity="0.75"/>')
    parts.append(f'<path d="M20 {BASE + 0.5}H680" stroke="currentColor" stroke-opacity="0.5"/>')
    for side in (-1, 1):
        parts.append(f'<path d="M{x(side * edge)} 40V{BASE + 8}" stroke="currentColor" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{x(side * edge) + 6 * side}" y="{BASE + 24}" text-anchor="middle" font-size="12">{side * edge:.2f}</text>')
    for code, middle in ((-1, -1.5), (0, 0.0), (1, 1.5)):
        share = f"{100 * np.mean(codes == code):.1f} %"
        parts.append(f'<text x="{x(middle)}" y="26" text-anchor="middle">code {code}</text>')
        parts.append(f'<text x="{x(middle)}" y="{BASE + 48}" text-anchor="middle" font-size="12" fill-opacity="0.75">{share}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
