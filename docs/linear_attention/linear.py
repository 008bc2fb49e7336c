"""Draw `linear.svg`: one product, bracketed in two ways."""

from pathlib import Path

T, K = 130, 34  # heights and widths of the drawn matrices


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 330" font-size="13" fill="currentColor">']

    def box(x: float, y: float, width: float, height: float, text: str, color: str) -> None:
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.25"'
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" {look}/>')
        parts.append(f'<text x="{x + width / 2}" y="{y + height / 2 + 5}" text-anchor="middle">{text}</text>')

    def sign(x: float, y: float, text: str) -> None:
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" font-size="17">{text}</text>')

    spec, fast = "var(--spec)", "var(--fast)"
    parts.append('<text x="20" y="20">first all weights: T² of them</text>')
    box(20, 36, K, T, "q", spec)
    box(62, 84, T, K, "kᵀ", spec)
    box(206, 36, K, T, "v", spec)
    sign(268, 106, "=")
    box(290, 36, T, T, "weights", fast)
    box(428, 36, K, T, "v", spec)
    sign(490, 106, "=")
    box(512, 36, K, T, "o", "currentColor")
    parts.append('<text x="20" y="196">first what all queries ask of: K × V numbers</text>')
    box(20, 208, K, T * 0.8, "q", spec)
    box(62, 243, T * 0.8, K, "kᵀ", spec)
    box(174, 208, K, T * 0.8, "v", spec)
    sign(268, 266, "=")
    box(290, 208, K, T * 0.8, "q", spec)
    box(332, 243, K, K, "S", fast)
    sign(490, 266, "=")
    box(512, 208, K, T * 0.8, "o", "currentColor")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
