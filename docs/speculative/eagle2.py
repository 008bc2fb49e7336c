"""Draw `eagle2.svg`: three layers of an EAGLE-2 tree, which nodes are expanded, and which survive the reranking."""

from pathlib import Path

K, DEPTH, TOTAL = 2, 3, 5
ROWS = {  # the drafter's probabilities of its two likeliest words after each path
    (): {"a": 0.6, "the": 0.3},
    ("a",): {"new": 0.8, "big": 0.1},
    ("the",): {"old": 0.5, "new": 0.4},
    ("a", "new"): {"way": 0.9, "one": 0.05},
    ("the", "old"): {"man": 0.4, "way": 0.3},
}
ACROSS, WIDTH, HEIGHT = 190, 92, 26
KEPT, DROPPED = "stroke: var(--fast); stroke-width: 2.5", "stroke: currentColor; stroke-opacity: 0.4; stroke-dasharray: 4 3"


def expanded():
    """Every node as path -> value, in the order of creation, and those that were asked for children."""
    nodes, layer, asked = {(): 1.0}, [()], []
    for _ in range(DEPTH):
        best = sorted(layer, key=lambda path: -nodes[path])[:K]
        layer = [(*path, word) for path in best for word in ROWS[path]]
        nodes |= {path: nodes[path[:-1]] * ROWS[path[:-1]][path[-1]] for path in layer}
        asked += best
    return nodes, asked


def places(nodes):
    rows = {1: [68, 206], 2: [34, 102, 172, 240], 3: [17, 51, 155, 189]}
    layers = {depth: [path for path in nodes if len(path) == depth] for depth in rows}
    return {(): (16, 137)} | {path: (16 + ACROSS * d, y) for d, ys in rows.items() for path, y in zip(layers[d], ys, strict=True)}


def main() -> None:
    nodes, asked = expanded()
    at = places(nodes)
    kept = [(), *sorted(list(nodes)[1:], key=lambda path: -nodes[path])[:TOTAL]]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 300" font-size="13" fill="currentColor">']
    for path, (x, y) in at.items():
        if path:
            px, py = at[path[:-1]]
            style = KEPT if path in kept else DROPPED
            parts.append(f'<path d="M{px + WIDTH} {py}L{x} {y}" style="{style}"/>')
    for path, (x, y) in at.items():
        style = KEPT if path in kept else DROPPED
        fill = "fill: var(--spec-soft)" if path in asked else "fill: none"
        label = f"{path[-1]}  {nodes[path]:.3g}".replace(" 0.", " .") if path else "root  1"
        parts.append(f'<rect x="{x}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="5" style="{fill}; {style}"/>')
        parts.append(f'<text x="{x + WIDTH / 2}" y="{y + 4.5}" text-anchor="middle" xml:space="preserve">{label}</text>')
    for x, style, text in (
        (16, "fill: var(--spec-soft); stroke: currentColor; stroke-opacity: 0.4", "expanded"),
        (130, f"fill: none; {KEPT}", "kept: the 5 of greatest value"),
        (370, f"fill: none; {DROPPED}", "scored, and dropped"),
    ):
        parts.append(f'<rect x="{x}" y="276" width="22" height="14" rx="3" style="{style}"/>')
        parts.append(f'<text x="{x + 30}" y="288" font-size="12">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
