"""Draw `gsa.svg`: what four slots hold of twenty tokens, and what a query that reads two of them sees of the tokens."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import gsa

T, LEFT, CELL, TOP = 20, 96, 20, 44
HORIZONS = (1.5, 4.0, 10.0, 40.0)  # tokens until most of a slot is gone


def row(y: float, shares: np.ndarray, color: str) -> list[str]:
    boxes = (f'x="{LEFT + t * CELL}" y="{y}" width="{CELL - 2}" height="24" rx="2"' for t in range(T))
    return [f'<rect {box} style="fill: {color}" fill-opacity="{0.05 + 0.95 * share**0.5:.3f}"/>' for box, share in zip(boxes, shares)]


def main() -> None:
    g = np.tile(-1 / np.array(HORIZONS), (T, 1))
    g[9, 3] = -np.inf  # one slot is emptied on the way
    still = np.zeros((T, 4))
    _, (_, held) = gsa.recurrent(still, still, np.eye(T), -np.expm1(g), g)
    p, _ = gsa.weights(still + [0, 1, 0, 2], still, still, still, np.eye(4))  # a query that two of the slots answer
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 262" font-size="13" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="20">what each slot holds of the tokens 0 … {T - 1}</text>')
    parts.append(f'<text x="{LEFT + T * CELL + 16}" y="20">weight</text>')
    for n, (shares, weight) in enumerate(zip(held, p[-1])):
        y = TOP + 34 * n
        parts.append(f'<text x="{LEFT - 12}" y="{y + 17}" text-anchor="end">slot {n}</text>')
        parts += row(y, shares, "var(--spec)")
        parts.append(f'<rect x="{LEFT + T * CELL + 16}" y="{y + 4}" width="{110 * weight:.1f}" height="16" style="fill: var(--fast)"/>')
        parts.append(f'<text x="{LEFT + T * CELL + 22 + 110 * weight:.1f}" y="{y + 17}" font-size="12">{weight:.2f}</text>')
    y = TOP + 34 * len(HORIZONS) + 20
    parts.append(f'<text x="{LEFT - 12}" y="{y + 17}" text-anchor="end">output</text>')
    parts += row(y, p[-1] @ held, "var(--fast)")
    note = "slots forget fast or slowly; slot 3 dropped everything for token 9; the output is the slots, weighted by a softmax"
    parts.append(f'<text x="{LEFT}" y="{y + 48}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
