"""Draw `medusa.svg`: two heads beside the LM head, their likeliest tokens, and the best tree of six nodes among all combinations."""

from itertools import product
from pathlib import Path

from twofold.spec.speculative import medusa

ACCURACY = [[0.6, 0.2, 0.1], [0.5, 0.2, 0.1]]
WORDS = [["cat", "dog", "old"], ["sat", "is", "was"]]
HEADS = ["LM head", "head 0", "head 1"]
LEFT, TOP = [250, 400, 540], 30


def main() -> None:
    chosen = set(medusa.choices(ACCURACY, 6))
    place = {(): (LEFT[0], TOP + 4.5 * 22)}
    place |= {node: (LEFT[1], TOP + (3 * node[0] + 1.5) * 22) for node in product(range(3))}
    place |= {node: (LEFT[2], TOP + (3 * node[0] + node[1] + 0.5) * 22) for node in product(range(3), repeat=2)}
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 262" font-size="13" fill="currentColor">']
    parts.append('<rect x="12" y="106" width="34" height="46" rx="4" fill="none" stroke="currentColor"/>')
    parts.append('<text x="29" y="134" text-anchor="middle">h</text>')
    for n, head in enumerate(HEADS):
        y, side = 50 + 64 * n, "--fast" if n else "--spec"
        parts.append(f'<path d="M46 129L92 {y + 15}" stroke="currentColor" stroke-opacity="0.6"/>')
        parts.append(f'<rect x="92" y="{y}" width="86" height="30" rx="4" fill="none" stroke-width="1.5" style="stroke: var({side})"/>')
        parts.append(f'<text x="135" y="{y + 20}" text-anchor="middle">{head}</text>')
    for node, (x, y) in place.items():
        faint = "" if not node or node in chosen else ' opacity="0.35"'
        if node:
            up, high = place[node[:-1]]
            parts.append(f'<path d="M{up + 32} {high:g}L{x - 28} {y:g}" stroke="currentColor"{faint}/>')
        word, side = (WORDS[len(node) - 1][node[-1]], "--fast") if node else ("the", "--spec")
        weight = ' font-weight="700"' if not faint else ""
        parts.append(f'<text x="{x}" y="{y + 4:g}" text-anchor="middle"{weight}{faint} style="fill: var({side})">{word}</text>')
        if node in chosen:
            value = f"{worth_of(node):.2f}".removeprefix("0")
            right, below = (32, 4) if len(node) == 2 else (-10, 19)  # not across the lines to the children
            parts.append(f'<text x="{x + right}" y="{y + below:g}" font-size="11" fill-opacity="0.75">{value}</text>')
    for x, label in zip(LEFT, ("next token", "one after", "two after"), strict=True):
        parts.append(f'<text x="{x}" y="252" text-anchor="middle" font-size="12" fill-opacity="0.75">{label}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


def worth_of(node: tuple[int, ...]) -> float:
    worth = 1.0
    for k, rank in enumerate(node):
        worth *= ACCURACY[k][rank]
    return worth


if __name__ == "__main__":
    main()
