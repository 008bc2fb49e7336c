"""Draw `lru.svg`: a state that turns and shrinks, in the plane and in a frame that turns along, and the filter it makes."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import lru

TOKENS, TURN, RATE = 30, 0.55, 0.07
CENTER, RADIUS, LEFT, WIDTH, MIDDLE, HEIGHT = (130, 128), 104, 310, 320, 128, 92


def main() -> None:
    nu, theta = np.log([RATE]), np.array([TURN])
    B, C = np.array([[[1.0]], [[0.0]]]), np.array([[[1.0]], [[0.0]]])
    states = [np.array([[1.0], [0.0]])]
    for _ in range(TOKENS):
        states.append(lru.step(states[-1], np.zeros(1), nu, theta, B, C, np.zeros(1))[1])
    impulse = np.zeros((TOKENS + 1, 1))
    impulse[0] = 1
    response = lru.recurrent(impulse, nu, theta, B, C, np.zeros(1))[0][:, 0]

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 290" font-size="12" fill="currentColor">']
    axis = 'fill="none" stroke="currentColor" stroke-opacity="0.35"'
    x, y = CENTER
    parts.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS}" {axis}/>')
    parts.append(f'<path d="M{x - RADIUS - 8} {y}H{x + RADIUS + 8}M{x} {y - RADIUS - 8}V{y + RADIUS + 8}" {axis}/>')
    points = [(x + RADIUS * a, y - RADIUS * b) for a, b in (state[:, 0] for state in states)]
    spiral = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    parts.append(f'<polyline points="{spiral}" fill="none" style="stroke: var(--spec)" stroke-width="1.2" stroke-opacity="0.6"/>')
    for n, (a, b) in enumerate(points):
        parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" style="fill: var(--spec)"/>')
        size = np.exp(-RATE * n)
        parts.append(f'<circle cx="{x + RADIUS * size:.1f}" cy="{y}" r="3" style="fill: var(--fast)"/>')

    place = lambda lag: LEFT + WIDTH * lag / TOKENS
    top = max(abs(response))
    parts.append(f'<path d="M{LEFT} {MIDDLE - HEIGHT - 8}V{MIDDLE + HEIGHT + 8}M{LEFT} {MIDDLE}H{LEFT + WIDTH + 8}" {axis}/>')
    for lag, value in enumerate(response):
        at = place(lag), MIDDLE - HEIGHT * value / top
        parts.append(f'<path d="M{at[0]:.1f} {MIDDLE}V{at[1]:.1f}" style="stroke: var(--spec)" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3" style="fill: var(--spec)"/>')
    for lag in (10, 20, 30):
        parts.append(f'<text x="{place(lag):.1f}" y="{MIDDLE + HEIGHT + 22}" text-anchor="middle" font-size="11">{lag}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{MIDDLE + HEIGHT + 40}" text-anchor="middle">what an input does, tokens later</text>')
    for left, color, text in ((x - 118, "var(--spec)", "the state"), (x - 22, "var(--fast)", "in a frame that turns along")):
        parts.append(f'<circle cx="{left}" cy="{MIDDLE + HEIGHT + 52}" r="4" style="fill: {color}"/>')
        parts.append(f'<text x="{left + 10}" y="{MIDDLE + HEIGHT + 56}">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
