"""Draw `rg_lru.svg`: what a channel keeps and how loud it lets the input in, as functions of its gate, and both on one circle."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import rg_lru

LEFT, TOP, WIDTH, HEIGHT = 44, 34, 340, 180
CENTER, RADIUS = 450, 180
CHANNELS = ((-4.33, "", "slow channel"), (-0.6, "7 5", "quick channel"))  # Lambda: a = 0.9 and a = 0.03 with the gate wide open


def factors(gate, Lambda):
    """What is kept of 1, and what is added by 1 with an open input gate."""
    ones, lam = np.ones_like(gate), np.full_like(gate, Lambda)
    kept = rg_lru.step(ones, 0 * ones, 0 * ones, gate, lam)[1]
    return kept, rg_lru.step(0 * ones, ones, np.full_like(gate, np.inf), gate, lam)[1]


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 300" font-size="12" fill="currentColor">']
    gate = np.linspace(-8, 8, 81)
    x, y = (lambda value: LEFT + WIDTH * (value + 8) / 16), (lambda share: TOP + HEIGHT * (1 - share))
    axis = 'fill="none" stroke="currentColor" stroke-opacity="0.6"'
    parts.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" {axis}/>')
    parts.append(f'<path d="M{CENTER} {TOP}V{TOP + HEIGHT}H{CENTER + RADIUS}" {axis}/>')
    for value in (-8, -4, 0, 4, 8):
        parts.append(f'<text x="{x(value):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{value}</text>')
    for share in (0, 0.5, 1):
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end" font-size="11">{share:g}</text>')
    for Lambda, dash, _ in CHANNELS:
        for values, color in zip(factors(gate, Lambda), ("var(--spec)", "var(--fast)")):
            points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(gate, values))
            parts.append(f'<polyline points="{points}" fill="none" style="stroke: {color}" stroke-width="2.2" stroke-dasharray="{dash}"/>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">recurrence gate before its sigmoid</text>')

    angle = np.linspace(0, np.pi / 2, 46)
    arc = " ".join(f"{CENTER + RADIUS * np.cos(a):.1f},{TOP + HEIGHT - HEIGHT * np.sin(a):.1f}" for a in angle)
    parts.append(f'<polyline points="{arc}" fill="none" stroke="currentColor" stroke-opacity="0.4" stroke-width="1.5"/>')
    marks = np.array([-8.0, -4.0, -2.0, 0.0, 8.0])
    for value, kept, added in zip(marks, *factors(marks, CHANNELS[1][0])):
        here = CENTER + RADIUS * kept, TOP + HEIGHT - HEIGHT * added
        parts.append(f'<path d="M{CENTER} {TOP + HEIGHT}L{here[0]:.1f} {here[1]:.1f}" stroke="currentColor" stroke-opacity="0.2"/>')
        parts.append(f'<circle cx="{here[0]:.1f}" cy="{here[1]:.1f}" r="4" style="fill: var(--fast)"/>')
        parts.append(f'<text x="{here[0] + 9:.1f}" y="{here[1] - 4:.1f}" font-size="11">{value:g}</text>')
    parts.append(f'<text x="{CENTER + RADIUS / 2}" y="{TOP + HEIGHT + 18}" text-anchor="middle">kept</text>')
    side = CENTER - 12, TOP + HEIGHT / 2
    parts.append(f'<text x="{side[0]}" y="{side[1]}" text-anchor="middle" transform="rotate(-90 {side[0]} {side[1]})">added</text>')
    parts.append(f'<text x="{CENTER + RADIUS / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">quick channel, by its gate</text>')
    legend = TOP + HEIGHT + 66
    for left, color, dash, text in (
        (LEFT, "var(--spec)", "", "kept, a"), (LEFT + 112, "var(--fast)", "", "added, √(1 − a²)"),
        (LEFT + 280, "currentColor", "", CHANNELS[0][2]), (LEFT + 430, "currentColor", "7 5", CHANNELS[1][2]),
    ):  # fmt: skip
        parts.append(f'<path d="M{left} {legend - 4}h26" style="stroke: {color}" stroke-width="2.2" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{left + 34}" y="{legend}">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
