"""Draw `eagle3.svg`: the mask of the training-time test for five places and three steps, taken from the spec."""

from pathlib import Path

from twofold.spec.speculative import eagle3

T, STEPS, CELL, LEFT, TOP = 5, 3, 19, 128, 40


def main() -> None:
    sees, position = eagle3.mask(T, STEPS)
    edges, labels = [0], []
    for s in range(STEPS):
        edges.append(edges[-1] + T - s)
        labels += [(s, n) for n in range(T - s)]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="12" fill="currentColor">']
    for i, (_, n) in enumerate(labels):
        y = TOP + CELL * i
        parts.append(f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end" font-size="11">{n}</text>')
        parts.append(f'<text x="{LEFT + CELL * i + 9}" y="{TOP - 8}" text-anchor="middle" font-size="11">{n}</text>')
        for j, (r, _) in enumerate(labels):
            style = f"fill: var({'--fast' if r else '--spec'})" if sees[i, j] else "fill: none; stroke: currentColor; stroke-opacity: 0.2"
            parts.append(f'<rect x="{LEFT + CELL * j + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="2" style="{style}"/>')
        parts.append(f'<text x="{LEFT + CELL * len(labels) + 16}" y="{y + 14}" font-size="11" fill-opacity="0.75">{position[i]}</text>')
    for s in range(STEPS):
        middle = TOP + CELL * (edges[s] + edges[s + 1]) / 2
        parts.append(f'<text x="20" y="{middle + 4:g}">step {s}</text>')
        if s:
            at, end = CELL * edges[s], CELL * edges[-1]
            parts.append(f'<path d="M{LEFT - 26} {TOP + at}H{LEFT + end}M{LEFT + at} {TOP}V{TOP + end}" stroke="currentColor"/>')
    right = LEFT + CELL * len(labels) + 60
    parts.append(f'<text x="{right - 50}" y="{TOP - 8}" font-size="11" fill-opacity="0.75">stands at</text>')
    legend = [("--spec", "rows of true features"), ("--fast", "the draft's own rows")]
    for n, (side, text) in enumerate(legend):
        y = 90 + 28 * n
        parts.append(f'<rect x="{right}" y="{y}" width="15" height="15" rx="2" style="fill: var({side})"/>')
        parts.append(f'<text x="{right + 24}" y="{y + 12}">{text}</text>')
    parts.append(f'<text x="{right}" y="170">rows: who sees</text><text x="{right}" y="190">columns: what is seen</text>')
    parts.append(f'<text x="{right}" y="210">numbers: where the</text><text x="{right}" y="226">draft begins</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
