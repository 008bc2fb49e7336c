"""Draw `slstm.svg`: one cell that keeps the parity of a text, and the gates with which it does."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import slstm

BITS = [0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0]
LEFT, STEP, MIDDLE, SWING, BIG = 96, 27, 128, 34, 4000.0


def main() -> None:
    one = np.array([[1.0], *([float(bit)] for bit in BITS)])  # a first token that writes a one
    z = np.where(np.arange(len(one)) == 0, 2 * BIG, 0.0)[:, None]
    R = np.array([[[-BIG]], [[0.0]], [[0.0]], [[0.0]]])
    h = slstm.recurrent(z, BIG * (one - 1), BIG * (1 - 2 * one), 0 * z + BIG, R)[0][1:, 0]

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 222" font-size="12" fill="currentColor">']
    label = lambda y, text: parts.append(f'<text x="{LEFT - 14}" y="{y}" text-anchor="end">{text}</text>')
    label(41, "token")
    for t, bit in enumerate(BITS):
        color = "var(--fast)" if bit else "currentColor"
        box = f'x="{LEFT + t * STEP + 3}" y="26" width="{STEP - 6}" height="{STEP - 6}" rx="3"'
        parts.append(f'<rect {box} style="fill: {color}; stroke: {color}" fill-opacity="{0.6 if bit else 0.05}" stroke-opacity="0.5"/>')
        parts.append(f'<text x="{LEFT + (t + 0.5) * STEP}" y="41" text-anchor="middle">{bit}</text>')
    label(MIDDLE + 4, "output")
    for value in (1, -1):
        parts.append(f'<text x="{LEFT - 14}" y="{MIDDLE + 4 - value * SWING}" text-anchor="end">{value}</text>'.replace("-1<", "−1<"))
    right = LEFT + len(BITS) * STEP
    parts.append(f'<path d="M{LEFT} {MIDDLE}H{right}" stroke="currentColor" stroke-opacity="0.4" stroke-dasharray="2 4"/>')
    corners = [f"{LEFT + (t + n) * STEP:.1f},{MIDDLE - SWING * y:.1f}" for t, y in enumerate(h) for n in (0, 1)]
    parts.append(f'<polyline points="{" ".join(corners)}" fill="none" style="stroke: var(--spec)" stroke-width="2.6"/>')
    parts.append(f'<text x="{LEFT}" y="200">a one: forget gate shut, input gate open, candidate = minus the last output</text>')
    parts.append(f'<text x="{LEFT}" y="218">a zero: forget gate open, input gate shut</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
