"""Draw `suffix_decoding.svg`: what followed a match in earlier outputs, the worth of each continuation, and the tree that is drafted."""

from pathlib import Path

from twofold.spec.speculative import suffix_decoding

PAST = ["so the cat sat down", "and the cat sat still", "yet the cat ran", "the cat sat down", "see the dog sleep"]
MATCH, NODES, EVERYTHING = "the", 4, 100


def placed(parents: list[int]) -> dict[int, tuple[float, float]]:
    """Where each node stands: its depth to the right, leaves below one another, parents beside the middle of their children."""
    depths, places = [0], {}
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    rows = 0

    def place(node: int) -> float:
        nonlocal rows
        children = [place(child) for child, parent in enumerate(parents) if parent == node]
        if not children:
            rows += 1
        y = sum(children) / len(children) if children else float(rows)
        places[node] = 60 + 140 * depths[node], 8 + 46 * y
        return y

    place(0)
    return places


def main() -> None:
    words = sorted({word for line in PAST for word in line.split()})
    tokens = [token for line in PAST for token in [*map(words.index, line.split()), -1]]
    trie = suffix_decoding.extend(None, tokens)
    ids, parents, worth = suffix_decoding.draft([trie], [words.index(MATCH)], EVERYTHING, 1)  # the greedy order: its start is the draft
    places = placed(parents)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 260" font-size="14" fill="currentColor">']
    for node in range(1, len(ids)):
        (x0, y0), (x, y), drafted = places[parents[node]], places[node], node <= NODES
        look = "stroke: var(--fast); stroke-width: 2.5" if drafted else "stroke: currentColor; stroke-opacity: 0.5; stroke-dasharray: 5 4"
        parts.append(f'<path d="M{x0 + 38} {y0}C{x0 + 60} {y0} {x - 60} {y} {x - 38} {y}" fill="none" style="{look}"/>')
        parts.append(f'<rect x="{x - 38}" y="{y - 16}" width="76" height="32" rx="5" fill="none" style="{look}"/>')
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{words[ids[node]]}</text>')
        parts.append(f'<text x="{x}" y="{y + 12}" text-anchor="middle" font-size="10" fill-opacity="0.75">{worth[node]}</text>')
    x, y = places[0]
    look = "stroke: var(--spec); stroke-width: 2.5"
    parts.append(f'<rect x="{x - 38}" y="{y - 16}" width="76" height="32" rx="5" fill="none" style="{look}"/>')
    parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{MATCH}</text>')
    parts.append(f'<text x="{x}" y="{y + 12}" text-anchor="middle" font-size="10" fill-opacity="0.75">5 times</text>')
    score = sum(worth[1 : NODES + 1])
    said = f"four nodes of greatest D, Σ D = {score}"
    parts.append(f'<text x="380" y="245" text-anchor="middle" font-size="12">{said}</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
