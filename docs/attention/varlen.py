"""Draw `varlen.svg`: three sequences packed along both axes, and the tiles that are visited."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import varlen

ROWS, ROOM, USED, TILE = (5, 2, 6), (5, 4, 6), (5, 2, 6), 4
CELL, LEFT, TOP = 20, 110, 46


def main() -> None:
    cu_q, cu_k = np.cumsum([0, *ROWS]), np.cumsum([0, *ROOM])
    n_q, n_k = cu_q[-1], cu_k[-1]
    one_hot = np.eye(n_k)  # with q = 0 the output tells which keys a row read
    o, _ = varlen.attention(np.zeros((n_q, 1)), np.ones((n_k, 1)), one_hot, cu_q, cu_k, causal=True, used_k=np.array(USED))
    width, height = LEFT + n_k * CELL + 90, TOP + n_q * CELL + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12" fill="currentColor">']
    for i, j in np.ndindex(n_q, n_k):
        r, s = (int(np.searchsorted(cu, at, side="right")) - 1 for cu, at in ((cu_q, i), (cu_k, j)))
        unused = j - cu_k[s] >= USED[s]
        look = 'style="fill: var(--fast)" fill-opacity="0.6"' if o[i, j] > 0 else 'fill-opacity="0.04"'
        look = 'fill-opacity="0.22"' if unused else look
        parts.append(f'<rect x="{LEFT + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" {look}/>')
    for r, name in enumerate(("first", "second", "third")):
        y, x = TOP + (cu_q[r] + cu_q[r + 1]) / 2 * CELL, LEFT + (cu_k[r] + cu_k[r + 1]) / 2 * CELL
        parts.append(f'<text x="{LEFT - 44}" y="{y + 3:.0f}" text-anchor="end">{name}</text>')
        parts.append(f'<text x="{x:.0f}" y="{TOP - 12}" text-anchor="middle">{name}</text>')
        box = f'x="{LEFT + cu_k[r] * CELL - 2}" y="{TOP + cu_q[r] * CELL - 2}" width="{ROOM[r] * CELL + 2}" height="{ROWS[r] * CELL + 2}"'
        parts.append(f'<rect {box} fill="none" style="stroke: var(--spec)" stroke-width="1.5"/>')
        for at in range(0, ROWS[r], TILE):
            top, size = TOP + (cu_q[r] + at) * CELL, min(TILE, ROWS[r] - at) * CELL
            parts.append(f'<path d="M{LEFT - 14} {top}h-8v{size - 3}h8" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    x, y = LEFT, TOP + n_q * CELL + 16
    for look, text, at in (('style="fill: var(--fast)" fill-opacity="0.6"', "read", 0), ('fill-opacity="0.22"', "room, not used", 90)):
        parts.append(f'<rect x="{x + at}" y="{y}" width="14" height="14" {look}/><text x="{x + at + 20}" y="{y + 12}">{text}</text>')
    parts.append(f'<text x="{x + 220}" y="{y + 12}">brackets: tiles of {TILE} rows</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
