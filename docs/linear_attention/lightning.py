"""Draw `lightning.svg`: three blocks, what is computed within each, and what the state hands on."""

from pathlib import Path

BLOCKS, SIZE, CELL, LEFT, TOP, LAM = 3, 4, 21, 60, 40, 0.8


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 372" font-size="13" fill="currentColor">']
    total, side = BLOCKS * SIZE, BLOCKS * SIZE * CELL
    parts.append(f'<text x="{LEFT}" y="26" font-size="12">keys →</text>')
    for i in range(total):
        for j in range(i + 1):
            within = i // SIZE == j // SIZE
            color = "var(--spec)" if within else "currentColor"
            strength = 0.15 + 0.8 * LAM ** (i - j) if within else 0.1
            box = f'x="{LEFT + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
            parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{strength:.3f}"/>')
    for b in range(BLOCKS):
        at, width = b * SIZE * CELL, SIZE * CELL
        parts.append(f'<text x="{LEFT - 10}" y="{TOP + at + width / 2 + 4}" text-anchor="end" font-size="12">block {b}</text>')
        frame = f'x="{LEFT + at - 1}" y="{TOP + at - 1}" width="{width}" height="{width}"'
        parts.append(f'<rect {frame} fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    right, bottom = LEFT + side + 40, TOP + side + 34
    legend = (
        ("var(--spec)", 0.8, "within a block", "scores times powers of λ"),
        ("currentColor", 0.12, "before it", "one product with the state"),
    )
    for n, (color, strength, name, what) in enumerate(legend):
        y = TOP + 40 + 60 * n
        parts.append(f'<rect x="{right}" y="{y}" width="18" height="18" rx="2" style="fill: {color}" fill-opacity="{strength}"/>')
        parts.append(f'<text x="{right + 28}" y="{y + 13}">{name}</text>')
        parts.append(f'<text x="{right + 28}" y="{y + 30}" font-size="12" fill-opacity="0.75">{what}</text>')
    for b in range(BLOCKS + 1):
        x = LEFT + b * SIZE * CELL
        if b:
            parts.append(f'<path d="M{x - SIZE * CELL + 15} {bottom}H{x - 18}m-5 -4l6 4l-6 4" fill="none" stroke="currentColor"/>')
        parts.append(f'<circle cx="{x}" cy="{bottom}" r="14" fill="none" style="stroke: var(--fast)" stroke-width="1.5"/>')
        parts.append(f'<text x="{x}" y="{bottom + 4}" text-anchor="middle" font-size="12">S{"₀₁₂₃"[b]}</text>')
    note = "each arrow: fade by λᴮ, add the block's keys and values"
    parts.append(f'<text x="{right - 10}" y="{bottom + 4}" font-size="12" fill-opacity="0.75">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
