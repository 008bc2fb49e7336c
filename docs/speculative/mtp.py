"""Draw `mtp.svg`: the states of the main model and of two depths at five places, what each is told, and where labels end."""

from pathlib import Path

T, DEPTHS, LEFT, TOP, WIDE, HIGH = 5, 2, 120, 196, 88, 76
SUB = "₀₁₂₃₄₅₆₇"


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 258" font-size="13" fill="currentColor">']
    for k in range(DEPTHS + 1):
        y, side = TOP - HIGH * k, "--fast" if k else "--spec"
        label = f"depth {k}" if k else "main model"
        parts.append(f'<text x="10" y="{y + 20}" font-size="12" fill-opacity="0.75">{label}</text>')
        for i in range(T + 1 - max(k, 1)):
            x, labeled = LEFT + WIDE * i, i < T - k
            dash = "" if labeled else ' stroke-dasharray="4 4"'
            box = f'<rect x="{x}" y="{y}" width="56" height="30" rx="4" fill="none" stroke-width="1.5"{dash}'
            parts.append(f'{box} style="stroke: var({side})"/>')
            parts.append(f'<text x="{x + 28}" y="{y + 20}" text-anchor="middle">→ t{SUB[i + k + 1]}</text>')
            if k:
                parts.append(f'<path d="M{x + 28} {y + HIGH}V{y + 30}" stroke="currentColor" stroke-opacity="0.75"/>')
                parts.append(f'<text x="{x + 33}" y="{y + 54}" font-size="12" style="fill: var(--fast)">+ t{SUB[i + k]}</text>')
            else:
                parts.append(f'<text x="{x + 28}" y="{y + 50}" text-anchor="middle" font-size="12" fill-opacity="0.75">t{SUB[i]}</text>')
    parts.append('<text x="10" y="246" font-size="12" fill-opacity="0.75">text</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
