"""Draw `deltaformer.svg`: bits, and what attention and DeltaFormer make of them when every token asks the one before."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import deltaformer

BITS = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0], dtype=float)
CELL, LEFT, TOP = 38, 132, 44


def main() -> None:
    T = len(BITS)
    width, one, k = LEFT + T * CELL + 10, np.ones((T, 1)), 1000.0 * np.arange(T)[:, None]
    plain, _ = deltaformer.parallel(one, k, BITS[:, None], one, np.zeros(T))
    output, (_, stored) = deltaformer.parallel(one, k, BITS[:, None], one, 2 * BITS - 1)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 250" font-size="13" fill="currentColor">']
    parts.append('<text x="10" y="22">every token asks the one before it, and reads itself</text>')
    rows = (("values: bits", BITS, "--spec"), ("strengths", 2 * BITS - 1, None), ("attention", plain[:, 0], "--spec"))
    for n, (name, values, color) in enumerate((*rows, ("DeltaFormer", output[:, 0], "--fast"))):
        y = TOP + 44 * n
        parts.append(f'<text x="10" y="{y + 20}">{name}</text>')
        for t, x in enumerate(values):
            number, middle = f"{x:g}".replace("-", "−"), LEFT + t * CELL + CELL / 2 - 2
            box = f'x="{LEFT + t * CELL}" y="{y}" width="{CELL - 4}" height="30" rx="3"'
            if color:
                parts.append(f'<rect {box} style="fill: var({color})" fill-opacity="{0.12 + 0.55 * x:.2f}"/>')
            parts.append(f'<text x="{middle}" y="{y + 20}" text-anchor="middle">{number}</text>')
    assert np.array_equal(output, stored) and np.array_equal(output[:, 0], np.cumsum(BITS) % 2)
    note = "attention gives back the bit that it reads; what is stored after the difference is taken is the parity of all bits so far"
    parts.append(f'<text x="10" y="{TOP + 4 * 44 + 18}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
