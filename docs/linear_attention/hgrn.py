"""Draw `hgrn.svg`: one channel over 48 tokens, as the recurrence has it and as its four chunks have it from nothing."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import hgrn

TOKENS, CHUNK, FORGETS = 48, 12, 29
LEFT, TOP, WIDTH, HEIGHT = 34, 34, 590, 170


def main() -> None:
    t = np.arange(TOKENS)
    x = (0.85 + 0.45 * np.sin(t / 3.1) + 0.3 * np.sin(t * 1.7))[:, None]
    g = np.log(np.where(t == FORGETS, 0.02, 0.86))[:, None]
    h = hgrn.recurrent(x, g)[0][:, 0]
    starts = range(0, TOKENS, CHUNK)
    alone = [hgrn.recurrent(x[s : s + CHUNK], g[s : s + CHUNK])[0][:, 0] for s in starts]
    top = 1.08 * max(h)
    place = lambda token: LEFT + WIDTH * (token + 1) / TOKENS
    height = lambda value: TOP + HEIGHT * (1 - value / top)
    line = lambda tokens, values: " ".join(f"{place(a):.1f},{height(b):.1f}" for a, b in zip(tokens, values))

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 252" font-size="12" fill="currentColor">']
    parts.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    for number, (start, own) in enumerate(zip(starts, alone)):
        tokens = np.arange(start - 1, start + CHUNK)
        parts.append(f'<text x="{place(start + CHUNK / 2 - 1):.1f}" y="{TOP - 14}" text-anchor="middle">chunk {number}</text>')
        if number:
            edge = f"M{place(start - 1):.1f} {TOP - 22}V{TOP + HEIGHT}"
            parts.append(f'<path d="{edge}" stroke="currentColor" stroke-opacity="0.35" stroke-dasharray="2 4"/>')
        if number:  # the first chunk does start from nothing
            points = line(tokens, [0.0, *own])
            look = 'fill="none" style="stroke: var(--fast)" stroke-width="2" stroke-dasharray="6 4"'
            parts.append(f'<polyline points="{points}" {look}/>')
    parts.append(f'<polyline points="{line(range(-1, TOKENS), [0.0, *h])}" fill="none" style="stroke: var(--spec)" stroke-width="2.2"/>')
    for start in starts:
        dot = f'cx="{place(start + CHUNK - 1):.1f}" cy="{height(h[start + CHUNK - 1]):.1f}"'
        parts.append(f'<circle {dot} r="4.5" style="fill: var(--spec)"/>')
    forgets = f'x="{place(FORGETS):.1f}" y="{TOP + HEIGHT + 18}"'
    parts.append(f'<text {forgets} text-anchor="middle">a gate shuts</text>')
    parts.append(f'<path d="M{place(FORGETS):.1f} {TOP + HEIGHT + 5}v-9" stroke="currentColor"/>')
    legend = TOP + HEIGHT + 40
    for left, color, dash, text in ((LEFT, "var(--spec)", "", "the state"), (LEFT + 120, "var(--fast)", "6 4", "each chunk from nothing")):
        parts.append(f'<path d="M{left} {legend - 4}h26" style="stroke: {color}" stroke-width="2.2" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{left + 34}" y="{legend}">{text}</text>')
    parts.append(f'<circle cx="{LEFT + 334}" cy="{legend - 4}" r="4.5" style="fill: var(--spec)"/>')
    parts.append(f'<text x="{LEFT + 346}" y="{legend}">states between chunks: all that waits</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
