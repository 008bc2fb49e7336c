"""Draw `blockwise.svg`: a block of guesses, the model's own choices in one pass, what is kept, and where the next block comes from."""

from pathlib import Path

LEFT, STEP = 150, 54
TEXT, GUESSES, OWN, NEXT = ["the", "cat", "sat"], ["on", "a", "red"], ["on", "a", "big", "·"], ["dog", "ran", "."]
OUTLINE, PAPER = "fill: none; stroke: currentColor; stroke-opacity: 0.6", "var(--md-default-bg-color, #fff)"


def middle(column: int) -> float:
    return LEFT + STEP * column + 24


def cells(first: int, y: int, words: list[str], style: str, ink: str = "currentColor") -> list[str]:
    return [
        f'<rect x="{middle(column) - 24}" y="{y}" width="48" height="34" rx="4" style="{style}"/>'
        f'<text x="{middle(column)}" y="{y + 22}" text-anchor="middle" style="fill: {ink}">{word}</text>'
        for column, word in enumerate(words, first)
    ]


def note(x: float, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="12" fill-opacity="0.75">{text}</text>'


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 236" font-size="14" fill="currentColor">']
    parts += [note(12, 58, "text and guesses"), note(12, 122, "the model's own"), note(12, 202, "text and guesses")]
    parts += cells(0, 36, TEXT, OUTLINE) + cells(3, 36, GUESSES, "fill: var(--fast)", PAPER)
    parts += cells(3, 100, OWN, "fill: none; stroke-width: 1.5; stroke: var(--spec)")
    parts += [f'<text x="{middle(column)}" y="90" text-anchor="middle">{sign}</text>' for column, sign in enumerate("==≠", 3)]
    parts += cells(0, 180, TEXT + GUESSES[:2], OUTLINE) + cells(5, 180, OWN[2:3], "fill: var(--spec)", PAPER)
    parts += cells(6, 180, NEXT, "fill: var(--fast)", PAPER)
    parts += [note(middle(3) - 24, 26, "heads 2, 3, 4"), note(middle(7) - 18, 122, "head 1, one pass")]
    parts += [note(middle(6) - 24, 170, "heads 2, 3, 4 at the same position"), note(middle(5) - 18, 230, "head 1")]
    parts.append(f'<path d="M{middle(5)} 136V176" fill="none" stroke="currentColor" stroke-opacity="0.6"/></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
