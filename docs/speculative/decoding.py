"""Draw `decoding.svg`: what the cache holds before a round, in its pass, and after it, once for a chain and once for a tree."""

from pathlib import Path

CELL = 46


def cell(x: int, y: int, text: str, style: str) -> str:
    box = f'<rect x="{x}" y="{y}" width="{CELL - 6}" height="30" rx="4" style="{style}"/>'
    return box + f'<text x="{x + CELL / 2 - 3}" y="{y + 20}" text-anchor="middle">{text}</text>'


HELD = "fill: var(--spec); fill-opacity: 0.35; stroke: currentColor"
READ = "fill: var(--fast); fill-opacity: 0.35; stroke: currentColor"
UNREAD = "fill: none; stroke: currentColor; stroke-dasharray: 4 3"


def strip(y: int, label: str, cells: list[tuple[str, str]], note: str) -> str:
    parts = [f'<text x="12" y="{y + 20}">{label}</text>']
    parts += [cell(96 + CELL * i, y, text, style) for i, (text, style) in enumerate(cells)]
    parts.append(f'<text x="{104 + CELL * len(cells)}" y="{y + 20}" font-size="12" fill-opacity="0.8">{note}</text>')
    return "".join(parts)


def main() -> None:
    text = [("the", HELD), ("cat", HELD)]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 316" font-size="13" fill="currentColor">']
    parts.append('<text x="12" y="24" font-weight="bold">a chain: two of three drafted tokens stay</text>')
    parts.append(strip(36, "before", [*text, ("sat", UNREAD)], "the last token is in no cache"))
    parts.append(strip(76, "the pass", [*text, *((word, READ) for word in ("sat", "on", "the", "dog"))], "root and draft are read"))
    parts.append(strip(116, "after", [*text, *((word, HELD) for word in ("sat", "on", "the")), ("mat", UNREAD)], "the end mark moves"))
    parts.append('<text x="12" y="186" font-weight="bold">a tree: nodes 1 “on”, 2 “up”, 3 “the” (child of 1), 4 “and” (child of 2)</text>')
    tree = [(word, READ) for word in ("sat", "on", "up", "the", "and")]
    parts.append(strip(198, "the pass", [*text, *tree], "siblings share a position"))
    kept = [*((word, HELD) for word in ("sat", "up", "and")), ("left", UNREAD)]
    parts.append(strip(238, "after", [*text, *kept], "path 2, 4: the entries are gathered"))
    legend = [(HELD, "in the cache"), (READ, "read in this pass"), (UNREAD, "written, not yet read")]
    for n, (style, what) in enumerate(legend):
        x = 96 + 170 * n
        parts.append(f'<rect x="{x}" y="288" width="16" height="16" style="{style}"/><text x="{x + 24}" y="301">{what}</text>')
    parts.append("</svg>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
