"""Draw `prefix_cache.svg`: two requests cut into blocks, the chain of their names, and the queue in which their blocks wait afterwards."""

from hashlib import blake2b
from pathlib import Path

from twofold.spec.attention.paged import BlockPool
from twofold.spec.serving import prefix_cache

B, WIDTH, CELL = 4, 640, 46
SYSTEM = ["you", "are", "helpful", "."]
REQUESTS = [
    ([*SYSTEM, "add", "2", "and", "2", "it", "is", "4"], "A request is computed; its full blocks get names."),
    ([*SYSTEM, "name", "a", "sour", "fruit", "lemon"], "Another finds the first of them."),
]
SMALL = 'font-size="11" fill-opacity="0.8"'


def short(name) -> str:
    """The first digits of a hash, to stand for a name."""
    return blake2b(repr(name).encode()).hexdigest()[:6]


def text(x: float, y: float, words: str, look: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" {look}>{words}</text>'


def chain(parts: list[str], top: float, tokens: list[str], blocks: list[int], found: int, who: str) -> None:
    """One request: words in blocks, the block of the pool under each, the name above each full one."""
    names, width = prefix_cache.hash_chain(tokens, B), B * CELL
    parts.append(f'<text x="24" y="{top - 34}">{who}</text>')
    for b, block in enumerate(blocks):
        left = 24 + (width + 22) * b
        middle = left + width / 2
        color = "var(--fast)" if b < found else "var(--spec)"
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.22"'
        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="30" rx="4" {look}/>')
        for i, word in enumerate(tokens[B * b : B * b + B]):
            parts.append(text(left + CELL * i + CELL / 2, top + 20, word))
        parts.append(text(middle, top + 45, f"block {block}, found" if b < found else f"block {block}", SMALL))
        if b < len(names):
            parts.append(text(middle, top - 9, short(names[b]), 'font-family="monospace"'))
        else:
            parts.append(text(middle, top - 9, "not full: no name", SMALL))
        if b + 1 < len(names):
            parts.append(f'<path d="M{middle + 28:.0f} {top - 13}h{width - 38}m-7-4l7 4-7 4" fill="none" stroke="currentColor"/>')


def main() -> None:
    cache = prefix_cache.PrefixCache(BlockPool(7, B))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 372" font-size="13" fill="currentColor">']
    for top, (tokens, who) in zip((54, 172), REQUESTS, strict=True):
        found = cache.match(tokens)
        blocks = found + cache.take(-(-len(tokens) // B) - len(found))
        cache.commit(blocks, tokens)
        chain(parts, top, tokens, blocks, len(found), who)
        cache.release(blocks)
    parts.append('<text x="24" y="268">Both are done. The queue of free blocks:</text>')
    for i, block in enumerate(cache.pool.free):
        x, name = 84 + 84 * i, cache.names.get(block)
        color = "var(--spec)" if name else "currentColor"
        parts.append(f'<rect x="{x}" y="284" width="70" height="30" rx="4" style="fill: {color}; stroke: {color}" fill-opacity="0.2"/>')
        parts.append(text(x + 35, 304, f"block {block}"))
        parts.append(text(x + 35, 330, short(name), SMALL + ' font-family="monospace"') if name else text(x + 35, 330, "no name", SMALL))
    parts.append('<text x="74" y="303" text-anchor="end">head</text><text x="594" y="303">tail</text>')
    parts.append(f'<text x="24" y="360" {SMALL}>Blocks are handed out from the head; one that is found again leaves the queue.</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
