"""Draw `mamba.svg`: one channel over 40 tokens: the lengths of its steps, and two of its states, a slow and a quick one."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import mamba

TOKENS, LEFT, WIDTH = 40, 58, 580
TOP, HEIGHT, BARS, BAR = 20, 150, 200, 60
IGNORED, WIPES = slice(14, 22), 28
RATES = np.array([[-0.12, -0.9]])


def main() -> None:
    t = np.arange(TOKENS)
    rng = np.random.default_rng(3)
    x = np.where(t < WIPES, 1.0, 0.3)[:, None] + 0.12 * rng.standard_normal((TOKENS, 1))
    x[WIPES] = 0.02
    delta = (0.55 + 0.3 * rng.random(TOKENS))[:, None]
    delta[IGNORED], delta[WIPES] = 0.004, 6.0
    ones = np.ones((TOKENS, 2))
    states = [np.zeros((1, 2))]
    for i in range(TOKENS):
        states.append(mamba.step(states[-1], x[i], delta[i], RATES, ones[i] * -RATES[0], ones[i], np.zeros(1))[1])
    levels = np.concatenate(states)
    place = lambda token: LEFT + WIDTH * (token + 1) / (TOKENS + 1)
    height = lambda value: TOP + HEIGHT * (1 - value / (1.1 * levels.max()))

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 322" font-size="12" fill="currentColor">']
    axis = 'fill="none" stroke="currentColor" stroke-opacity="0.6"'
    parts.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" {axis}/>')
    parts.append(f'<path d="M{LEFT} {BARS}V{BARS + BAR}H{LEFT + WIDTH}" {axis}/>')
    for text, middle in (("states", TOP + HEIGHT / 2), ("steps", BARS + BAR / 2)):
        parts.append(f'<text x="{LEFT - 12}" y="{middle + 4}" text-anchor="end">{text}</text>')
    left, right = place(IGNORED.start) - 7, place(IGNORED.stop - 1) + 7
    shade = f'x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{BARS + BAR - TOP}"'
    parts.append(f'<rect {shade} fill="currentColor" fill-opacity="0.07"/>')
    for i, length in enumerate(delta[:, 0]):
        tall = BAR * min(length, 1.5) / 1.5
        bar = f'x="{place(i) - 4:.1f}" y="{BARS + BAR - tall:.1f}" width="8" height="{tall:.1f}"'
        parts.append(f'<rect {bar} fill="currentColor" fill-opacity="0.45"/>')
    for n, color in enumerate(("var(--spec)", "var(--fast)")):
        points = " ".join(f"{place(i - 1):.1f},{height(level):.1f}" for i, level in enumerate(levels[:, n]))
        parts.append(f'<polyline points="{points}" fill="none" style="stroke: {color}" stroke-width="2.2"/>')
    below = BARS + BAR + 18
    parts.append(f'<text x="{(left + right) / 2:.1f}" y="{below}" text-anchor="middle">passed over</text>')
    parts.append(f'<text x="{place(WIPES):.1f}" y="{below}" text-anchor="middle">a long step</text>')
    for start, color, text in ((LEFT, "var(--spec)", "slow state"), (LEFT + 130, "var(--fast)", "quick state")):
        parts.append(f'<path d="M{start} {below + 28}h26" style="stroke: {color}" stroke-width="2.2"/>')
        parts.append(f'<text x="{start + 34}" y="{below + 32}">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
