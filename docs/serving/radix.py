"""Draw `radix.svg`: a cache of one sequence, the edge that a second one splits, and what goes when slots run out."""

from pathlib import Path

from twofold.spec.serving import radix

SYSTEM = ["you", "are", "helpful", "."]
FIRST, SECOND = [*SYSTEM, "add", "2", "and", "2"], [*SYSTEM, "name", "a", "fruit"]
CELL, ROW = 58, 58


def drawn(node, x: float, y: float, running: set) -> tuple[list[str], int]:
    """The edges below a node, each as a run of tokens over their slots, one child under the other; and how many rows they take."""
    parts, rows = [], 0
    for child in node.children.values():
        top, left = y + ROW * rows, x + 34
        color = "var(--fast)" if child in running else "var(--spec)"
        curve = f"M{x} {y}C{x + 20} {y} {left - 22} {top} {left} {top}"
        parts.append(f'<path d="{curve}" fill="none" stroke="currentColor" stroke-width="1.5"/>')
        for i, (token, slot) in enumerate(zip(child.tokens, child.slots, strict=True)):
            at = left + CELL * i
            look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.2"'
            parts.append(f'<rect x="{at:.0f}" y="{top - 19:.0f}" width="{CELL}" height="38" {look}/>')
            middle = f'x="{at + CELL / 2:.0f}" text-anchor="middle"'
            parts.append(f'<text {middle} y="{top:.0f}">{token}</text>')
            parts.append(f'<text {middle} y="{top + 14:.0f}" font-size="10" fill-opacity="0.75">slot {slot}</text>')
        below, height = drawn(child, left + CELL * len(child.tokens), top, running)
        parts += below
        rows += max(height, 1)
    return parts, rows


def main() -> None:
    cache, y = radix.RadixCache(), 62.0
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 400" font-size="13" fill="currentColor">']

    def panel(title: str, running: set) -> None:
        nonlocal y
        parts.append(f'<text x="16" y="{y - 36:.0f}">{title}</text>')
        parts.append(f'<circle cx="22" cy="{y:.0f}" r="5"/>')
        edges, rows = drawn(cache.root, 27, y, running)
        parts.extend(edges)
        y += ROW * rows + 62

    cache.insert(FIRST, range(8))
    panel("A request is done, and its tokens are stored with the slots of their keys and values.", set())

    shared, _ = cache.match(SECOND)
    cache.insert(SECOND, [*shared, *range(8, 8 + len(SECOND) - len(shared))])
    _, node = cache.match(SECOND)
    cache.lock(node)
    panel("Another begins alike: the edge is split, four slots are shared, and the way to its end is locked.", {node.parent, node})

    cache.evict(1)
    panel("Slots run out: the leaf that nobody reads goes, and slots 4 to 7 are free.", {node.parent, node})
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
