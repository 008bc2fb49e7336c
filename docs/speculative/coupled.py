"""Draw `coupled.svg`: one race held twice, once for the draft law and once for the target law, and the chance that both have one winner."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import coupled

P, Q = np.array([0.35, 0.30, 0.20, 0.15]), np.array([0.20, 0.40, 0.20, 0.20])
TIMES = np.array([0.30, 0.42, 0.60, 0.36])  # E, the same for both
LEFT, SCALE, TOP = 60, 86, 44
PLOT = 430, 40, 180  # left, top and side of the second picture


def race(y: int, law: np.ndarray, style: str, label: str) -> list[str]:
    """Arrival times E / p on a line; the first one is marked."""
    token = coupled.lists(law, law, TIMES[None])[0]
    parts = [f'<path d="M{LEFT} {y}H{LEFT + 3.7 * SCALE:g}" stroke="currentColor" stroke-opacity="0.5"/>']
    parts.append(f'<text x="{LEFT - 14}" y="{y + 5}" text-anchor="end">{label}</text>')
    for v, time in enumerate(TIMES / law):
        x = LEFT + SCALE * time
        filled = style if v == token else "fill: var(--md-default-bg-color, #fff); stroke: currentColor"
        ink = "var(--md-default-bg-color, #fff)" if v == token else "currentColor"
        parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="11" style="{filled}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 4}" text-anchor="middle" font-size="12" style="fill: {ink}">{v}</text>')
    return parts


def curve(chance, style: str) -> str:
    left, top, side = PLOT
    points = " ".join(f"{left + side * tv:.1f},{top + side * (1 - chance(tv)):.1f}" for tv in np.linspace(0, 1, 41))
    return f'<polyline points="{points}" fill="none" stroke-width="2" style="{style}"/>'


def main() -> None:
    left, top, side = PLOT
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 262" font-size="14" fill="currentColor">']
    parts += race(TOP + 40, Q, "fill: var(--fast)", "E / q") + race(TOP + 110, P, "fill: var(--spec)", "E / p")
    parts.append(f'<text x="{LEFT}" y="{TOP + 160}" font-size="12" fill-opacity="0.75">time of arrival; the first names the token</text>')
    parts.append(f'<path d="M{left} {top}V{top + side}H{left + side}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>')
    parts.append(curve(lambda tv: 1 - tv, "stroke: currentColor; stroke-dasharray: 5 4"))
    parts.append(curve(lambda tv: (1 - tv) / (1 + tv), "stroke: var(--spec)"))
    rng = np.random.default_rng(0)
    for p, q in rng.dirichlet(np.full(4, 0.6), (60, 2)):
        x, y = left + side * abs(p - q).sum() / 2, top + side * (1 - coupled.match_probability(p, q))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" style="fill: var(--spec)"/>')
    for x, y, text in ((left - 8, top + 5, "1"), (left - 8, top + side + 4, "0")):
        parts.append(f'<text x="{x}" y="{y}" text-anchor="end" font-size="12">{text}</text>')
    parts.append(f'<text x="{left + side}" y="{top + side + 20}" text-anchor="end" font-size="12">total variation, to 1</text>')
    parts.append(f'<text x="{left}" y="{top - 14}" font-size="12">chance of a match</text>')
    parts.append(f'<text x="{left + 100}" y="{top + 62}" font-size="12">1 − TV: a ratio test</text>')
    parts.append(f'<text x="{left + 96}" y="{top + 20}" font-size="12" style="fill: var(--spec)">dots: coupled draws</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
