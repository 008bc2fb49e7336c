"""Draw `ngram_lm.svg`: how the law of the next letter sharpens from no context to two letters, in a line of text."""

from pathlib import Path

from twofold.spec.speculative import ngram_lm

TEXT, LETTERS = "the cat sat on the mat and the hat that the rat had", "acehmnorst_"


def main() -> None:
    ids = {letter: i for i, letter in enumerate(sorted(set(TEXT)))}
    counted = ngram_lm.fit([ids[c] for c in TEXT], 3, len(ids))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 235" font-size="13" fill="currentColor">']
    for n, context in enumerate(["", "t", "at"]):
        row = ngram_lm.probs(counted, [ids[c] for c in context])
        left = 14 + 212 * n
        for i, letter in enumerate(LETTERS):
            x, height = left + 17 * i, 150 * row[ids[letter.replace("_", " ")]]
            parts.append(f'<rect x="{x}" y="{170 - height:.1f}" width="13" height="{height:.1f}" style="fill: var(--spec)"/>')
            parts.append(f'<text x="{x + 6.5}" y="187" text-anchor="middle" font-size="11">{letter.replace("_", "␣")}</text>')
        title = f"after “{context}”" if context else "after nothing"
        parts.append(f'<path d="M{left} 170h187" stroke="currentColor"/><text x="{left + 93}" y="218" text-anchor="middle">{title}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
