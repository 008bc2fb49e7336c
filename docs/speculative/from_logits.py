"""Draw `from_logits.svg`: which rows of logits are read, what is kept of each, and the two rows that are made in full."""

from pathlib import Path

GAMMA, KEPT = 4, 2
WIDTH, HEIGHT, TOP = 190, 22, 56


def rows(x: int, count: int, made: int, title: str) -> str:
    parts = [f'<text x="{x}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    for i in range(count):
        y = TOP + 30 * i
        parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" style="fill: var(--spec)" fill-opacity="0.3"/>')
        if i == made:
            frame = 'fill="none" stroke-width="3" style="stroke: var(--fast)"'
            parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" {frame}/>')
        if i < GAMMA:
            parts.append(f'<circle cx="{x + 30 + 37 * ((3 * i + 1) % 5)}" cy="{y + 11}" r="4.5"/>')
        parts.append(f'<text x="{x + WIDTH + 8}" y="{y + 16}" font-size="12" fill-opacity="0.8">T m c ℓ Z</text>')
    return "".join(parts)


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="13" fill="currentColor">']
    parts.append(rows(20, GAMMA + 1, KEPT, "target logits, γ + 1 rows"))
    parts.append(rows(330, GAMMA, KEPT, "draft logits, γ rows"))
    y = 226
    for n, (mark, text) in enumerate((
        ('<rect x="20" y="{y}" width="18" height="14" style="fill: var(--spec)" fill-opacity="0.3"/>',
         "read once: five numbers tell the law of the row"),
        ('<circle cx="29" cy="{c}" r="4.5"/>', "the drafted token's logit: p(x), q(x) and a coin decide"),
        ('<rect x="20" y="{y}" width="18" height="14" fill="none" stroke-width="3" style="stroke: var(--fast)"/>',
         "the row where the round ends: made in full, and drawn from"),
    )):  # fmt: skip
        parts.append(mark.format(y=y + 26 * n, c=y + 7 + 26 * n) + f'<text x="50" y="{y + 12 + 26 * n}">{text}</text>')
    parts.append("</svg>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
