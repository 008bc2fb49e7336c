"""Draw `s5.svg`: an oscillator that is struck twice, in the plane of complex numbers and in a frame that turns along with it."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import s5

T, STRUCK, SIZE = 30, 11, 92
CENTERS = (190, 128), (490, 128)


def path(points, center, color):
    at = [(f"{center[0] + SIZE * z.real:.1f}", f"{center[1] - SIZE * z.imag:.1f}") for z in points]
    line = " ".join(",".join(point) for point in at)
    dots = [f'<circle cx="{x}" cy="{y}" r="2.8" style="fill: var({color})"/>' for x, y in at]
    return [f'<polyline points="{line}" fill="none" style="stroke: var({color})" stroke-width="1.6"/>', *dots]


def main() -> None:
    Lam, one = np.array([-0.07 + 0.42j]), np.ones((1, 1), complex)
    u = np.zeros((T, 1))
    u[0], u[STRUCK] = 1.0, 0.7
    states = [s5.scan(u[: t + 1], Lam, one, one, np.zeros(1), 1.0)[1][0] for t in range(T)]
    states = np.array(states) / np.abs(states[0])
    still = states * np.exp(-1j * Lam.imag * np.arange(T))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 286" font-size="13" fill="currentColor">']
    notes = "the state turns and fades", "in a frame that turns along, it only fades"
    for center, points, color, note in zip(CENTERS, (states, still), ("--spec", "--fast"), notes):
        x, y = center
        style = 'stroke="currentColor" stroke-opacity="0.25" fill="none"'
        parts.append(f'<path d="M{x - 112} {y} H{x + 112} M{x} {y - 112} V{y + 112}" {style}/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="{SIZE}" {style}/>')
        parts += path(points, center, color)
        parts.append(f'<text x="{x}" y="270" text-anchor="middle">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
