"""Draw `retnet.svg`: what is left of a token after n more, in heads of different rates."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import retnet

HEADS, LEFT, TOP, WIDTH, HEIGHT = 6, 56, 20, 460, 190


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 266" font-size="13" fill="currentColor">']
    most = 10  # doublings along the axis
    x = lambda n: LEFT + WIDTH * np.log2(1 + n) / most
    y = lambda share: TOP + HEIGHT * (1 - share)
    parts.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    for n in (0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023):
        parts.append(f'<text x="{x(n):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{n}</text>')
    for share in (0, 0.5, 1):
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end" font-size="11">{share:g}</text>')
    n = np.unique(np.round(np.geomspace(1, 1024, 60)).astype(int)) - 1
    for head, gamma in enumerate(retnet.decays(HEADS)):
        points = " ".join(f"{x(i):.1f},{y(gamma**i):.1f}" for i in n)
        look = f'style="stroke: var(--spec)" stroke-width="2" stroke-opacity="{1 - 0.13 * head:.2f}"'
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        horizon = 1 / (1 - gamma)
        at = f'cx="{x(horizon):.1f}" cy="{y(gamma**horizon):.1f}"'
        parts.append(f'<circle {at} r="3.5" style="fill: var(--fast)"/>')
        label = f"head {head}: {horizon:.0f} tokens"
        parts.append(f'<text x="{LEFT + WIDTH + 14}" y="{TOP + 20 + 24 * head}" font-size="12">{label}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle" font-size="12">tokens later</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
