"""Draw `tree.svg`: a token tree, and beside it the mask under which one pass scores all of its nodes."""

from pathlib import Path

PARENTS = [-1, 0, 0, 1, 1, 2, 4]
WORDS = ["the", "cat", "dog", "sat", "is", "ran", "on"]
ACCEPTED = [0, 1, 4, 6]
PLACES = [(40, 130), (140, 70), (140, 190), (240, 30), (240, 110), (240, 190), (340, 110)]
LEFT, TOP, CELL = 440, 36, 28


def line(node: int) -> list[int]:
    return [*line(PARENTS[node]), node] if node >= 0 else []


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 270" font-size="13" fill="currentColor">']
    for node, parent in enumerate(PARENTS[1:], 1):
        (x, y), (px, py) = PLACES[node], PLACES[parent]
        style = "stroke: var(--fast); stroke-width: 3" if node in ACCEPTED else "stroke: currentColor; stroke-opacity: 0.5"
        parts.append(f'<path d="M{px + 26} {py}L{x - 26} {y}" fill="none" style="{style}"/>')
    for node, (x, y) in enumerate(PLACES):
        style = "stroke: var(--fast); stroke-width: 2.5" if node in ACCEPTED else "stroke: currentColor; stroke-opacity: 0.6"
        parts.append(f'<rect x="{x - 26}" y="{y - 15}" width="52" height="30" rx="5" fill="none" style="{style}"/>')
        parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle">{WORDS[node]}</text>')
        parts.append(f'<text x="{x}" y="{y + 29}" text-anchor="middle" font-size="10" fill-opacity="0.75">node {node}</text>')
    for depth, x in enumerate((40, 140, 240, 340)):
        parts.append(f'<text x="{x}" y="260" text-anchor="middle" font-size="11" fill-opacity="0.75">depth {depth}</text>')
    for i in range(len(PARENTS)):
        parts.append(f'<text x="{LEFT - 8}" y="{TOP + CELL * i + 19}" text-anchor="end" font-size="11">{i}</text>')
        parts.append(f'<text x="{LEFT + CELL * i + 14}" y="{TOP - 8}" text-anchor="middle" font-size="11">{i}</text>')
        for j in range(len(PARENTS)):
            fill = "fill: var(--spec)" if j in line(i) else "fill: none"
            box = f'x="{LEFT + CELL * j}" y="{TOP + CELL * i}" width="{CELL}" height="{CELL}"'
            parts.append(f'<rect {box} style="{fill}; stroke: currentColor; stroke-opacity: 0.3"/>')
    caption = f'<text x="{LEFT + 98}" y="{TOP + 7 * CELL + 22}" text-anchor="middle" font-size="11" fill-opacity="0.75">'
    parts.append(caption + "row i sees column j</text>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
