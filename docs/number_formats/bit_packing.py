"""Draw `bit_packing.svg`: codes of 4 and of 3 bits along the stream, and where the words are cut."""

from pathlib import Path

BIT = 9  # pixels


def stream(y: int, bits: int, count: int) -> list[str]:
    parts = [f'<text x="10" y="{y - 14}">{bits} bits</text>']
    for i in range(count):
        left, right = i * bits, (i + 1) * bits
        straddles = left // 32 != (right - 1) // 32
        style = "var(--fast)" if straddles else "var(--spec)"
        x, width = 10 + BIT * left, BIT * bits
        opacity = 0.35 if i % 2 else 0.7
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="26" style="fill: {style}" fill-opacity="{opacity}"/>')
        parts.append(f'<text x="{x + width / 2:g}" y="{y + 18}" text-anchor="middle" font-size="12">{i}</text>')
    for word in range(-(-count * bits // 32) + 1):
        x = 10 + BIT * 32 * word
        if x <= 10 + BIT * count * bits:
            parts.append(f'<path d="M{x} {y - 8}V{y + 50}" stroke="currentColor"/>')
            parts.append(f'<text x="{x + 5}" y="{y + 46}" font-size="12" fill-opacity="0.75">word {word}, bit 0</text>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 210" font-size="14" fill="currentColor">']
    parts += stream(32, 4, 18) + stream(134, 3, 24)
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
