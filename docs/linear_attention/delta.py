"""Draw `delta.svg`: what is stored under one key while a text writes to two, as linear attention and the delta rule keep it."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import delta, linear

WRITES = (("A", 3.0), ("B", 2.0), ("A", 5.0), ("A", 1.0), ("B", 4.0), ("A", 2.0))
LEFT, STEP, ROW, UNIT = 190, 74, 96, 6.0


def main() -> None:
    k = np.array([[1.0, 0.0] if name == "A" else [0.0, 1.0] for name, _ in WRITES])
    v, q = np.array([[value] for _, value in WRITES]), np.tile([1.0, 0.0], (len(WRITES), 1))  # every token asks for A
    count = np.cumsum(k[:, 0])[:, None]
    rows = (
        ("linear attention", "adds", linear.recurrent(q, k, v, 0.0)[0] * count),
        ("delta rule, β = 1", "replaces", delta.recurrent(q, k, v, np.ones(len(v)))[0]),
        ("delta rule, β = ½", "goes half of the way", delta.recurrent(q, k, v, np.full(len(v), 0.5))[0]),
    )
    height = 58 + ROW * len(rows)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {height}" font-size="13" fill="currentColor">']
    for t, (name, value) in enumerate(WRITES):
        middle = LEFT + STEP * t + 24
        parts.append(f'<text x="{middle}" y="20" text-anchor="middle">{name} ← {value:g}</text>')
    for nth, (model, what, stored) in enumerate(rows):
        floor = 44 + ROW * (nth + 1) - 20
        parts.append(f'<text x="8" y="{floor - 22}">{model}</text>')
        parts.append(f'<text x="8" y="{floor - 4}" font-size="12" fill-opacity="0.75">{what}</text>')
        parts.append(f'<path d="M{LEFT - 6} {floor}H{LEFT + STEP * len(v)}" stroke="currentColor" stroke-opacity="0.5"/>')
        for t, number in enumerate(stored[:, 0]):
            x, tall = LEFT + STEP * t, UNIT * number
            color = "var(--fast)" if WRITES[t][0] == "A" else "var(--spec)"
            parts.append(f'<rect x="{x}" y="{floor - tall:.1f}" width="48" height="{tall:.1f}" style="fill: {color}" fill-opacity="0.65"/>')
            parts.append(f'<text x="{x + 24}" y="{floor - tall - 5:.1f}" text-anchor="middle" font-size="12">{number:g}</text>')
    note = "what is stored under A after each write; writes to B leave it alone"
    parts.append(f'<text x="{LEFT}" y="{height - 6}" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
