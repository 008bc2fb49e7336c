"""Draw `tli.svg`: two vocabularies, the tokens that they share, and the drafter's law before and after it is confined to these."""

from pathlib import Path

OWN = [("the", 30), (" c", 15), ("at", 20), (" dog", 35)]  # the drafter's tokens and their probabilities in percent
TARGET = [("the", 0), (" cat", None), ("at", 2), (" dog", 3), ("ing", None)]  # the target's, and where the drafter has them
LEFT, STEP, SCALE = 130, 92, 1.1


def bars(y: float, words: list[tuple[str, float]], style: str) -> list[str]:
    parts = []
    for i, (word, percent) in enumerate(words):
        x, height = LEFT + STEP * i, SCALE * percent
        middle = f'<text x="{x + 30}" text-anchor="middle"'
        parts.append(f'<rect x="{x}" y="{y - height:.1f}" width="60" height="{height:.1f}" style="{style}"/>')
        parts.append(f'{middle} y="{y + 18}" font-family="monospace">{word.replace(" ", "␣")}</text>')
        parts.append(f'{middle} y="{y - height - 6:.1f}" font-size="12" fill-opacity="0.75">{round(percent)} %</text>')
    return parts


def main() -> None:
    mass = sum(OWN[i][1] for _, i in TARGET if i is not None)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="14" fill="currentColor">']
    parts += ['<text x="10" y="95">drafter, q</text>', '<text x="10" y="260">in the</text><text x="10" y="278">target\'s ids, q′</text>']
    parts += bars(90, OWN, "fill: var(--fast)")
    for v, (_, i) in enumerate(TARGET):
        if i is not None:
            parts.append(f'<path d="M{LEFT + STEP * i + 30} 116L{LEFT + STEP * v + 30} 178" stroke="currentColor" stroke-opacity="0.5"/>')
    parts += bars(255, [(word, 0 if i is None else 100 * OWN[i][1] / mass) for word, i in TARGET], "fill: var(--spec)")
    parts.append(f'<path d="M{LEFT - 10} 90H{LEFT + STEP * 5}M{LEFT - 10} 255H{LEFT + STEP * 5}" stroke="currentColor"/>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
