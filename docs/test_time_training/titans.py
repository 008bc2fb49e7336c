"""Draw `titans.svg`: a memory of one number that is told 4 over and over, then 0, under three settings."""

from pathlib import Path

import numpy as np

from twofold.spec.test_time_training import titans

T, TURN, LEFT, TOP, WIDTH, HEIGHT = 40, 20, 50, 24, 430, 190


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 262" font-size="13" fill="currentColor">']
    one, told = np.ones((T, 1)), np.where(np.arange(T) < TURN, 4.0, 0.0)[:, None]
    x = lambda t: LEFT + WIDTH * t / (T - 1)
    y = lambda value: TOP + HEIGHT * (1 - (value + 1.5) / 7.5)
    for value in (0, 2, 4):
        line = f'x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts.append(f'<line {line} stroke="currentColor" stroke-opacity="0.2"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" font-size="11">{value}</text>')
    steps = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in enumerate(told[:, 0]))
    parts.append(f'<polyline points="{steps}" fill="none" stroke="currentColor" stroke-dasharray="4 3" stroke-opacity="0.6"/>')
    settings = (("a step of 0.2", 0.0, 0.0, "var(--spec)", "0.9"), ("… with momentum 0.7", 0.0, 0.7, "var(--fast)", "0.9"),
                ("… and a decay of 0.1", 0.1, 0.7, "var(--fast)", "0.45"))  # fmt: skip
    parts.append(f'<text x="{LEFT + WIDTH + 24}" y="{TOP + 16}" font-size="12" fill-opacity="0.75">dashed: what it is told</text>')
    for n, (name, alpha, eta, color, strength) in enumerate(settings):
        rates = (np.full(T, rate) for rate in (alpha, eta, 0.2))
        answers = titans.recurrent(one, one, told, *rates)[0][:, 0]
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in enumerate(answers))
        look = f'style="stroke: {color}" stroke-width="2" stroke-opacity="{strength}"'
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        at = TOP + 48 + 28 * n
        parts.append(f'<line x1="{LEFT + WIDTH + 24}" x2="{LEFT + WIDTH + 46}" y1="{at}" y2="{at}" {look}/>')
        parts.append(f'<text x="{LEFT + WIDTH + 54}" y="{at + 4}" font-size="12">{name}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 26}" text-anchor="middle" font-size="12">tokens</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
