"""Draw `ttt.svg`: which training examples have reached the weights that answer a token, and at which weights their gradients were taken."""

from pathlib import Path

BATCHES, SIZE, CELL, LEFT, TOP = 3, 4, 21, 96, 48


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 372" font-size="13" fill="currentColor">']
    total, side = BATCHES * SIZE, BATCHES * SIZE * CELL
    parts.append(f'<text x="{LEFT}" y="18" font-size="12">training examples (k, v) →</text>')
    for i in range(total):
        for j in range(i + 1):
            within = i // SIZE == j // SIZE
            color, strength = ("var(--spec)", 0.75) if within else ("var(--fast)", 0.25)
            box = f'x="{LEFT + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
            parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{strength}"/>')
    for b in range(BATCHES):
        at, width = b * SIZE * CELL, SIZE * CELL
        rows = f"answers {b * SIZE}–{b * SIZE + SIZE - 1}"
        parts.append(f'<text x="{LEFT - 10}" y="{TOP + at + width / 2 + 4}" text-anchor="end" font-size="12">{rows}</text>')
        text = f"gradients at W{'₀₁₂'[b]}"
        parts.append(f'<text x="{LEFT + at + width / 2}" y="{TOP - 10}" text-anchor="middle" font-size="11">{text}</text>')
        frame = f'x="{LEFT + at - 1}" y="{TOP + at - 1}" width="{width}" height="{width}"'
        parts.append(f'<rect {frame} fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    right, bottom = LEFT + side + 36, TOP + side + 34
    legend = (("var(--spec)", 0.75, "the batch's own steps so far", "a triangle: no example behind the token"),
              ("var(--fast)", 0.25, "already in W", "steps of earlier batches, summed up"))  # fmt: skip
    for n, (color, strength, name, what) in enumerate(legend):
        y = TOP + 40 + 60 * n
        parts.append(f'<rect x="{right}" y="{y}" width="18" height="18" rx="2" style="fill: {color}" fill-opacity="{strength}"/>')
        parts.append(f'<text x="{right + 28}" y="{y + 13}">{name}</text>')
        parts.append(f'<text x="{right + 28}" y="{y + 30}" font-size="12" fill-opacity="0.75">{what}</text>')
    for b in range(BATCHES + 1):
        x = LEFT + b * SIZE * CELL
        if b:
            parts.append(f'<path d="M{x - SIZE * CELL + 16} {bottom}H{x - 19}m-5 -4l6 4l-6 4" fill="none" stroke="currentColor"/>')
        parts.append(f'<circle cx="{x}" cy="{bottom}" r="15" fill="none" style="stroke: var(--fast)" stroke-width="1.5"/>')
        parts.append(f'<text x="{x}" y="{bottom + 4}" text-anchor="middle" font-size="12">W{"₀₁₂₃"[b]}</text>')
    note = "each arrow: all steps of a mini-batch"
    parts.append(f'<text x="{right - 10}" y="{bottom + 4}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
