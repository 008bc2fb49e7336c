"""Draw `rope.svg`: pairs turn, the fast ones tell neighbors apart; a product knows only how far apart its two rows stand."""

from math import cos, pi, sin
from pathlib import Path

RADIUS, LEFT, STEP = 38, 150, 116
PERIODS = (8, 32, 128)  # positions per turn of a pair


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 744 406" font-size="13" fill="currentColor">']

    def dial(x: float, y: float, hands: list[tuple[float, str]]) -> None:
        parts.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="none" stroke="currentColor" stroke-opacity="0.3"/>')
        for angle, color in hands:
            end = x + RADIUS * cos(angle), y - RADIUS * sin(angle)
            parts.append(f'<line x1="{x}" y1="{y}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" style="stroke: {color}" stroke-width="3"/>')

    for column, position in enumerate((0, 1, 2, 3, 12)):
        x = LEFT + column * STEP
        parts.append(f'<text x="{x}" y="16" text-anchor="middle">position {position}</text>')
        for row, period in enumerate(PERIODS):
            dial(x, 66 + row * 84, [(2 * pi * position / period, "var(--spec)")])
    for row, name in enumerate(("pair 0, fast", "pair 1", "pair 2, slow")):
        parts.append(f'<text x="{LEFT - RADIUS - 16}" y="{70 + row * 84}" text-anchor="end">{name}</text>')
    parts.append('<line x1="0" y1="290" x2="744" y2="290" stroke="currentColor" stroke-opacity="0.2"/>')
    for column, (query, key) in enumerate(((3, 1), (13, 11), (4, 1))):
        x = LEFT + column * 2 * STEP
        dial(x, 340, [(0.3 + 2 * pi * query / 16, "var(--fast)"), (2 * pi * key / 16, "var(--spec)")])
        parts.append(f'<text x="{x + RADIUS + 12}" y="336" style="fill: var(--fast)">query at {query}</text>')
        parts.append(f'<text x="{x + RADIUS + 12}" y="354" style="fill: var(--spec)">key at {key}</text>')
    parts.append(f'<text x="{LEFT - RADIUS - 16}" y="344" text-anchor="end">one pair</text>')
    parts.append(f'<text x="{LEFT + STEP}" y="400" text-anchor="middle">two apart: the same angle between them, the same product</text>')
    parts.append(f'<text x="{LEFT + 4 * STEP}" y="400" text-anchor="middle">three apart: another</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
