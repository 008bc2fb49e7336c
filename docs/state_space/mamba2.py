"""Draw `mamba2.svg`: the matrix of one head in three chunks, its blocks by who computes them, and the steps that set its decays."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space.mamba2 import segsum

CELL, LEFT, TOP, CHUNK = 19, 66, 40, 4
STEPS = np.array([0.2, 0.15, 0.2, 0.1, 0.15, 1.4, 0.2, 0.1, 0.2, 0.15, 0.5, 0.1])
NOTES = (
    ("fast", "inside a chunk", "attention without softmax, under L"),
    ("spec", "what a chunk leaves", "a state at its end, from its keys B"),
    ("spec", "from chunk to chunk", "the same recurrence, one state per chunk"),
    ("spec", "what a chunk finds", "that state, decayed, read by its queries C"),
)


def main() -> None:
    T = len(STEPS)
    L = np.exp(segsum(-STEPS))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 330" font-size="13" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="28">keys B, values Δx →</text>')
    parts += [f'<text x="{LEFT - 14}" y="{TOP + y}" text-anchor="end">{text}</text>' for y, text in ((12, "C"), (30, "↓"))]
    for i in range(T):
        for j in range(i + 1):
            color = "fast" if i // CHUNK == j // CHUNK else "spec"
            box = f'x="{LEFT + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
            parts.append(f'<rect {box} style="fill: var(--{color})" fill-opacity="{0.08 + 0.85 * L[i, j]:.3f}"/>')
        box = f'x="{LEFT + T * CELL + 10}" y="{TOP + i * CELL + 4}" width="{STEPS[i] * 36:.1f}" height="{CELL - 10}"'
        parts.append(f'<rect {box} fill-opacity="0.45"/>')
    parts.append(f'<text x="{LEFT + T * CELL + 10}" y="28">Δ</text>')
    for edge in range(CHUNK, T, CHUNK):
        y, end = TOP + edge * CELL - 1, LEFT + T * CELL + 66
        parts.append(f'<path d="M{LEFT - 6} {y} H{end}" stroke="currentColor" stroke-dasharray="3 4" stroke-opacity="0.6"/>')
    for n, (color, what, how) in enumerate(NOTES):
        y = 62 + n * 56
        parts.append(f'<circle cx="396" cy="{y - 4}" r="11" style="fill: var(--{color})" fill-opacity="0.35"/>')
        parts.append(f'<text x="396" y="{y}" text-anchor="middle" font-size="12">{n + 1}</text>')
        parts.append(f'<text x="416" y="{y}">{what}</text><text x="416" y="{y + 18}" font-size="12" fill-opacity="0.75">{how}</text>')
    note = "a long step in row 5 fades all keys before it, and writes its own token strongly"
    parts.append(f'<text x="{LEFT}" y="{TOP + T * CELL + 24}" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
