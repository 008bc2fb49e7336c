"""Draw `mlstm.svg`: log-weights of pairs that fall with the forget gate, and their running maximum, the unit."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import mlstm
from twofold.spec.linear_attention.hgrn import log_forget

TOKENS, FLOOR = 32, -2.5
LEFT, TOP, WIDTH, HEIGHT = 40, 16, 590, 200


def main() -> None:
    rng = np.random.default_rng(3)
    i = 1.2 * rng.standard_normal(TOKENS)
    i[5], i[17] = 6.0, 4.5
    f = np.full(TOKENS, 1.2)
    f[12] = -3.0
    keep, m = log_forget(f), mlstm.gates(i, f, np.array(-np.inf))[2]
    top = 7.0
    place = lambda t: LEFT + WIDTH * (t + 0.5) / TOKENS
    height = lambda y: TOP + HEIGHT * (top - y) / (top - FLOOR)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 276" font-size="12" fill="currentColor">']
    parts.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    parts += [f'<text x="{LEFT - 8}" y="{height(y) + 4:.1f}" text-anchor="end">{y}</text>' for y in (-2, 0, 2, 4, 6)]
    for j in range(TOKENS):
        weights = i[j] + np.concatenate([[0.0], np.cumsum(keep[j + 1 :])])
        seen = np.sum(weights >= FLOOR)  # what lies below the picture is cut off
        ends = np.interp(-FLOOR, -weights[[seen - 1, seen]], [seen - 1, seen]) if 0 < seen < len(weights) else None
        places = [*range(seen), *([] if ends is None else [ends])]
        points = [f"{place(j + n):.1f},{height(np.interp(n, range(len(weights)), weights)):.1f}" for n in places]
        if len(points) > 1:
            look = 'fill="none" style="stroke: var(--fast)" stroke-opacity="0.55" stroke-width="1.2"'
            parts.append(f'<polyline points="{" ".join(points)}" {look}/>')
        if i[j] >= FLOOR:
            parts.append(f'<circle cx="{place(j):.1f}" cy="{height(i[j]):.1f}" r="3" style="fill: var(--fast)"/>')
    unit = " ".join(f"{place(t):.1f},{height(y):.1f}" for t, y in enumerate(m))
    parts.append(f'<polyline points="{unit}" fill="none" style="stroke: var(--spec)" stroke-width="3" stroke-opacity="0.8"/>')
    parts.append(f'<path d="M{place(12):.1f} {TOP + HEIGHT + 5}v-9" stroke="currentColor"/>')
    parts.append(f'<text x="{place(12):.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">the forget gate nearly shuts</text>')
    legend = TOP + HEIGHT + 46
    parts.append(f'<path d="M{LEFT} {legend - 4}h26" style="stroke: var(--spec)" stroke-width="3"/>')
    parts.append(f'<text x="{LEFT + 34}" y="{legend}">m, the unit of cell and normalizer</text>')
    parts.append(f'<circle cx="{LEFT + 262}" cy="{legend - 4}" r="3" style="fill: var(--fast)"/>')
    parts.append(f'<path d="M{LEFT + 262} {legend - 4}h26" style="stroke: var(--fast)" stroke-width="1.2"/>')
    parts.append(f'<text x="{LEFT + 296}" y="{legend}">a pair’s log-weight, from its input gate on</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
