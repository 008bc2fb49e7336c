"""Draw `prompt_lookup.svg`: a context, its end, where that end stood before, and what is drafted."""

from pathlib import Path

from twofold.spec.speculative import prompt_lookup

WORDS, N, GAMMA = ["the", "cat", "sat", "on", "the", "mat", ".", "again", "the", "cat"], 2, 4
WIDTH, STEP, TOP = 52, 58, 60


def box(i: float, y: float, word: str, style: str) -> str:
    x = 14 + STEP * i
    text = f'<text x="{x + WIDTH / 2}" y="{y + 21}" text-anchor="middle">{word}</text>'
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="32" rx="4" fill="none" style="{style}"/>{text}'


def main() -> None:
    length = len(WORDS)
    drafted = prompt_lookup.draft(WORDS, n_max=3, n_min=1, gamma=GAMMA)
    start = next(j for j in range(length) if WORDS[j : j + N] == WORDS[length - N :])
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 210" font-size="14" fill="currentColor">']
    for i, word in enumerate(WORDS):
        matched = start <= i < start + N or i >= length - N
        style = "stroke: var(--spec); stroke-width: 2.5" if matched else "stroke: currentColor; stroke-opacity: 0.5"
        parts.append(box(i, TOP, word, style))
    left, right = (14 + STEP * (i + N / 2) - 3 for i in (start, length - N))
    parts.append(f'<path d="M{right} {TOP - 6}C{right - 90} 8 {left + 90} 8 {left} {TOP - 6}" fill="none" stroke="currentColor"/>')
    parts.append(f'<path d="M{left} {TOP - 4}l2 -9l7 5z"/>')
    parts.append(f'<text x="{(left + right) / 2}" y="16" text-anchor="middle" font-size="12">where did these stand before?</text>')
    first = start + N
    for i, word in enumerate(drafted):
        parts.append(box(first + i, 152, word, "stroke: var(--fast); stroke-width: 2.5"))
        x = 14 + STEP * (first + i) + WIDTH / 2
        parts.append(f'<path d="M{x} {TOP + 36}V146" stroke="currentColor" stroke-opacity="0.5"/>')
    x = 14 + STEP * (first + len(drafted)) + 8
    parts.append(f'<text x="{x}" y="173" font-size="12">drafted to follow “{" ".join(WORDS[length - N :])}”</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
