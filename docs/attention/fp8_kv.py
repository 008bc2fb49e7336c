"""Draw `fp8_kv.svg`: how far a number moves, in parts of itself, in e4m3 and in 8-bit integers under the same largest number."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import fp8_kv

LEFT, TOP, STEP, BOTTOM, SPAN = 62, 24, 34, 300, 18  # pixels per power of two across; powers of two shown
COLORS = {"e4m3": "var(--spec)", "int8": "var(--fast)"}


def place(x: float, error: float) -> str:
    """Logarithms in base 2: x from -SPAN to 0, error from -10 to 0."""
    return f"{LEFT + (x + SPAN) * STEP:.1f},{TOP + -error * (BOTTOM - TOP) / 10:.1f}"


def main() -> None:
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + SPAN * STEP + 20} 350" font-size="12" fill="currentColor">']
    for error in range(-10, 1, 2):
        x, y = place(-SPAN, error).split(",")
        label = "1" if error == 0 else f"1/{2**-error}"
        parts.append(f'<path d="M{x} {y}h{SPAN * STEP}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4}" text-anchor="end">{label}</text>')
    for x in range(3 - SPAN, 1, 3):
        label = "1" if x == 0 else f"1/{2**-x}"
        parts.append(f'<text x="{LEFT + (x + SPAN) * STEP}" y="{BOTTOM + 18}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{LEFT + SPAN * STEP / 2}" y="340" text-anchor="middle">a number, in parts of the largest of its group</text>')
    for number, color in COLORS.items():
        at = np.arange(-SPAN, 0.01, 0.125)
        x = 2.0 ** np.minimum(at[:, None] + np.linspace(-0.5, 0.5, 257), 0)  # an octave around each place: its worst number
        codes, scale = fp8_kv.quantize(np.append(x.ravel(), 1.0)[:, None], None, number)
        moved = np.abs(codes[:-1] * scale - x.reshape(-1, 1)).reshape(x.shape) / x
        points = " ".join(place(*pair) for pair in zip(at, np.log2(np.maximum(moved.max(1), 2.0**-10)), strict=True))
        parts.append(f'<polyline points="{points}" fill="none" style="stroke: {color}" stroke-width="2"/>')
    for x, y, number in ((-12.3, -4.7, "e4m3"), (-3.2, -7.6, "int8")):
        left, top = place(x, y).split(",")
        parts.append(f'<text x="{left}" y="{top}" style="fill: {COLORS[number]}" font-weight="bold">{number}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
