"""Draw `opt_tree.svg`: the best trees of six nodes for a drafter that is sure of itself and for one that is not."""

from pathlib import Path

NODES = 6
SURE, UNSURE = (0.8, 0.15, 0.05), (0.4, 0.3, 0.2, 0.1)
ACROSS, RADIUS, TOP = 66, 20, 44


def best_tree(row):
    """The six most valuable paths of a drafter whose row never changes, and how much each layer added."""
    best, layer, added = {}, {(): 1.0}, []
    while not added or added[-1] > 1e-9:
        layer = {(*path, v): value * q for path, value in layer.items() for v, q in enumerate(row)}
        layer = dict(sorted(layer.items(), key=lambda item: -item[1])[:NODES])
        better = dict(sorted((best | layer).items(), key=lambda item: -item[1])[:NODES])
        added.append(sum(better.values()) - sum(best.values()))
        best = better
    return {(): 1.0} | best, added[:-1]


def drawn(row, left, title):
    nodes, added = best_tree(row)
    layers = [sorted(path for path in nodes if len(path) == depth) for depth in range(len(added) + 1)]
    at = {path: (left + ACROSS * d, TOP + 26 + 46 * i) for d, layer in enumerate(layers) for i, path in enumerate(layer)}
    parts = [f'<text x="{left - RADIUS}" y="18" font-weight="600">{title}</text>']
    for path, (x, y) in at.items():
        if path:
            px, py = at[path[:-1]]
            parts.append(f'<path d="M{px + RADIUS} {py}L{x - RADIUS} {y}" stroke="currentColor" stroke-opacity="0.5"/>')
    for path, (x, y) in at.items():
        style = "fill: var(--fast-soft); stroke: var(--fast)" if path else "fill: none; stroke: currentColor"
        parts.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS}" style="{style}"/>')
        parts.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle" font-size="12">{f"{nodes[path]:.2f}".lstrip("0")}</text>')
    for depth, gain in enumerate(added, 1):
        parts.append(f'<text x="{left + ACROSS * depth}" y="206" text-anchor="middle" font-size="12">+{gain:.2f}</text>')
    parts.append(f'<text x="{left}" y="206" text-anchor="middle" font-size="12" fill-opacity="0.75">E</text>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 220" font-size="14" fill="currentColor">']
    parts += drawn(SURE, 26, "sure: .80 .15 .05") + drawn(UNSURE, 520, "unsure: .40 .30 .20 .10")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
