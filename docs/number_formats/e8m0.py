"""Draw `e8m0.svg`: for each mode, which scale a block of e2m1 gets as its maximum grows from 1 to 16, and where the maximum saturates."""

from pathlib import Path

import numpy as np

from twofold.spec.number_formats import e8m0

LEFT, OCTAVE, FORMAT = 90, 150, "e2m1"  # pixels


def place(amax: float) -> float:
    return LEFT + OCTAVE * float(np.log2(amax))


def line(y: int, mode: str) -> list[str]:
    amax = 2.0 ** (np.arange(4 * 256) / 256)
    amax = np.unique(np.concatenate([amax, np.arange(16, 256) / 16]))
    codes = e8m0.block_scale(amax, FORMAT, mode)
    parts = [f'<text x="10" y="{y + 20}">{mode}</text>']
    for code in np.unique(codes):
        low, high = place(amax[codes == code][0]), place(min(np.append(amax[codes > code], 16)))
        opacity = 0.25 if code % 2 else 0.5
        parts.append(
            f'<rect x="{low:.1f}" y="{y}" width="{high - low:.1f}" height="30" style="fill: var(--spec)" fill-opacity="{opacity}"/>'
        )
        top = place(6 * 2.0 ** (code - 127))
        if top < high - 0.5:
            parts.append(f'<rect x="{top:.1f}" y="{y}" width="{high - top:.1f}" height="30" style="fill: var(--fast)" fill-opacity="0.6"/>')
        if high - low > 40:
            number = f"1/{2 ** (127 - code)}" if code < 127 else f"{2 ** (code - 127)}"
            parts.append(f'<text x="{(low + min(high, max(top, low))) / 2:.1f}" y="{y + 20}" text-anchor="middle">{number}</text>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 220" font-size="14" fill="currentColor">']
    for amax in (1, 1.5, 2, 3, 4, 6, 8, 12, 16):
        parts.append(f'<text x="{place(amax):.1f}" y="20" text-anchor="middle" font-size="12" fill-opacity="0.75">{amax}</text>')
    for i, mode in enumerate(("floor", "even", "rceil", "ceil")):
        parts += line(34 + 45 * i, mode)
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
