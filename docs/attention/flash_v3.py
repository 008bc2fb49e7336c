"""Draw `flash_v3.svg`: what runs at the same time, and the weights that survive in e4m3 when a sink comes first or last."""

from pathlib import Path

ROWS = {"tensor cores": 40, "exponentials": 84}


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 230" font-size="13" fill="currentColor">']
    for name, y in ROWS.items():
        parts.append(f'<text x="8" y="{y + 20}">{name}</text>')
    for at, width, row, text, color in (
        (110, 60, "tensor cores", "q k₁", "spec"), (170, 80, "exponentials", "p₁", "fast"),
        (170, 60, "tensor cores", "q k₂", "spec"), (250, 60, "tensor cores", "p₁ v₁", "spec"), (250, 80, "exponentials", "p₂", "fast"),
        (310, 60, "tensor cores", "q k₃", "spec"), (370, 60, "tensor cores", "p₂ v₂", "spec"), (370, 80, "exponentials", "p₃", "fast"),
        (450, 60, "tensor cores", "p₃ v₃", "spec"),
    ):  # fmt: skip
        box = f'x="{at + 1}" y="{ROWS[row]}" width="{width - 2}" height="32" rx="3"'
        parts.append(f'<rect {box} style="fill: var(--{color})" fill-opacity="0.25" stroke="currentColor" stroke-opacity="0.6"/>')
        parts.append(f'<text x="{at + width / 2}" y="{ROWS[row] + 21}" text-anchor="middle">{text}</text>')
    parts.append('<text x="320" y="24" text-anchor="middle">the scores of a tile do not wait for the values of the one before</text>')
    for x, order, kept in ((110, "sink first", 0), (390, "sink last", 1)):
        parts.append(f'<text x="{x + 80}" y="148" text-anchor="middle">{order}</text>')
        for i in range(8):
            sink = i == (7 if kept else 0)
            height = 40 if sink else 8 * kept
            box = f'x="{x + 20 * i}" y="{204 - height}" width="16" height="{height}"'
            parts.append(f'<rect {box} style="fill: var(--{"fast" if sink else "spec"})" fill-opacity="0.8"/>')
        parts.append(f'<path d="M{x - 4} 204h164" stroke="currentColor"/>')
        text = "all others are kept" if kept else "all others round to 0"
        parts.append(f'<text x="{x + 80}" y="222" text-anchor="middle" font-size="12">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
