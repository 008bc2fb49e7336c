"""Draw `short_conv.svg`: a line of tail and tokens, the filter over the rows that end with one token, and the tail that is handed on."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import short_conv

CELL, GAP, LEFT = 46, 6, 110
TAIL = np.array([[2.0], [0.0], [1.0]])
TOKENS = np.array([[3.0], [1.0], [0.0], [2.0], [4.0], [1.0]])
FILTER = np.array([[1.0], [0.0], [2.0], [3.0]])
AT = 1  # the token that is looked at


def main() -> None:
    y, tail = short_conv.causal(TOKENS, FILTER, tail=TAIL)
    place = lambda i: LEFT + i * (CELL + GAP)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 262" font-size="13" fill="currentColor" text-anchor="middle">']

    def row(top, values, color, name, first=0, strong=lambda i: False):
        parts.append(f'<text x="{LEFT - 16}" y="{top + 20}" text-anchor="end">{name}</text>')
        for i, value in enumerate(values[:, 0]):
            box = f'x="{place(first + i)}" y="{top}" width="{CELL}" height="30" rx="4"'
            opacity = 0.45 if strong(i) else 0.15
            parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{opacity}"/>')
            parts.append(f'<text x="{place(first + i) + CELL / 2}" y="{top + 20}">{value:g}</text>')

    rows = np.concatenate([TAIL, TOKENS])
    parts.append(f'<text x="{place(1) + CELL / 2}" y="18">tail</text><text x="{(place(5) + place(6) + CELL) / 2}" y="18">tokens</text>')
    row(28, rows, "var(--spec)", "rows", strong=lambda i: AT <= i < AT + len(FILTER))
    row(92, FILTER, "var(--fast)", "filter", AT, lambda i: True)
    for j in range(len(FILTER)):
        x = place(AT + j) + CELL / 2
        parts.append(f'<text x="{x}" y="80" font-size="12">×</text>')
    row(156, y, "var(--fast)", "outputs", len(TAIL), lambda i: i == AT)
    x = place(AT + len(FILTER) - 1) + CELL / 2
    parts.append(f'<path d="M{x} 124 V153 M{x - 4} 147 L{x} 153 L{x + 4} 147" fill="none" stroke="currentColor"/>')
    parts.append(f'<text x="{x + 14}" y="143" font-size="12" text-anchor="start">sum</text>')
    row(214, tail, "var(--spec)", "new tail", len(rows) - len(tail), lambda i: True)
    parts.append(f'<text x="{place(0)}" y="234" font-size="12" text-anchor="start">inputs, never outputs</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
