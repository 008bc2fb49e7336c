"""Draw `grouped_tied.svg`: what becomes of a state, and what a cache holds."""

from pathlib import Path

ROW, LEFT, WIDTH = 44, 150, 240


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 212" font-size="13" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="18">one key head</text><text x="470" y="18">what a token leaves in the cache</text>')

    def box(x: float, y: float, width: float, text: str, color: str) -> None:
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.25"'
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="28" rx="3" {look}/>')
        parts.append(f'<text x="{x + width / 2}" y="{y + 19}" text-anchor="middle" font-size="12">{text}</text>')

    spec, fast, half = "var(--spec)", "var(--fast)", WIDTH / 2
    for line, (name, first, last, color) in enumerate((
        ("value v", "x, first half", "x, second half", spec),
        ("key k", "x, first half", "kᴿ, rotated", fast),
        ("query q", "plain", "rotated", "currentColor"),
    )):  # fmt: skip
        top = 32 + line * (ROW + 8)
        parts.append(f'<text x="{LEFT - 14}" y="{top + 19}" text-anchor="end">{name}</text>')
        box(LEFT, top, half, first, spec if line < 2 else color)
        box(LEFT + half, top, half, last, color)
    for x in (LEFT + half / 2, LEFT + 3 * half / 2):
        parts.append(f'<line x1="{x}" y1="112" x2="{x}" y2="136" stroke="currentColor" stroke-dasharray="3 3"/>')
    parts.append(f'<line x1="{LEFT + half / 2}" y1="60" x2="{LEFT + half / 2}" y2="84" style="stroke: {spec}" stroke-width="3"/>')
    parts.append(f'<text x="{LEFT + half / 2 + 8}" y="77" font-size="12">the same numbers</text>')
    for line, text in enumerate(("x of key head 0", "x of key head 1", "…")):
        box(470, 32 + line * 34, 150, text, spec)
    box(470, 32 + 3 * 34, 75, "kᴿ", fast)
    parts.append('<text x="554" y="153" font-size="12">once, for all heads</text>')
    parts.append(f'<text x="{LEFT}" y="200" font-size="12">half of a query meets the value itself, half the rotated key</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
