"""Draw `abc.svg`: how two slots share themselves out among the tokens so far, and how much of the old each token leaves."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import abc

T, CELL, TOP = 12, 20, 62


def main() -> None:
    s = np.stack([np.zeros(T), np.where(np.arange(T) == 3, 2.5, np.where(np.arange(T) == 8, 4.0, 0.0))], axis=1)
    still, eye = np.zeros((T, 1)), np.eye(T)
    held = np.stack([abc.recurrent(still[: t + 1], still[: t + 1], eye[: t + 1], s[: t + 1])[1][1] for t in range(T)])  # (T, 2, T)
    write, _, _ = abc.gates(s, np.full(2, -np.inf))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 350" font-size="13" fill="currentColor">']
    for slot, name in enumerate(("equal weights", "tokens 3 and 8 weigh more")):
        left = 44 + 340 * slot
        parts.append(f'<text x="{left}" y="20">slot {slot}: {name}</text>')
        parts.append(f'<text x="{left}" y="50" font-size="12" fill-opacity="0.75">share of each token →</text>')
        parts.append(f'<text x="{left + T * CELL + 8}" y="50" font-size="12" fill-opacity="0.75">new</text>')
        for t in range(T):
            y = TOP + t * CELL
            for j in range(t + 1):
                box = f'x="{left + j * CELL}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
                parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="{0.05 + 0.95 * held[t, slot, j] ** 0.5:.3f}"/>')
            bar = f'x="{left + T * CELL + 8}" y="{y + 4}" width="{44 * write[t, slot]:.1f}" height="{CELL - 10}"'
            parts.append(f'<rect {bar} style="fill: var(--fast)" fill-opacity="0.8"/>')
            if not slot:
                parts.append(f'<text x="{left - 10}" y="{y + 14}" text-anchor="end" font-size="11">{t}</text>')
    note = "every row adds up to one; a token takes the share “new”, and what was there before shrinks by as much"
    parts.append(f'<text x="44" y="{TOP + T * CELL + 28}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
