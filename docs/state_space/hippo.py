"""Draw `hippo.svg`: a signal, and the polynomial that eight coefficients hold of it, at three moments."""

from pathlib import Path

import numpy as np
from numpy.polynomial import legendre

from twofold.spec.state_space import hippo

N, T, WIDTH, HEIGHT, LEFT = 8, 600, 560, 64, 64
MOMENTS = (200, 400, 600)


def line(times, values, top, style):
    points = " ".join(f"{LEFT + WIDTH * t / T:.1f},{top - 24 * y:.1f}" for t, y in zip(times, values, strict=True))
    return f'<polyline points="{points}" fill="none" {style}/>'


def main() -> None:
    s = np.arange(1, T + 1)
    f = np.sin(s / 43) * np.cos(s / 127) + 0.25 * np.sin(s / 19)
    c = hippo.legs_project(f, N)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 290" font-size="13" fill="currentColor">']
    for row, t in enumerate(MOMENTS):
        top = 46 + row * (HEIGHT + 20)
        parts.append(line(s[::4], f[::4], top, 'stroke="currentColor" stroke-opacity="0.45" stroke-width="1.5"'))
        u = np.linspace(0, 1, 120)
        read = legendre.legval(2 * u - 1, c[t - 1] * np.sqrt(2 * np.arange(N) + 1))
        parts.append(line(u * t, read, top, 'style="stroke: var(--spec)" stroke-width="2.5"'))
        x = LEFT + WIDTH * t / T
        parts.append(f'<path d="M{x:.1f} {top - 34} V{top + 34}" stroke="currentColor" stroke-dasharray="3 4"/>')
        parts.append(f'<text x="{LEFT - 12}" y="{top + 4}" text-anchor="end">t = {t}</text>')
    note = "gray: the signal; colored: what eight numbers hold of it at the dashed moment"
    parts.append(f'<text x="{LEFT}" y="280" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
