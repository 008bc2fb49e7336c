"""Draw `hgrn2.svg`: what a channel keeps as a function of its gate, in layers of rising bounds, and what it writes."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import hgrn

LAYERS, LEFT, TOP, WIDTH, HEIGHT = 4, 56, 20, 380, 190


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 262" font-size="13" fill="currentColor">']
    f = np.linspace(-6, 6, 61)
    x = lambda value: LEFT + WIDTH * (value + 6) / 12
    y = lambda share: TOP + HEIGHT * (1 - share)
    parts.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    for value in (-6, -3, 0, 3, 6):
        parts.append(f'<text x="{x(value):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{value}</text>')
    for share in (0, 0.5, 1):
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end" font-size="11">{share:g}</text>')
    for layer, bound in enumerate(hgrn.lower_bounds(np.zeros((LAYERS, 1)))[:, 0]):
        kept = np.exp(hgrn.log_forget(f, bound))
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(f, kept))
        look = f'style="stroke: var(--spec)" stroke-width="2" stroke-opacity="{0.4 + 0.2 * layer:.1f}"'
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        parts.append(f'<text x="{x(-6) + 6:.1f}" y="{y(bound) - 6:.1f}" font-size="12">layer {layer}</text>')
    at = 0.0
    kept = float(np.exp(hgrn.log_forget(np.array([at]), 0.5))[0])
    for low, high, color, text in ((0, kept, "var(--spec)", "kept"), (kept, 1, "var(--fast)", "written")):
        bar = f'x="{LEFT + WIDTH + 50}" y="{y(high):.1f}" width="34" height="{HEIGHT * (high - low):.1f}"'
        parts.append(f'<rect {bar} style="fill: {color}" fill-opacity="0.6"/>')
        parts.append(f'<text x="{LEFT + WIDTH + 94}" y="{y((low + high) / 2) + 4:.1f}" font-size="12">{text}</text>')
    parts.append(f'<text x="{LEFT + WIDTH + 67}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="12">layer 2, f = 0</text>')
    place = f'x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 38}"'
    parts.append(f'<text {place} text-anchor="middle" font-size="12">gate before the sigmoid, f</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
