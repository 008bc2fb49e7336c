"""Draw `lookahead.svg`: the mask of one pass over window and candidates, from the spec."""

from pathlib import Path

from twofold.spec.speculative import lookahead

W, N, G = 4, 4, 2
CELL, LEFT, TOP = 22, 60, 58


def names() -> list[tuple[str, str]]:
    """Of each token its name and its position, counted from the current token's."""
    window = [(f"a{j}{i}", str(i + j)) for j in range(N - 1) for i in range(W)]
    return window + [(f"{'cd'[g]}{t}", str(1 + t)) for g in range(G) for t in range(N - 1)]


def main() -> None:
    mask, labels = lookahead.mask(W, N, G), names()
    size = CELL * len(labels)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {TOP + size + 12}" font-size="11" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="16" font-size="12" fill-opacity="0.75">is seen</text>')
    parts.append('<text x="4" y="48" font-size="12" fill-opacity="0.75">sees</text>')
    for s, (name, position) in enumerate(labels):
        middle = CELL * s + CELL / 2
        parts.append(f'<text x="{LEFT + middle}" y="{TOP - 24}" text-anchor="middle" fill-opacity="0.75" font-size="10">{position}</text>')
        parts.append(f'<text x="{LEFT + middle}" y="{TOP - 8}" text-anchor="middle" font-size="9">{name}</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{TOP + middle + 4}" text-anchor="end">{name}</text>')
        for other, seen in enumerate(mask[s]):
            color = "--spec" if s < (N - 1) * W else "--fast"
            style = f"fill: var({color})" if seen else "fill: none; stroke: currentColor; stroke-opacity: 0.15"
            x, y = LEFT + CELL * other + 1, TOP + CELL * s + 1
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" style="{style}"/>')
    x = LEFT + size + 24
    notes = [("the window, row by row", "--spec"), ("two candidates", "--fast")]
    for n, (text, color) in enumerate(notes):
        y = TOP + 24 * n
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" style="fill: var({color})"/>')
        parts.append(f'<text x="{x + 22}" y="{y + 11}">{text}</text>')
    parts.append(f'<text x="{x - 16}" y="{TOP - 24}" fill-opacity="0.75">position</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
